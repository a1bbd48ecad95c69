# SPDX-License-Identifier: Apache-2.0
"""Training recipes: what to train, on what, and how. The keys bear TrainingArguments' names where they have one."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from ascent_vit.data.augmentation import Augmentation
from ascent_vit.utils.metrics import EPOCH_METRICS, LABEL_METRICS
from ascent_vit.utils.types import describe, fits
from modeling_ascent_vit.suggestions_ascent_vit import suggest


PROBLEMS = Literal["single_label_classification", "multi_label_classification", "regression"]
NO_METRIC = "none"
SCHEDULES = Literal["cosine", "linear", "constant", "constant_with_warmup"]
TRACKERS = Literal["tensorboard", "trackio", "wandb", "mlflow"]


def _number(default: Any, **limits: float) -> Any:
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Recipe:
    """
    The settings of a training run. Keys of a recipe file are these fields.

    Args:
        model: name of a preset, or fields of [`AscentViTConfig`] with an optional `preset` to start from. The names of
            classes and concepts come from the dataset; a stream given as an empty list is left out of the model.
        backbone: Hub id or folder of pretrained weights. Its configuration is then the backbone's, so `model` may
            have neither `preset` nor `backbone_config`.
        image_size: height and width of the images, or one number for both; null for the backbone's own. The position
            embeddings of a pretrained backbone are interpolated once.
        num_channels: channels of the images, 1 for grey; null for the backbone's own.
        dtype: dtype of the weights that are trained, whatever the backbone was saved in: "float32" or "bfloat16", in
            which steps of a small learning rate are lost. What lowers the cost of a step is `mixed_precision`.
        dataset: Hub id or local folder of the dataset, or "digits".
        dataset_options: further arguments of [`load_concept_dataset`].
        problem_type: what is predicted: "single_label_classification", "multi_label_classification", an image having
            several classes, or "regression", values; null for what the dataset's labels say. Another one than theirs
            is an error, but whole numbers, which are classes, count as values with "regression".
        processor: parameters of the image processor, before those that the backbone was trained with.
        augmentation: fields of [`Augmentation`], drawn anew for each training image in each epoch; none when empty.
        label_smoothing: share of a class label that is spread evenly over all classes.
        class_weights: weight of each class in the loss, "balanced" for weights in inverse proportion to the images of
            a class in the train split, or null.
        learning_rate: peak learning rate of AdamW.
        backbone_learning_rate: peak learning rate of the backbone, beside that of all else; null for the same.
        layer_decay: factor of the backbone's learning rate from each of its layers to the one below, and from the
            first to the embeddings; the last layer, and the norm behind it, have the whole of it. Null for one rate.
        weight_decay: weight decay of AdamW; not on biases, norms and other vectors.
        adam_beta1: decay rate of AdamW's first moment.
        adam_beta2: decay rate of AdamW's second moment.
        adam_epsilon: epsilon of AdamW.
        num_train_epochs: number of passes over the train split, in steps of whole batches.
        max_steps: number of optimiser steps instead of `num_train_epochs`, -1 for no limit. A shorter run than the
            epochs has warm-up and head-only training shortened in proportion.
        warmup_epochs: number of epochs in which the learning rate grows linearly from 0.
        head_only_epochs: number of first epochs in which the backbone is frozen.
        freeze_backbone: whether the backbone keeps its weights, so that pyramid and head alone train.
        frozen_layers: number of the backbone's first layers that keep their weights, the embeddings with them; null
            for none, or for all with `freeze_backbone` or `cache_features`.
        cache_features: whether what the frozen layers make of each image is computed once, and kept in the run's
            folder as float16 numbers; without `frozen_layers` all of the backbone is frozen. The pyramid still sees
            the pixels.
        feature_views: number of augmented views of each training image that are cached, one of which is drawn in each
            epoch; without augmentation the image itself is the only one.
        lr_scheduler_type: course of the learning rate after the warm-up.
        per_device_train_batch_size: number of images per process and forward pass.
        per_device_eval_batch_size: the same in evaluation.
        gradient_accumulation_steps: number of forward passes per optimiser step.
        max_grad_norm: norm to which gradients are clipped; 0 does not clip.
        mixed_precision: precision of the forward pass: "auto", "no", "bf16" or "fp16". "auto" is "bf16" on an
            accelerator that has units for it, else "no"; a run's records hold which it was.
        ema_decay: decay rate of an exponential moving average of weights and buffers, which is then what is evaluated
            and saved; null for none.
        seed: random seed of weights, order, and a validation split that is cut from train.
        save_steps: number of steps between checkpoints, beside the one after each epoch; null for none.
        save_total_limit: number of checkpoints to keep, the newest; null for all.
        logging_steps: number of steps between records of losses and learning rate.
        report_to: tracker of the run, "tensorboard", "trackio", "wandb" or "mlflow", a list of them, or "none".
        metric_for_best_model: metric on the validation split that chooses the weights to keep; null for "accuracy", of
            several classes of an image "label_map", and of values "mae"; "none" for the last weights, as a split of a
            hundred images chooses by chance.
        greater_is_better: whether a greater metric is better; null takes it from the metric.
        dataloader_num_workers: number of processes that read images, where they do not fit `cache_mebibytes`, and that
            augment.
        cache_mebibytes: memory in MiB: a split that takes no more once processed is processed once and kept; 0 for
            never. Use 0 with an image processor that acts at random. With augmentation, so much of the train split as
            fits is kept decoded instead.
        name: name of the recipe in reports; the file's by default.

    Raises:
        ValueError: for a wrong type or an impossible value.
    """

    model: str | dict | None = None
    backbone: str | None = None
    image_size: int | list[int] | None = None
    num_channels: int | None = _number(None, least=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    dataset: str | None = None
    dataset_options: dict = field(default_factory=dict)
    problem_type: PROBLEMS | None = None
    processor: dict = field(default_factory=dict)
    augmentation: dict = field(default_factory=dict)
    label_smoothing: float = _number(0.0, least=0, below=1)
    class_weights: Literal["balanced"] | list[float] | None = None
    learning_rate: float = _number(5e-5, above=0)
    backbone_learning_rate: float | None = _number(None, above=0)
    layer_decay: float | None = _number(None, above=0, below=1)
    weight_decay: float = _number(0.0, least=0)
    adam_beta1: float = _number(0.9, least=0, below=1)
    adam_beta2: float = _number(0.999, least=0, below=1)
    adam_epsilon: float = _number(1e-8, above=0)
    num_train_epochs: float = _number(3.0, above=0)
    max_steps: int = _number(-1, least=-1)
    warmup_epochs: float = _number(0.0, least=0)
    head_only_epochs: float = _number(0.0, least=0)
    freeze_backbone: bool = False
    frozen_layers: int | None = _number(None, least=1)
    cache_features: bool = False
    feature_views: int = _number(4, least=1)
    lr_scheduler_type: SCHEDULES = "cosine"
    per_device_train_batch_size: int = _number(8, least=1)
    per_device_eval_batch_size: int = _number(8, least=1)
    gradient_accumulation_steps: int = _number(1, least=1)
    max_grad_norm: float = _number(1.0, least=0)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    ema_decay: float | None = _number(None, above=0, below=1)
    seed: int = _number(42, least=0, below=2**32)
    save_steps: int | None = _number(None, least=1)
    save_total_limit: int | None = _number(2, least=1)
    logging_steps: int = _number(10, least=1)
    report_to: Literal["none"] | TRACKERS | list[TRACKERS] = "none"
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    dataloader_num_workers: int = _number(0, least=0)
    cache_mebibytes: int = _number(512, least=0)
    name: str = "unnamed"

    def __post_init__(self):
        check_recipe(dataclasses.asdict(self), "Recipe")

    @property
    def freezes_layers(self) -> bool:
        """Whether the backbone keeps its weights, all or those of its first layers."""
        return self.freeze_backbone or self.cache_features or self.frozen_layers is not None

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers, none twice."""
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [name for name in dict.fromkeys(names) if name != "none"]

    @property
    def best_metric(self) -> str | None:
        """Name of the metric that chooses the weights; None for the last ones."""
        metric = self.metric_for_best_model or "accuracy"
        return None if metric == NO_METRIC else metric

    @property
    def best_is_greatest(self) -> bool:
        """Whether the best epoch is that with the greatest metric."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return self.best_metric is None or EPOCH_METRICS[self.best_metric].greater_is_better


FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}
TYPES = typing.get_type_hints(Recipe)

# Keys that may differ between a run and its continuation, as they change what is computed by rounding only.
FREE_KEYS = (
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "dataloader_num_workers",
    "cache_mebibytes",
    "per_device_eval_batch_size",
    "name",
)


def as_pair(size: int | list[int]) -> list[int]:
    """Height and width of a size that may be one number for both."""
    return [size, size] if isinstance(size, int) else size


def _augmentation(options: dict[str, Any], source: str) -> Augmentation:
    known = [item.name for item in dataclasses.fields(Augmentation)]
    for key in options:
        if key not in known:
            raise ValueError(f"{source}: augmentation has no key {key}; {suggest(str(key), known)}")
    try:
        return Augmentation(**options)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _check_frozen(values: dict[str, Any], source: str) -> None:
    is_partial = values.get("frozen_layers") is not None
    if is_partial and values.get("freeze_backbone"):
        raise ValueError(f"{source}: freeze_backbone freezes all layers: leave it or frozen_layers out.")
    for key in ("freeze_backbone", "cache_features"):
        for rate in ("backbone_learning_rate", "layer_decay"):
            if values.get(key) and values.get(rate) is not None and not is_partial:
                hint = ", or set frozen_layers" if key == "cache_features" else ""
                raise ValueError(f"{source}: {key} leaves the backbone as it is: leave {rate} out{hint}.")


def check_recipe(values: dict[str, Any], source: str) -> None:
    """
    Checks keys, types and values of a recipe.

    Args:
        values: keys and values of the recipe; keys that are absent have their defaults.
        source: name of the recipe's source, for errors.

    Raises:
        ValueError: naming the key, what was expected and what was got.
    """
    for key, value in values.items():
        if key not in FIELDS:
            raise ValueError(f"{source}: there is no key {key}; {suggest(str(key), FIELDS)}")
        if not fits(value, TYPES[key]):
            raise ValueError(f"{source}: {key} must be {describe(TYPES[key])}; got {value!r}.")
        if value is None:
            continue
        for limit, text, holds in (
            ("above", "above", lambda value, limit: value > limit),
            ("least", "at least", lambda value, limit: value >= limit),
            ("below", "below", lambda value, limit: value < limit),
        ):
            bound = FIELDS[key].metadata.get(limit)
            if bound is not None and not holds(value, bound):
                raise ValueError(f"{source}: {key} must be {text} {bound}; got {value!r}.")
    size = values.get("image_size")
    if size is not None and not (all(side > 0 for side in as_pair(size)) and len(as_pair(size)) == 2):
        raise ValueError(f"{source}: image_size must be one number of pixels or [height, width]; got {size!r}.")
    if values.get("max_steps") == 0:
        raise ValueError(f"{source}: max_steps must be at least 1, or -1 for no limit; got 0.")
    if values.get("lr_scheduler_type") == "constant" and values.get("warmup_epochs", 0) > 0:
        raise ValueError(f"{source}: lr_scheduler_type constant has no warm-up: use constant_with_warmup.")
    metric = values.get("metric_for_best_model") or NO_METRIC
    if metric != NO_METRIC and metric not in EPOCH_METRICS:
        raise ValueError(f"{source}: metric_for_best_model {metric!r} is no metric; {suggest(metric, EPOCH_METRICS)}")
    _check_frozen(values, source)
    if values.get("augmentation"):
        _augmentation(values["augmentation"], source)
    epochs = values.get("num_train_epochs", FIELDS["num_train_epochs"].default)
    for key in ("warmup_epochs", "head_only_epochs"):
        if values.get(key, 0) >= epochs:
            raise ValueError(
                f"{source}: {key} must be below num_train_epochs, {epochs}, so that something is left to train; "
                f"got {values[key]}."
            )


def recipe_for_problem(recipe: Recipe, problem: str) -> Recipe:
    """
    Completes a recipe by what the dataset's labels say is predicted: the metric that chooses the weights.

    Raises:
        ValueError: for a metric of other labels, and for settings of the loss of one class an image where there are
            several, or values.
    """
    metric = recipe.metric_for_best_model or LABEL_METRICS[problem][0]
    others = {name for names in LABEL_METRICS.values() for name in names} - set(LABEL_METRICS[problem])
    if metric in others:
        raise ValueError(
            f"metric_for_best_model: {metric} is no metric of labels for {problem}, which are "
            f"{', '.join(LABEL_METRICS[problem])}."
        )
    for key, off in (("label_smoothing", "0"), ("class_weights", "null")):
        if getattr(recipe, key) and problem != "single_label_classification":
            raise ValueError(
                f"{key} is for labels of one class an image, and the dataset's are for {problem}: set it to {off}."
            )
    return dataclasses.replace(recipe, metric_for_best_model=metric)


def augmentation_of(recipe: Recipe) -> Augmentation | None:
    """Builds the augmentation that a recipe asks for, None without one."""
    return _augmentation(recipe.augmentation, "The recipe") if recipe.augmentation else None


__all__ = ["FREE_KEYS", "Recipe", "as_pair", "augmentation_of", "check_recipe", "recipe_for_problem"]
