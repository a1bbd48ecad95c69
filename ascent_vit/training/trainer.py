# SPDX-License-Identifier: Apache-2.0
"""Metrics for transformers' Trainer; its collator is [`~ascent_vit.data.ConceptCollator`]."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ascent_vit.evaluation import (
    AlignmentError,
    GlobalConceptMetrics,
    PresenceMetrics,
    SpatialConceptMetrics,
    label_metrics,
)
from ascent_vit.evaluation.evaluate import check_labels
from modeling_ascent_vit.class_scores_ascent_vit import class_scores, score_function


if TYPE_CHECKING:
    from transformers import EvalPrediction

# Targets of each kind, and the model's output that they are compared with, in the order of the model's outputs.
TARGETS = {
    "global": ("concept_targets", "global_concept_attention"),
    "spatial": ("spatial_concept_targets", "spatial_concept_attention"),
    "presence": ("spatial_concept_presence", "spatial_concept_attention"),
}


class ConceptMetrics:
    """
    Computes metrics for `Trainer`, as its `compute_metrics`: those of the labels that
    [`~ascent_vit.evaluation.evaluate`] has, by the problem type of the model, and those of the concepts whose targets
    `label_names` lists.

    `Trainer` holds all that it compares in memory: of spatial concepts, `images x patches x concepts` numbers twice.
    Leave them out, or set `batch_eval_metrics=True`, with which each batch is judged at once.

    Args:
        config (`AscentViTConfig`): Configuration of the model, also of one loaded as remote code.
        label_names (`Sequence[str]`, *optional*, defaults to `("labels",)`):
            `label_names` of the `TrainingArguments`: `"labels"`, and `"concept_targets"`,
            `"spatial_concept_targets"` and `"spatial_concept_presence"` to have those concepts judged. Each batch of
            evaluation must have all of them, otherwise `Trainer` evaluates nothing.

    Attributes:
        ignore_keys (`list[str]`):
            Outputs of the model that are not gathered. With concepts, pass it to
            `Trainer.train(ignore_keys_for_eval=...)` and to `Trainer.evaluate(ignore_keys=...)`.

    Returns:
        When called, `dict[str, float]`: metrics under the names that [`~ascent_vit.evaluation.evaluate`] gives them.
        `alignment_error` is among them if all concepts of the model are judged. What has no target is left out.

    Raises:
        ValueError: for names that are no targets of the model, a model with fewer than two classes, and predictions
            that are not what `label_names` and `ignore_keys` ask for.

    Example:

    ```python
    >>> metrics = ConceptMetrics(model.config, ["labels", "concept_targets"])
    >>> arguments = TrainingArguments("run", label_names=metrics.label_names, remove_unused_columns=False)
    >>> trainer = Trainer(model, arguments, data_collator=ConceptCollator(processor), compute_metrics=metrics, ...)
    >>> trainer.train(ignore_keys_for_eval=metrics.ignore_keys)
    >>> trainer.evaluate(ignore_keys=metrics.ignore_keys)["eval_concept_map"]
    ```
    """

    def __init__(self, config: Any, label_names: Sequence[str] = ("labels",)):
        self.config = config
        self.label_names = list(label_names)
        if config.num_labels < 2 and config.problem_type not in ("multi_label_classification", "regression"):
            raise ValueError(f"Class metrics need a model with at least 2 classes; this one has {config.num_labels}.")
        num_global, num_spatial = config.num_global_concepts, config.num_spatial_concepts
        sizes = {"global": num_global, "spatial": num_spatial, "presence": num_spatial}
        known = ["labels", *(TARGETS[kind][0] for kind, size in sizes.items() if size)]
        unknown = [name for name in self.label_names if name not in known]
        if unknown or "labels" not in self.label_names or len(set(self.label_names)) < len(self.label_names):
            raise ValueError(
                f"label_names must list labels, and may list the targets of the model's concepts, each once: "
                f"{', '.join(known)}; got {', '.join(self.label_names) or 'nothing'}."
            )
        self.kinds = [kind for kind, (targets, _) in TARGETS.items() if targets in self.label_names]
        judged = {TARGETS[kind][1] for kind in self.kinds}
        self.ignore_keys = [name for name in config.keys_to_ignore_at_inference if name not in judged]
        # Trainer has gathered its predictions from all processes: to gather once more would count them again.
        self.label_metrics: Any = None
        self.concept_metrics: dict[str, Any] = {
            "global": GlobalConceptMetrics(sync_on_compute=False),
            "spatial": SpatialConceptMetrics(sync_on_compute=False),
            "presence": PresenceMetrics(sync_on_compute=False),
        }
        self.alignment_error = AlignmentError(config.none_concept, sync_on_compute=False)
        streams = {stream for stream in ("global", "spatial") if sizes[stream]}
        self.judges_alignment = bool(streams) and streams <= set(self.kinds)

    def __call__(self, prediction: "EvalPrediction", compute_result: bool = True) -> dict[str, float]:
        """
        Judges predictions.

        Args:
            prediction (`EvalPrediction`): Logits and targets, and the attention to the concepts judged.
            compute_result (`bool`, *optional*, defaults to `True`):
                Whether nothing more follows, as `Trainer` says it with `batch_eval_metrics`.
        """
        targets, outputs = self.read(prediction)
        logits = outputs["logits"].double()
        if not logits.isfinite().all():
            raise ValueError("The model's logits are not finite: its weights are damaged, or its training diverged.")
        if self.label_metrics is None:
            # Only now, as the model's first loss says what problem its labels are of, unless the config did.
            self.label_metrics = label_metrics(self.config, sync_on_compute=False)
        labels = check_labels(targets["labels"], self.config)
        self.label_metrics.update(class_scores(logits, score_function(self.config)), labels)
        pairs = []
        for kind in self.kinds:
            wanted, attention = (part[name] for part, name in zip((targets, outputs), TARGETS[kind], strict=True))
            if kind == "presence":
                self.concept_metrics[kind].update(attention.amax(1), wanted)
                continue
            self.concept_metrics[kind].update(attention, wanted)
            pairs.append((attention, wanted) if kind == "spatial" else (attention[:, None], wanted[:, None]))
        if self.judges_alignment:
            self.alignment_error.update(*pairs)
        return self.compute() if compute_result else {}

    def read(self, prediction: "EvalPrediction") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Names targets and outputs; ValueError where they are not those asked for."""
        targets, outputs = (
            [torch.as_tensor(part) for part in (parts if isinstance(parts, tuple | list) else [parts])]
            for parts in (prediction.label_ids, prediction.predictions)
        )
        config = self.config
        several = score_function(config) != "softmax" and (config.num_labels > 1 or targets[0].ndim > 1)
        ends = {
            "labels": (config.num_labels,) if several else (),
            "logits": (config.num_labels,),
            **dict.fromkeys(TARGETS["global"], (config.num_global_concepts,)),
            **dict.fromkeys(TARGETS["spatial"] + TARGETS["presence"], (config.num_spatial_concepts,)),
        }
        dimensions = {name: 1 + len(end) for name, end in ends.items()}
        dimensions |= dict.fromkeys(TARGETS["spatial"], 3)

        def fits(names: list[str], tensors: list[Tensor]) -> bool:
            return len(names) == len(tensors) and all(
                tensor.ndim == dimensions[name] and tensor.shape[1:][-1:] == ends[name]
                for name, tensor in zip(names, tensors, strict=True)
            )

        if not fits(self.label_names, targets):
            raise ValueError(
                f"These metrics judge {', '.join(self.label_names)}, but Trainer handed over targets of the shapes "
                f"{', '.join(str(tuple(target.shape)) for target in targets)}: pass the same label_names to "
                "TrainingArguments, and targets made by the model's own image processor."
            )
        names = list(dict.fromkeys(["logits", *(TARGETS[kind][1] for kind in self.kinds)]))
        if not fits(names, outputs):
            raise ValueError(
                f"These metrics need {', '.join(names)} of the model, but Trainer handed over outputs of the shapes "
                f"{', '.join(str(tuple(output.shape)) for output in outputs)}: pass the metrics' ignore_keys to "
                "Trainer.train as ignore_keys_for_eval, and to Trainer.evaluate as ignore_keys."
            )
        return dict(zip(self.label_names, targets, strict=True)), dict(zip(names, outputs, strict=True))

    def compute(self) -> dict[str, float]:
        """Computes the metrics of all that came since the last time."""
        judged = [self.label_metrics, *(self.concept_metrics[kind] for kind in self.kinds)]
        values: dict[str, Tensor] = {}
        for collection in judged:
            values |= collection.compute()
            collection.reset()
        if self.judges_alignment:
            values["alignment_error"] = self.alignment_error.compute()
            self.alignment_error.reset()
        # With finite outputs, a metric is NaN only if the split has no targets for it.
        return {name: float(value) for name, value in values.items() if not math.isnan(value)}


__all__ = ["ConceptMetrics"]
