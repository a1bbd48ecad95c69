# SPDX-License-Identifier: Apache-2.0
"""One pass over a split, every metric of it."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import MaxMetric

from ascent_vit.data.batches import FEATURE_ROWS
from ascent_vit.inference.mode import evaluation_mode, input_kind, size_options
from modeling_ascent_vit.class_scores_ascent_vit import class_scores, score_function

from .metrics import AlignmentError, GlobalConceptMetrics, PresenceMetrics, SpatialConceptMetrics, label_metrics
from .records import SplitRecords


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ascent_vit.inference.protocols import ConceptClassifier


def check_labels(labels: Tensor | None, config: Any) -> Tensor | None:
    """
    Returns the batch's labels, or None: classes (B,), or (B, K) of several classes and of values.

    Args:
        labels: labels of the batch.
        config: configuration of the model, whose problem type decides.

    Raises:
        ValueError: for labels that are no classes of the model, or not one number for each.
    """
    if labels is None:
        return None
    function, num_classes = score_function(config), config.num_labels
    if function != "softmax":
        if labels.ndim == 1 and num_classes == 1:
            labels = labels[:, None]
        if labels.ndim != 2 or labels.shape[1] != num_classes or not labels.isfinite().all():
            raise ValueError(
                f"labels of a model for {config.problem_type} must be finite numbers of the shape (batch_size, "
                f"{num_classes}); got {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if function == "sigmoid" and not ((labels == 0) | (labels == 1)).all():
            raise ValueError(f"labels must be 1 for the classes of an image and 0 for others; got {labels.max():g}.")
        return labels
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            "labels must be one class index per image, integers of shape (batch_size,); "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, the model's classes; got {labels.min()} to "
            f"{labels.max()}. Evaluate on a dataset with the classes that the model was trained for."
        )
    return labels


def fill_targets(name: str, batch: dict[str, Tensor], attention: Tensor | None) -> Tensor | None:
    """Returns the batch's targets for an attention, all unknown if it has none; None without attention."""
    if attention is None:
        return None
    targets = batch.get(name)
    if targets is None:
        return torch.full_like(attention, torch.nan)
    if targets.shape != attention.shape:
        raise ValueError(
            f"{name} must have the shape {tuple(attention.shape)}, as the model's attention; got "
            f"{tuple(targets.shape)}. Make them with the model's own image processor, from a dataset with the model's "
            "concepts."
        )
    return targets


class _Evaluation:
    """
    Gathers the metrics of one pass: outputs and targets of each batch in, all metrics out.

    Args:
        model: model to evaluate, as `accelerator` prepared it or bare.
        accelerator: accelerator that prepared the batches; None for a process of its own.
        records: what to keep of each image; None for nothing.
    """

    def __init__(
        self,
        model: "ConceptClassifier",
        accelerator: "Accelerator | None",
        records: SplitRecords | None = None,
    ):
        self.records = records
        self.model = model
        self.accelerator = accelerator
        bare_model = model if accelerator is None else accelerator.unwrap_model(model)
        self.config = config = bare_model.config
        self.device, self.dtype = input_kind(bare_model)
        # Sums are kept in float64, which MPS does not have.
        has_float64 = self.device.type != "mps"
        self.metric_device = self.device if has_float64 else torch.device("cpu")
        self.precision = torch.float64 if has_float64 else torch.float32
        with torch.no_grad():
            self.class_bias = bare_model.class_bias().to(self.precision)
        # Gathered outputs are whole in every process already.
        kwargs = {"sync_on_compute": accelerator is None}
        self.label_metrics = label_metrics(config, **kwargs).to(self.metric_device)
        self.global_metrics = GlobalConceptMetrics(**kwargs).to(self.metric_device)
        self.spatial_metrics = SpatialConceptMetrics(**kwargs).to(self.metric_device)
        self.presence_metrics = PresenceMetrics(**kwargs).to(self.metric_device)
        self.alignment_error = AlignmentError(config.none_concept, **kwargs).to(self.metric_device)
        self.additivity_error = MaxMetric(nan_strategy="error", **kwargs).to(self.metric_device)

    def update(self, batch: dict[str, Tensor]):
        pixel_values = batch["pixel_values"].to(self.device, self.dtype)
        options: dict[str, Any] = size_options(self.config, pixel_values)
        # By these a model in training looks its frozen backbone's tokens up; any other leaves them aside.
        options |= {name: batch[name] for name in (FEATURE_ROWS,) if name in batch}
        out = self.model(pixel_values, output_contributions=True, **options)
        explained = out.concept_contributions.sum(1, dtype=self.precision) + self.class_bias
        strongest = None if out.spatial_concept_attention is None else out.spatial_concept_attention.amax(1)
        outputs = {
            "logits": out.logits,
            "additivity_errors": (out.logits.to(self.precision) - explained).abs().amax(-1),
            "global_attention": out.global_concept_attention,
            "spatial_attention": out.spatial_concept_attention,
            "labels": check_labels(batch.get("labels"), self.config),
            "global_targets": fill_targets("concept_targets", batch, out.global_concept_attention),
            "spatial_targets": fill_targets("spatial_concept_targets", batch, out.spatial_concept_attention),
            "presence": fill_targets("spatial_concept_presence", batch, strongest),
        }
        outputs = {name: tensor.to(self.device) for name, tensor in outputs.items() if tensor is not None}
        if self.accelerator is not None:
            outputs = self.accelerator.gather_for_metrics(outputs)
        self.update_metrics({name: tensor.to(self.metric_device) for name, tensor in outputs.items()})

    def update_metrics(self, outputs: dict[str, Tensor]):
        logits = outputs["logits"].double()
        if not logits.isfinite().all():
            raise ValueError("The model's logits are not finite: its weights are damaged, or its training diverged.")
        if self.records is not None:
            self.records.update(outputs)
        self.additivity_error.update(outputs["additivity_errors"])
        if "labels" in outputs:
            self.label_metrics.update(class_scores(logits, score_function(self.config)), outputs["labels"])
        streams = []
        if "global_attention" in outputs:
            attention, targets = outputs["global_attention"], outputs["global_targets"]
            self.global_metrics.update(attention, targets)
            streams.append((attention[:, None], targets[:, None]))
        if "spatial_attention" in outputs:
            attention, targets = outputs["spatial_attention"], outputs["spatial_targets"]
            self.spatial_metrics.update(attention, targets)
            self.presence_metrics.update(attention.amax(1), outputs["presence"])
            streams.append((attention, targets))
        if streams:
            self.alignment_error.update(*streams)

    def compute(self) -> dict[str, float]:
        if not self.additivity_error.update_called:
            raise ValueError("The dataloader gave no images: evaluate a split that has some.")
        values: dict[str, Tensor] = {}
        for collection in (self.label_metrics, self.global_metrics, self.spatial_metrics, self.presence_metrics):
            metrics = list(collection.values())
            if metrics[0].update_called:
                values |= collection.compute()
        if self.alignment_error.update_called:
            values["alignment_error"] = self.alignment_error.compute()
        values["additivity_error"] = self.additivity_error.compute()
        # With finite outputs, a metric is NaN only if the split has no targets for it.
        return {name: float(value) for name, value in values.items() if not math.isnan(value)}


