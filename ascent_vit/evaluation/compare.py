# SPDX-License-Identifier: Apache-2.0
"""Two models on the same images: paired differences, and what may be said of them."""

from typing import TYPE_CHECKING, Any

from ascent_vit.utils.metrics import METRICS

from .dataset import Settings, measure_dataset
from .intervals import intervals


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

    Loaded = tuple[ConceptClassifier, ConceptImageProcessor]


# What other figures are read against: neither more nor less of these is better.
CONTROLS = ("insertion_auc_random", "deletion_auc_random", "causal_concept_effect_random")


def verdict(name: str, low: float, high: float) -> str:
    """
    Says what a difference shows: "better" or "worse" where its interval is on one side of 0, or "differs" of what is
    only there to read others against; else "not shown".

    Args:
        name: name of a metric.
        low, high: ends of the interval of the difference.
    """
    if low <= 0 <= high:
        return "not shown"
    if name in CONTROLS:
        return "differs"
    return "better" if (low > 0) == METRICS[name].greater_is_better else "worse"


def compare_dataset(
    model: "Loaded",
    other: "Loaded",
    split: "Dataset",
    settings: Settings | None = None,
    spatial_concepts: list[str] | None = None,
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Measures two models on the same images of a split, and the differences between them.

    Differences are paired: both models have the same images in each draw of the bootstrap, so that what is hard in an
    image is hard for both. Intervals of 95 % of 20 metrics leave one on one side of 0 by chance alone.

    Args:
        model (`tuple`): A model and its image processor, as of [`evaluate_dataset`].
        other (`tuple`): The model to compare with and its image processor.
        split (`datasets.Dataset`): Split of a concept dataset with the classes and concepts of both.
        settings (`Settings`, *optional*): What to measure; as by default where it is not given.
        spatial_concepts, accelerator, progress: Arguments of [`evaluate_dataset`].

    Returns:
        `dict`: what [`evaluate_dataset`] gives of `model`, and for each metric that both have and that has an interval
        `NAME_other`, `NAME_difference` (the model's minus the other's), `NAME_difference_low` and
        `NAME_difference_high`.

    Raises:
        ValueError: as [`evaluate_dataset`] for either model.
    """
    settings = settings or Settings()
    (values, samples), (other_values, other_samples) = (
        measure_dataset(*each, split, settings, spatial_concepts, accelerator, progress) for each in (model, other)
    )
    for sentence in other_values["left_out"]:
        if sentence not in values["left_out"]:
            values["left_out"].append(f"{sentence} (the other model)")
    for part, sample in samples.items():
        if part not in other_samples:
            continue
        for name, (difference, low, high) in intervals(sample, other_samples[part], settings.seed).items():
            values |= {
                f"{name}_other": other_values[name],
                f"{name}_difference": difference,
                f"{name}_difference_low": low,
                f"{name}_difference_high": high,
            }
    return values


__all__ = ["compare_dataset", "verdict"]
