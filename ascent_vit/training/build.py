# SPDX-License-Identifier: Apache-2.0
"""The parts of a run that a recipe asks for: model, image processor, splits and their loaders."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from ascent_vit.data import CachedConceptDataset, ConceptCollator, cached_bytes, concepts_from_features
from ascent_vit.data.augmentation import (
    AugmentedConceptDataset,
    AugmentedViews,
    ConceptAugmenter,
    EpochSampler,
    ViewSampler,
)
from ascent_vit.data.batches import NumberedRows
from ascent_vit.data.checks import check_groups
from ascent_vit.data.loading import spatial_names
from ascent_vit.data.schema import COLUMNS, GROUP_COLUMN, label_names

from .reading import model_fields, processor_fields
from .recipe import Recipe, as_pair, augmentation_of
from .stream import ShuffledStream, StreamLoader


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

    from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification, AscentViTImageProcessorPil

logger = logging.getLogger(__name__)

# Share of train that becomes the validation split of a dataset without one.
VALIDATION_SHARE = 0.1


def image_fields(recipe: Recipe) -> dict[str, Any]:
    """Gives what a recipe asks of the backbone's images: their size and channels; empty for the backbone's own."""
    size: Any = None if recipe.image_size is None else tuple(as_pair(recipe.image_size))
    # One number where it serves: some backbones take no other.
    size = size[0] if size is not None and size[0] == size[-1] else size
    fields = {"image_size": size, "num_channels": recipe.num_channels}
    return {name: value for name, value in fields.items() if value is not None}


def config_fields(
    recipe: Recipe,
    labels: list[str],
    global_concepts: list[str],
    spatial_concepts: list[str],
    problem: str = "single_label_classification",
) -> dict[str, Any]:
    """Gives the fields of [`AscentViTConfig`] for a recipe and a dataset's names; the recipe's own prevail."""
    fields = model_fields(recipe)
    if recipe.backbone is None:
        fields["backbone_config"] = fields["backbone_config"] | image_fields(recipe)
    for stream, names in (("global_concepts", global_concepts), ("spatial_concepts", spatial_concepts)):
        if fields.get(stream) is None:
            fields[stream] = names
    if recipe.label_smoothing:
        fields["label_smoothing"] = recipe.label_smoothing
    if isinstance(recipe.class_weights, list):
        fields["class_weights"] = recipe.class_weights
    classes = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return fields | classes | {"problem_type": problem}


def build_config(
    recipe: Recipe,
    labels: list[str],
    global_concepts: list[str],
    spatial_concepts: list[str],
    problem: str = "single_label_classification",
) -> "AscentViTConfig":
    """
    Builds the model's configuration for a recipe without pretrained backbone and the names of a dataset.

    Raises:
        ValueError: for fields of a wrong type, or that do not go together.
    """
    from modeling_ascent_vit import AscentViTConfig

    try:
        return AscentViTConfig(**config_fields(recipe, labels, global_concepts, spatial_concepts, problem))
    except StrictDataclassError as error:
        raise ValueError(f"The recipe's model is not valid: {error}") from error


def build_model(
    recipe: Recipe,
    labels: list[str],
    global_concepts: list[str],
    spatial_concepts: list[str],
    problem: str = "single_label_classification",
) -> tuple["AscentViTForImageClassification", "AscentViTImageProcessorPil"]:
    """
    Builds the model to train, in training mode, and its image processor.

    Args:
        recipe: recipe of the run: backbone, options and the image processor's parameters.
        labels: names of the classes.
        global_concepts: names of the dataset's global concepts.
        spatial_concepts: names of the dataset's spatial concepts.
        problem: what is predicted, by transformers' name.

    Raises:
        FileNotFoundError: for a pretrained backbone that cannot be read.
        ValueError: for fields of a wrong type, or that do not go together.
    """
    from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor

    settings = {"window": recipe.dataset_options.get("window")} | processor_fields(recipe)
    if recipe.backbone is None:
        config = build_config(recipe, labels, global_concepts, spatial_concepts, problem)
        bare: Any = AscentViTForImageClassification(config)
        model = bare.to(getattr(torch, recipe.dtype))
        return model.train(), AscentViTImageProcessor.from_model_config(config, **settings)
    fields = config_fields(recipe, labels, global_concepts, spatial_concepts, problem)
    try:
        model = AscentViTForImageClassification.from_backbone(
            recipe.backbone, **image_fields(recipe), dtype=recipe.dtype, trust_remote_code=False, **fields
        )
        processor = AscentViTImageProcessor.from_backbone(recipe.backbone, model.config, **settings)
    except StrictDataclassError as error:
        raise ValueError(f"The recipe's model is not valid: {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"The backbone {recipe.backbone} cannot be read: {error}") from error
    return model.train(), processor


def _cut_by_group(train: "Dataset", seed: int) -> tuple["Dataset", "Dataset | None"]:
    """Cuts a share of its groups from a train split and gives both; rows without a group are a group each."""
    from sklearn.model_selection import GroupShuffleSplit

    names = train[GROUP_COLUMN][:]
    numbers = {name: i for i, name in enumerate(sorted(set(names) - {None}))}
    groups = [len(numbers) + i if name is None else numbers[name] for i, name in enumerate(names)]
    if len(set(groups)) == 1:
        logger.warning(
            "No validation split: all rows of train are of one %s, %r, which must not be in two splits. The weights "
            "of the last epoch are kept.",
            *(GROUP_COLUMN, names[0]),
        )
        return train, None
    splitter = GroupShuffleSplit(n_splits=1, test_size=VALIDATION_SHARE, random_state=seed)
    kept, cut = next(splitter.split(groups, groups=groups))
    return train.select(kept), train.select(cut)


def split_dataset(dataset: "DatasetDict", seed: int) -> tuple[Any, Any | None, Any | None]:
    """
    Gives train, validation and test of a dataset, None where there is none.

    A missing validation split is cut from train by the seed, never from test: by group where the dataset has a
    `group_id`, so that no group is in two splits, else by image, stratified by class where every class has two. There
    is none where all rows of train are one group, which a warning says.

    Raises:
        ValueError: for a dataset without train split, a stream without validation split, or a group in two splits.
    """
    if "train" not in dataset:
        raise ValueError(f"The dataset has no train split; it has {', '.join(dataset)}.")
    if not isinstance(dataset["train"], IterableDataset):
        check_groups(dataset)
    train, validation, test = (dataset.get(name) for name in ("train", "validation", "test"))
    if validation is None:
        if isinstance(train, IterableDataset):
            raise ValueError("A streamed dataset needs a validation split: it cannot be cut from a stream.")
        if GROUP_COLUMN in train.features:
            train, validation = _cut_by_group(train, seed)
        else:
            try:
                parts = train.train_test_split(test_size=VALIDATION_SHARE, seed=seed, stratify_by_column="label")
            except ValueError:
                parts = train.train_test_split(test_size=VALIDATION_SHARE, seed=seed)
            train, validation = parts["train"], parts["test"]
        if validation is not None:
            logger.info("No validation split: %d images cut from train by seed %d.", len(validation), seed)
    return train, validation, test


def balanced_weights(split: Any, num_classes: int) -> list[float]:
    """Gives each class a weight in inverse proportion to its images, of mean 1 over these; 1 to a class without."""
    if not hasattr(split, "__len__"):
        raise ValueError("class_weights: balanced counts images, which a stream does not let: give a list of weights.")
    counts = torch.bincount(torch.as_tensor(split["label"][:]), minlength=num_classes)
    weights = len(split) / ((counts > 0).sum() * counts.clamp(min=1))
    return weights.masked_fill(counts == 0, 1.0).tolist()


def start_at_mean(model: "AscentViTForImageClassification", split: Any) -> None:
    """
    Lets a model for values begin with their mean over a split: the first steps would otherwise raise every attention
    that adds to the value, until it tells images apart no more. A stream is not read for it.
    """
    if hasattr(split, "__len__"):
        mean = torch.as_tensor(split["label"][:], dtype=torch.float64).view(len(split), -1).mean(0)
        stream = next(iter(model.streams().values()))
        with torch.no_grad():
            stream.projection.bias.copy_(mean)


def _as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


def build_augmenter(
    recipe: Recipe, features: "Features", processor: "AscentViTImageProcessorPil"
) -> ConceptAugmenter | None:
    """
    Builds what augments the train split; None for a recipe without augmentation.

    Raises:
        ValueError: for names that the dataset does not have, or crops that the image processor would not resize.
    """
    augmentation = augmentation_of(recipe)
    if augmentation is None:
        return None
    if augmentation.crop_scale is not None and not processor.do_resize:
        raise ValueError(
            "augmentation.crop_scale gives crops of many sizes, which the image processor must resize: "
            "leave crop_scale out, or do_resize: false out of processor."
        )
    names = concepts_from_features(features, spatial_names(recipe.dataset_options))
    return ConceptAugmenter(augmentation, *names[1:], window=processor.window)


def make_loader(
    split: Any,
    processor: "AscentViTImageProcessorPil",
    recipe: Recipe,
    batch_size: int,
    num_shuffled: int | None = None,
    progress: bool = False,
    process_index: int = 0,
    num_processes: int = 1,
    first_row: int | None = None,
) -> "DataLoader | StreamLoader":
    """
    Makes batches of a split for the model, from memory where the split fits the recipe's `cache_mebibytes`.

    Args:
        split: split of a concept dataset, or a stream of one.
        processor: the model's image processor.
        recipe: recipe of the run: seed, memory, workers and, for training, the augmentation.
        batch_size: number of images per batch.
        num_shuffled: number of images in an epoch of training, drawn at random, where a stream is shuffled and never
            ends; None for all images, in their order and as they are.
        progress: whether to show a progress bar while a split is read into memory.
        process_index: index of this process, for a stream to train on, of which each process reads its own share.
        num_processes: number of processes that share the stream.
        first_row: number of the first image, where the tokens of a frozen backbone are cached by number; views of
            augmented images are then as many as the recipe has. None for images without numbers.
    """
    training = num_shuffled is not None
    augmenter = build_augmenter(recipe, split.features, processor) if training else None
    split = split.select_columns([name for name in COLUMNS if name in split.features])
    num_labels = len(label_names(split.features["label"]))
    collate: Any = ConceptCollator(processor, num_labels)
    workers = recipe.dataloader_num_workers
    memory = recipe.cache_mebibytes * 2**20
    if isinstance(split, IterableDataset):
        if training:
            stream = ShuffledStream(split, recipe.seed, augmenter, process_index, num_processes)
            return StreamLoader(stream, batch_size, collate, workers)
        return DataLoader(split, batch_size, collate_fn=collate, num_workers=workers)
    sampler: Any = None
    if augmenter is not None and first_row is None:
        assert num_shuffled is not None
        sampler = EpochSampler(len(split), num_shuffled, recipe.seed)
        split = AugmentedConceptDataset(split, augmenter, recipe.seed, memory, progress)
    else:
        if augmenter is not None:
            assert num_shuffled is not None
            sampler = ViewSampler(len(split), recipe.feature_views, num_shuffled, recipe.seed)
            split = AugmentedViews(split, augmenter, recipe.seed, recipe.feature_views)
        elif first_row is not None:
            split = NumberedRows(split, first_row)
        if memory and len(split) and cached_bytes(split, processor, num_labels) <= memory:
            split = CachedConceptDataset(split, processor, progress=progress, num_labels=num_labels)
            collate, workers = _as_it_is, 0
        if sampler is None and training:
            sampler = RandomSampler(split, num_samples=num_shuffled)
    return DataLoader(
        split,
        batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        drop_last=training,
        # A generator of its own, so that reading draws nothing from the global one, which a resumed run restores.
        generator=torch.Generator().manual_seed(recipe.seed),
    )


__all__ = [
    "balanced_weights",
    "build_augmenter",
    "build_config",
    "build_model",
    "make_loader",
    "split_dataset",
    "start_at_mean",
]
