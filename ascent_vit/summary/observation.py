# SPDX-License-Identifier: Apache-2.0
"""Runs the model on a batch of a dataset and takes down what a summary needs of it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ascent_vit.data import ConceptCollator
from ascent_vit.data.schema import label_text
from ascent_vit.evaluation.correction import correct_each
from ascent_vit.evaluation.evaluate import check_labels, fill_targets
from ascent_vit.evaluation.intervention import share_right
from ascent_vit.inference.mode import input_kind, size_options
from modeling_ascent_vit.class_scores_ascent_vit import chosen_classes, class_scores, score_function
from modeling_ascent_vit.modeling_ascent_vit import attention_share, true_attention
from modeling_ascent_vit.names_ascent_vit import STREAMS, class_names

from .tally import Batch


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

# Images whose concepts are corrected at a time.
CORRECTED = 4
TARGETS = {"global": "concept_targets", "spatial": "spatial_concept_targets"}


def is_unlabelled(row: dict[str, Any]) -> bool:
    """Whether a row has no label: no column of it, null, or -1, which stands for what is not known on the Hub."""
    label = row.get("label")
    return label is None or (isinstance(label, int) and label == -1)


class Collator:
    """Batches of [`ConceptCollator`] of rows that may lack a label, with which have one, and the labels as texts."""

    def __init__(self, processor: "ConceptImageProcessor", config: Any, label_feature: Any):
        self.collate = ConceptCollator(processor, config.num_labels)
        self.feature = label_feature
        function = score_function(config)
        self.filler: Any = {"softmax": 0, "sigmoid": []}.get(function, [0.0] * config.num_labels)
        if function == "none" and config.num_labels == 1:
            self.filler = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        known = [not is_unlabelled(row) for row in rows]
        filled = [row if has else row | {"label": self.filler} for row, has in zip(rows, known, strict=True)]
        texts = [label_text(self.feature, row["label"]) if has else None for row, has in zip(rows, known, strict=True)]
        return {**self.collate(filled), "labelled": torch.tensor(known), "texts": texts}


class Observer:
    """
    Runs a model on batches of [`Collator`].

    Tables that depend on the parameters only are read once, so the parameters must not change while it is in use.

    Args:
        model: model to look at, in evaluation mode.
        has_labels: whether any image has a label; else each counts as one of the class that is predicted.
        has_size: whether annotations have an extent, as those of points have not.
    """

    def __init__(self, model: "ConceptClassifier", has_labels: bool = True, has_size: bool = True):
        self.model, self.config, self.has_labels, self.has_size = model, model.config, has_labels, has_size
        self.function = score_function(self.config)
        self.labels = class_names(self.config)
        self.device, self.dtype = input_kind(model)
        with torch.no_grad():
            self.tables = {name: stream.contribution_table().cpu() for name, stream in model.streams().items()}
            self.class_bias = model.class_bias().cpu().double()

    @property
    def weights(self) -> Tensor:
        """What each concept adds to each class where all attention of all heads is to it, `(C, K)`."""
        return torch.cat([table.double().sum(0) for table in self.tables.values()])

    def observe(self, batch: dict[str, Any], first: int) -> tuple[Batch, dict[str, Any]]:
        """
        Runs the model once.

        Args:
            batch: batch of images.
            first: number of its first image.

        Returns:
            What is summed, and the columns of the images' table.
        """
        pixel_values = batch["pixel_values"].to(self.device, self.dtype)
        outputs = self.model(
            pixel_values,
            output_contributions=True,
            output_concept_heads=True,
            **size_options(self.config, pixel_values),
        )
        logits = outputs.logits.cpu().double()
        if not logits.isfinite().all():
            raise ValueError("The model's logits are not finite: its weights are damaged, or its training diverged.")
        grid = tuple(outputs.patch_grid[0].tolist())
        attentions = self.read_attention(outputs)
        targets = {name: fill_targets(TARGETS[name], batch, self.mean(attentions, name)) for name in TARGETS}
        spatial = self.mean(attentions, "spatial")
        maps = torch.zeros(len(logits), grid[0] * grid[1], 0) if spatial is None else spatial
        places = torch.zeros_like(maps) if targets["spatial"] is None else targets["spatial"]
        pooled, strongest, patches = self.pool(attentions)
        labels: Any = check_labels(batch["labels"], self.config)
        labelled, predicted = batch["labelled"], chosen_classes(logits, self.function)
        seen = Batch(
            rows=first + torch.arange(len(logits)),
            contributions=outputs.concept_contributions.cpu(),
            members=self.members(labels, labelled, predicted),
            attention=pooled,
            strongest=strongest,
            patches=patches,
            maps=maps,
            targets=places,
            grid=grid,
        )
        table = self.columns(seen, batch, logits, labels, predicted)
        table["presence"] = self.presence(targets, batch, strongest.shape[1]).numpy()
        annotated = (places > 0).any(-1)
        size = torch.where(annotated.any(-1) & self.has_size, annotated.float().mean(-1), torch.nan)
        table["object_size"] = size.numpy().astype(np.float32)
        table["put_right"] = [None] * len(logits)
        if self.function == "softmax":
            wrong = (labelled & (predicted != labels)).nonzero()[:, 0]
            for chosen in wrong.split(CORRECTED):
                found = self.corrections(attentions, targets, logits, labels, chosen)
                for index, concepts in zip(chosen.tolist(), found, strict=True):
                    table["put_right"][index] = concepts
        return seen, table

    def read_attention(self, outputs: Any) -> dict[str, Tensor]:
        """Attention per head by stream, `(B, A, T, S)`."""
        attentions = {}
        for name in STREAMS:
            attention = outputs.get(f"{name}_concept_attention_heads")
            if attention is not None:
                attention = attention.float().cpu()
                attentions[name] = attention if name == "spatial" else attention.unsqueeze(2)
        return attentions

    @staticmethod
    def mean(attentions: dict[str, Tensor], name: str) -> Tensor | None:
        """Attention of a stream as the model returns it, the mean over heads."""
        if name not in attentions:
            return None
        mean = attentions[name].mean(1)
        return mean if name == "spatial" else mean.squeeze(1)

    @staticmethod
    def pool(attentions: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each concept the attention as it counts, the strongest at any place, and the patch where that is."""
        pooled, strongest, patches = [], [], []
        for name, attention in attentions.items():
            pooled.append((attention.sum(2) * attention_share(attention)).mean(1))
            values, places = attention.mean(1).max(1)
            strongest.append(values)
            patches.append(places if name == "spatial" else torch.full_like(places, -1))
        return torch.cat(pooled, 1), torch.cat(strongest, 1), torch.cat(patches, 1)

    def members(self, labels: Tensor, labelled: Tensor, predicted: Tensor) -> Tensor:
        """Which images count as those of a class, `(B, K)`: by label, or all by prediction; of values, all."""
        number = self.config.num_labels
        if self.function == "none":
            return torch.ones(len(labels), number, dtype=torch.bool)
        if not self.has_labels:
            return torch.nn.functional.one_hot(predicted, number).bool()
        by_label = labels > 0 if labels.ndim == 2 else torch.nn.functional.one_hot(labels, number).bool()
        return by_label & labelled.unsqueeze(1)

    def columns(
        self, seen: Batch, batch: dict[str, Any], logits: Tensor, labels: Tensor, predicted: Tensor
    ) -> dict[str, Any]:
        """What the table has of each image's class and contributions."""
        labelled, index = batch["labelled"], torch.arange(len(logits))
        if self.function == "none":
            quality = (logits - labels.view(logits.shape)).abs().mean(-1)
        else:
            quality = share_right(logits, labels).double()
        single = self.function == "softmax"
        label_ids = torch.where(labelled, labels, -1) if single else torch.full_like(predicted, -1)
        scores = class_scores(logits, self.function)
        to_label = seen.contributions[index, :, label_ids.clamp_min(0)]
        to_label = torch.where((label_ids >= 0).unsqueeze(1), to_label.float(), torch.nan)
        return {
            "row": seen.rows.numpy(),
            "label": batch["texts"],
            "label_id": label_ids.numpy(),
            "predicted": [self.labels[i] for i in predicted.tolist()],
            "predicted_id": predicted.numpy(),
            "score": scores[index, predicted].numpy(),
            "quality": torch.where(labelled, quality, torch.nan).numpy(),
            "logits": logits.float().numpy(),
            "contributions": seen.contributions[index, :, predicted].float().numpy(),
            "contributions_label": to_label.numpy(),
            "attention": seen.attention.numpy(),
            "strongest": seen.strongest.numpy(),
        }

    @staticmethod
    def presence(targets: dict[str, Tensor | None], batch: dict[str, Any], number: int) -> Tensor:
        """Which concepts images show, `(B, C)` int8: 1, 0 for those they do not, -1 where nobody has said it."""
        known = []
        if targets["global"] is not None:
            known.append(targets["global"])
        if targets["spatial"] is not None:
            placed = torch.where((targets["spatial"] > 0).any(1), 1.0, torch.nan)
            said = batch.get("spatial_concept_presence")
            known.append(placed if said is None else torch.where(said.isnan(), placed, said))
        values = torch.cat(known, 1) if known else torch.zeros(len(batch["labels"]), 0)
        codes = torch.where(values.isnan(), -1, (values > 0).long()).to(torch.int8)
        return torch.nn.functional.pad(codes, (0, number - codes.shape[1]), value=-1)

    def corrections(
        self,
        attentions: dict[str, Tensor],
        targets: dict[str, Tensor | None],
        logits: Tensor,
        labels: Tensor,
        chosen: Tensor,
    ) -> list[list[int] | None]:
        """Of wrongly classified images the concepts whose correction alone puts them right; None without targets."""
        right, correctable, before = [], torch.zeros(len(chosen), dtype=torch.bool), 0
        columns: list[int] = []
        for name, attention in attentions.items():
            wanted = targets.get(name)
            if wanted is not None:
                truth = wanted[chosen] if name == "spatial" else wanted[chosen].unsqueeze(1)
                truth = true_attention(truth.float(), self.config.none_concept)
                change = correct_each(attention[chosen], truth, self.tables[name], self.config.none_concept)
                right.append((logits[chosen].unsqueeze(1) + change).argmax(-1) == labels[chosen].unsqueeze(1))
                correctable |= ~truth.isnan().all(-1).all(-1)
                columns += range(before, before + attention.shape[-1])
            before += attention.shape[-1]
        if not right:
            return [None] * len(chosen)
        return [
            [columns[i] for i in row.nonzero()[:, 0].tolist()] if can else None
            for row, can in zip(torch.cat(right, 1), correctable.tolist(), strict=True)
        ]


__all__ = ["Collator", "Observer", "is_unlabelled"]