def evaluate(
    model: "ConceptClassifier",
    dataloader: Iterable[dict[str, Tensor]],
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
    records: SplitRecords | None = None,
) -> dict[str, float]:
    r"""
    Evaluates a concept classifier on a split.

    Args:
        model (`torch.nn.Module`):
            An `AscentViTForImageClassification`, also one loaded as remote code or prepared by `accelerator`. It is
            put into evaluation mode, runs where its parameters are, and gets its own mode back.
        dataloader (`Iterable[dict]`):
            Batches of `pixel_values` (B, C, H, W) and, where known, `labels` (B,), of several classes of an image and
            of values (B, K), `concept_targets` (B, G),
            `spatial_concept_targets` (B, N, S) and `spatial_concept_presence` (B, S), NaN where nothing is annotated.
        accelerator (`Accelerator`, *optional*):
            The accelerator that prepared `dataloader`. Outputs are gathered from all processes, and the samples that
            it repeats to fill the last batch are counted once; with a dataset without length it cannot tell which they
            are. Without it, metrics synchronise over `torch.distributed` where that is initialised, each process
            bringing its own samples.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.
        records (`SplitRecords`, *optional*):
            Empty records that keep what each image adds to the metrics, for intervals.

    Returns:
        `dict[str, float]`: `accuracy`, `top5_accuracy` (more than 5 classes), `macro_f1`, `ece`; of a model for
        several classes of an image `label_map`, `label_f1_macro`, `label_f1_micro`, `ece`; of a regression `mae`,
        `rmse`, `r2` instead; `concept_map`,
        `concept_auroc`, `global_concept_accuracy`, `alignment_error`, `pointing_game`, `pixel_tpr`, `relevance_mass`,
        `presence_map`, `presence_auroc` and `additivity_error`, without those that the split has no targets for. The
        same in every process.

    Raises:
        ValueError: no images, labels or targets that do not fit the model, or outputs that are not finite.
    """
    evaluation = _Evaluation(model, accelerator, records)
    if progress:
        from tqdm.auto import tqdm

        main = accelerator is None or accelerator.is_local_main_process
        dataloader = tqdm(dataloader, desc="Evaluating", unit="batch", disable=not main)
    with evaluation_mode(model):
        for batch in dataloader:
            evaluation.update(batch)
    return evaluation.compute()


def known_metrics(
    model: "ConceptClassifier", dataloader: Iterable[dict[str, Tensor]], wanted: str
) -> dict[str, float]:
    """
    Metrics of as many batches as it takes until `wanted` is among them, of all if it never is: the first batch mostly
    tells whether a split has the targets for it.

    Args:
        model: model to evaluate, in a process of its own or in each of several, which read the same batches.
        dataloader: batches as [`evaluate`] takes them.
        wanted: name of a metric.
    """
    evaluation = _Evaluation(model, None)
    with evaluation_mode(model):
        for number, batch in enumerate(dataloader, start=1):
            evaluation.update(batch)
            # Computing costs more than a batch after many of them, so ever more rarely.
            if number.bit_count() == 1 and wanted in (metrics := evaluation.compute()):
                return metrics
    return evaluation.compute()
