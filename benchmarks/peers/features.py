# SPDX-License-Identifier: Apache-2.0
"""What peers learn from: a frozen backbone's tokens of each image, pooled, with its class and its concepts."""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ascent_vit.data import concepts_from_features
from ascent_vit.data.batches import FEATURE_ROWS
from ascent_vit.training import Recipe
from ascent_vit.training.build import build_model, make_loader
from ascent_vit.training.features import CachedTokens
from ascent_vit.utils.files import write_bytes


BATCH = 32


@dataclass(frozen=True)
class Split:
    """
    The images of a split, a train image once for each of its views.

    Args:
        cls: the backbone's CLS token, `(B, D)` float32.
        mean: mean of its patch tokens, `(B, D)` float32.
        labels: classes, `(B,)`.
        concepts: global concepts, 1 for those present, `(B, G)` float32.
    """

    cls: torch.Tensor
    mean: torch.Tensor
    labels: torch.Tensor
    concepts: torch.Tensor

    def pooled(self, name: str) -> torch.Tensor:
        """Features by name: "cls", or "cls_mean", both beside each other."""
        return self.cls if name == "cls" else torch.cat([self.cls, self.mean], dim=-1)


def recorder(collate: Any, found: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A collator that notes the class and the concepts of each row by its number, so that images are read once."""

    def recorded(rows: Any) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        values = zip(batch["labels"], (batch["concept_targets"] > 0).float(), strict=True)
        found.update(zip(batch[FEATURE_ROWS].tolist(), values, strict=True))
        return batch

    return recorded


def pool(tokens: np.ndarray, rows: range, found: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> Split:
    """Pools a backbone's tokens `(rows, 1, 1 + N, D)`, of which one, CLS, is a prefix."""
    parts = [torch.from_numpy(tokens[rows[i : i + BATCH], 0]).float() for i in range(0, len(rows), BATCH)]
    return Split(
        cls=torch.cat([part[:, 0] for part in parts]),
        mean=torch.cat([part[:, 1:].mean(1) for part in parts]),
        labels=torch.stack([found[row][0] for row in rows]),
        concepts=torch.stack([found[row][1] for row in rows]),
    )


def numbered_rows(recipe: Recipe, split: Any, processor: Any, first_row: int, training: bool) -> tuple[Any, Any]:
    """Rows of a split as training sees them, in the order of their numbers, and their collator."""
    loader: Any = make_loader(split, processor, recipe, BATCH, len(split) if training else None, first_row=first_row)
    return loader.dataset, loader.collate_fn


def compute_features(recipe: Recipe, dataset: Any, folder: Path) -> dict[str, Split]:
    """
    The splits of a dataset, "train" in the views that the recipe's seed draws.

    Tokens are kept in `folder` as `ascent-vit train` keeps them; what is there already is not computed again.
    """
    # Pixels are read once, and are not worth the memory.
    recipe = dataclasses.replace(recipe, cache_mebibytes=0)
    names = concepts_from_features(dataset["train"].features)
    found: dict[str, Split] = {}
    for part, splits in (("train", ("train", "validation")), ("test", ("test",))):
        files = {name: folder / f"{name}-seed{recipe.seed if part == 'train' else 0}.npz" for name in splits}
        if not all(file.is_file() for file in files.values()):
            model, processor = build_model(recipe, *names)
            tokens, pairs, ranges, notes, start = CachedTokens(model), [], {}, {}, 0
            for name in splits:
                rows, collate = numbered_rows(recipe, dataset[name], processor, start, name == "train")
                pairs.append((rows, recorder(collate, notes)))
                ranges[name] = range(start, start := start + len(rows))
            tokens.fill(pairs, folder / part, BATCH, progress=True)
            assert tokens.tokens is not None
            for name, numbers in ranges.items():
                content = io.BytesIO()
                values = dataclasses.asdict(pool(tokens.tokens, numbers, notes))
                np.savez(content, **{key: value.numpy() for key, value in values.items()})
                write_bytes(files[name], content.getvalue())
        for name, file in files.items():
            with np.load(file) as arrays:
                found[name] = Split(**{key: torch.from_numpy(arrays[key]) for key in arrays})
    return found
