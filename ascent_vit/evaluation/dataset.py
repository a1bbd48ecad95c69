# SPDX-License-Identifier: Apache-2.0
"""Every metric of a model on a split of a concept dataset, as `ascent-vit evaluate` writes them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from ascent_vit.data import ConceptCollator, check_concepts, concepts_from_features
from ascent_vit.data.schema import COLUMNS, problem_type
from ascent_vit.explanation.intervene import Groups

from .causal import CausalEffect
from .concept_scores import ConceptScores
from .evaluate import evaluate
from .faithfulness import Faithfulness
from .intervals import intervals
from .intervention import Intervention
from .probe import NotApplicableError, TokenMemory, check_counts, choose_subset, images_at_once
from .records import SplitRecords
from .robustness import Robustness
from .samples import Sample
from .sanity import Randomisation


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

logger = logging.getLogger(__name__)

EVALUATORS = ("faithfulness", "intervention", "robustness", "causal", "concepts")
# Batches of a subset are kept in memory up to this size: of 1,000 images, up to 149 pixels square.
KEPT_BYTES = 2**28


def check_names(config: Any, features: Any, spatial_concepts: list[str] | None = None) -> None:
    """
    Checks that a dataset's classes and concepts are the model's: the same names in the same order, of one class, of
    several or of values alike. Values have no names in a dataset.

    A stream that the dataset does not annotate is no contradiction, nor are classes that the model has no names for.

    Raises:
        ValueError: naming the first place where they differ.
    """
    labels, global_concepts, placed_concepts = concepts_from_features(features, spatial_concepts)
    problem = problem_type(features["label"])
    predicted = config.problem_type or "single_label_classification"
    if problem != predicted:
        raise ValueError(
            f"The model is for {predicted}, and the dataset's label is for {problem}: evaluate on a dataset with "
            "labels of the model's kind."
        )
    classes = [config.id2label[i] for i in range(config.num_labels)]
    named = problem != "regression" and classes != [f"LABEL_{i}" for i in range(len(classes))]
    if len(classes) != len(labels):
        difference = f"the model has {len(classes)}, the dataset {len(labels)}"
    else:
        pairs = enumerate(zip(classes, labels, strict=True))
        place = next((i for i, (left, right) in pairs if left != right), None) if named else None
        if place is None:
            check_concepts(
                config,
                global_concepts or config.global_concepts,
                placed_concepts or config.spatial_concepts,
            )
            return
        difference = f"number {place} is {classes[place]!r} in the model and {labels[place]!r} in the dataset"
    raise ValueError(
        f"The classes of model and dataset must have the same names in the same order, but {difference}. Evaluate on "
        "a dataset with the model's classes, or give their names with the option labels where it has only numbers."
    )


class KeptBatches:
    """
    Batches that are made once, and kept for the next time if they are not too large; so are their tokens.

    Args:
        loader: dataloader that makes them.
    """

    def __init__(self, loader: Any):
        self.loader = loader
        self.memory = TokenMemory(KEPT_BYTES)
        self.batches: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.batches is not None:
            yield from self.batches
            return
        batches, size = [], 0
        for batch in self.loader:
            size += sum(tensor.nbytes for tensor in batch.values())
            if size <= KEPT_BYTES:
                batches.append(batch)
            yield batch
        if size <= KEPT_BYTES:
            self.batches = batches
        else:
            self.memory = TokenMemory(0)


@dataclass(frozen=True)
class Settings:
    """
    What to measure of a model, beside one pass over the split.

    Args:
        images (`int`, *optional*, defaults to 1000): Number of images of the subset, at most.
        curve_images (`int`, *optional*, defaults to `images`): Number of these for insertion and deletion, which take
            most of the time, at most.
        steps (`int`, *optional*, defaults to 16): Number of steps of insertion, deletion and intervention curves.
        seed (`int`, *optional*, defaults to 0): Random seed of the subset, of random orders and random weights, and of
            the draws of intervals.
        batch_size (`int`, *optional*, defaults to 32): Number of images per forward pass; of small images, more.
        skip (`Sequence[str]`, *optional*): Evaluators to leave out, of `"faithfulness"`, `"intervention"`,
            `"robustness"`, `"causal"` and `"concepts"`.
        sanity (`bool`, *optional*, defaults to `False`): Whether to compare with random weights too.
        purity (`bool`, *optional*, defaults to `False`): Whether to measure the impurity of the concepts' scores too.
        concept_groups (`dict[str, list[str]]` or `"prefix"`, *optional*): Concepts that are corrected at once, see
            [`Intervention`].

    Raises:
        ValueError: for numbers below 1, or an unknown evaluator.
    """

    images: int = 1000
    steps: int = 16
    seed: int = 0
    batch_size: int = 32
    skip: Sequence[str] = ()
    sanity: bool = False
    purity: bool = False
    curve_images: int | None = None
    concept_groups: Groups = None

    def __post_init__(self):
        curve_images = self.images if self.curve_images is None else self.curve_images
        check_counts(images=self.images, curve_images=curve_images, steps=self.steps, batch_size=self.batch_size)
        unknown = [name for name in self.skip if name not in EVALUATORS]
        if unknown:
            raise ValueError(f"skip may name {', '.join(EVALUATORS)}; got {unknown[0]!r}.")

    def evaluators(self) -> dict[str, Any]:
        """The evaluators by name, those to leave out among them."""
        evaluators: dict[str, Any] = {
            "faithfulness": Faithfulness(self.steps, self.seed, self.batch_size),
            "intervention": Intervention(self.steps, self.seed, self.concept_groups),
            "robustness": Robustness(),
            "causal": CausalEffect(self.seed, self.batch_size),
            "concepts": ConceptScores(self.seed, self.purity),
        }
        return evaluators | ({"sanity": Randomisation(self.seed)} if self.sanity else {})


def measure_dataset(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    split: "Dataset",
    settings: Settings,
    spatial_concepts: list[str] | None = None,
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, Sample]]:
    """
    Measures a model on a split; arguments are those of [`evaluate_dataset`].

    Returns:
        The metrics, as [`evaluate_dataset`] gives them, and by the evaluator's name the images that were measured.
    """
    if len(split) == 0:
        raise ValueError("The split has no images: evaluate one that has some.")
    check_names(model.config, split.features, spatial_concepts)
    split = split.select_columns([name for name in COLUMNS if name in split.features])

    def loader(part: "Dataset") -> Any:
        collate = ConceptCollator(processor, model.config.num_labels)
        size = images_at_once(settings.batch_size, model.config.image_size)
        batches: Any = DataLoader(part, size, collate_fn=collate)  # type: ignore[arg-type]
        return batches if accelerator is None else accelerator.prepare_data_loader(batches)

    records = SplitRecords(model.config)
    values: dict[str, Any] = evaluate(model, loader(split), accelerator, progress, records)
    samples: dict[str, Sample] = {"split": records}

    def subset(images: int) -> Any:
        batches = loader(split.select(choose_subset(len(split), images, settings.seed)))
        # Of several processes, Accelerate has to see the batches to tell which images fill the last one.
        return KeptBatches(batches) if accelerator is None or accelerator.num_processes == 1 else batches

    chosen = subset(settings.images)
    fewer = settings.curve_images is not None and settings.curve_images < min(settings.images, len(split))
    subsets = {"faithfulness": subset(settings.curve_images)} if fewer and settings.curve_images else {}
    left_out = []
    for name, evaluator in settings.evaluators().items():
        if name in settings.skip:
            left_out.append(f"{name}: not asked for")
            continue
        try:
            sample = evaluator.sample(model, subsets.get(name, chosen), accelerator, progress)
            values |= sample.values()
            samples[name] = sample
        except NotApplicableError as error:
            left_out.append(f"{name}: {error}")
            if accelerator is None or accelerator.is_main_process:
                logger.warning("Left out: %s.", left_out[-1])
    return values | {"num_images": len(split), "left_out": left_out}, samples


def interval_ends(samples: dict[str, Sample], seed: int = 0) -> dict[str, float]:
    """Ends of the intervals of the metrics of measured images, `NAME_low` and `NAME_high`."""
    found: dict[str, float] = {}
    for sample in samples.values():
        for name, (_, low, high) in intervals(sample, seed=seed).items():
            found |= {f"{name}_low": low, f"{name}_high": high}
    return found


def evaluate_dataset(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    split: "Dataset",
    images: int = 1000,
    steps: int = 16,
    seed: int = 0,
    batch_size: int = 32,
    skip: Sequence[str] = (),
    sanity: bool = False,
    spatial_concepts: list[str] | None = None,
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
    with_intervals: bool = False,
    purity: bool = False,
    curve_images: int | None = None,
    concept_groups: Groups = None,
) -> dict[str, Any]:
    """
    Evaluates a concept classifier on a split, in full.

    The metrics of [`evaluate`] are those of the whole split; all others are those
    of a subset that is drawn by the seed. What the model or the split cannot be judged by is left out, and said.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        processor (`AscentViTImageProcessor`): The model's image processor.
        split (`datasets.Dataset`): Split of a concept dataset.
        images, steps, seed, batch_size, skip, sanity, purity, curve_images, concept_groups: What to measure; see
            [`Settings`].
        spatial_concepts (`list[str]`, *optional*): Names of a mask's values, as in [`concepts_from_features`].
        accelerator (`Accelerator`, *optional*): Shares the images out among its processes.
        progress (`bool`, *optional*, defaults to `False`): Whether to show progress bars.
        with_intervals (`bool`, *optional*, defaults to `False`): Whether to give the interval of each metric too.

    Returns:
        `dict`: the metrics by their names, numbers of images, the curves as lists, `num_images`, and `left_out`, a
        sentence for each evaluator that was not run. With intervals, `NAME_low` and `NAME_high` for each metric that
        has one. The same in every process.

    Raises:
        ValueError: for classes or concepts that are not the model's, an empty split, or numbers below 1.
    """
    settings = Settings(images, steps, seed, batch_size, skip, sanity, purity, curve_images, concept_groups)
    values, samples = measure_dataset(model, processor, split, settings, spatial_concepts, accelerator, progress)
    return values | interval_ends(samples, seed) if with_intervals else values


__all__ = ["Settings", "evaluate_dataset", "measure_dataset"]
