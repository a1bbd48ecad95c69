# SPDX-License-Identifier: Apache-2.0
"""Training recipes: what to train, on what, and how, as a YAML file whose keys bear TrainingArguments' names."""

import dataclasses
import importlib.resources
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ascent_vit.data.augmentation import Augmentation
from ascent_vit.utils.metrics import EPOCH_METRICS
from ascent_vit.utils.suggest import suggest
from ascent_vit.utils.types import describe, fits
from ascent_vit.utils.yaml import read_key_value, read_yaml


SCHEDULES = Literal["cosine", "linear", "constant", "constant_with_warmup"]


def _number(default: Any, **limits: float) -> Any:
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Recipe:
    """
    One training run. Keys of a recipe file are these fields.

    Args:
        model: a preset's name, or fields of [`AscentViTConfig`] with an optional `preset` to start from. The names of
            classes and concepts come from the dataset; a stream given as an empty list is left out of the model.
        backbone: a Hub id or folder with pretrained weights. Its configuration is then the backbone's, so `model` may
            have neither `preset` nor `backbone_config`.
        dataset: a Hub id, a local folder or "digits".
        dataset_options: further arguments of [`load_concept_dataset`].
        processor: parameters of the image processor.
        augmentation: fields of [`Augmentation`], drawn anew for each training image in each epoch; none when empty.
        learning_rate: the peak, of AdamW.
        weight_decay: of AdamW; not on biases, norms and other vectors.
        adam_beta1: of AdamW.
        adam_beta2: of AdamW.
        adam_epsilon: of AdamW.
        num_train_epochs: passes over the train split, in steps of whole batches.
        max_steps: optimiser steps instead of `num_train_epochs`, -1 for no limit. A shorter run than the epochs has
            warm-up and head-only training shortened in proportion.
        warmup_epochs: epochs in which the learning rate grows linearly from 0.
        head_only_epochs: first epochs in which the backbone is frozen.
        lr_scheduler_type: course of the learning rate after the warm-up.
        per_device_train_batch_size: images per process and forward pass.
        per_device_eval_batch_size: the same in evaluation.
        gradient_accumulation_steps: forward passes per optimiser step.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        mixed_precision: "auto", "no", "bf16" or "fp16"; "auto" is "bf16" on an accelerator that has units for it, else
            "no". A run's records hold which it was.
        ema_decay: of an exponential moving average of weights and buffers, which is then what is evaluated and saved;
            null for none.
        seed: of weights, order, and a validation split that is cut from train.
        save_steps: steps between checkpoints, beside the one after each epoch; null for none.
        save_total_limit: checkpoints to keep, the newest; null for all.
        logging_steps: steps between records for `report_to`.
        report_to: "none", "tensorboard" or "trackio".
        metric_for_best_model: the metric on the validation split that chooses the weights to keep.
        greater_is_better: whether a greater metric is better; null takes it from the metric.
        dataloader_num_workers: processes that read images, where they do not fit `cache_mebibytes`, and that augment.
        cache_mebibytes: a split that takes at most so much memory once processed is processed once and kept; 0 for
            never. Use 0 with a processor that acts at random. With augmentation, so much of the train split as fits is
            kept decoded instead.
        name: of the recipe, in reports; the file's by default.
    """

    model: str | dict | None = None
    backbone: str | None = None
    dataset: str | None = None
    dataset_options: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)
    augmentation: dict = field(default_factory=dict)
    learning_rate: float = _number(5e-5, above=0)
    weight_decay: float = _number(0.0, least=0)
    adam_beta1: float = _number(0.9, least=0, below=1)
    adam_beta2: float = _number(0.999, least=0, below=1)
    adam_epsilon: float = _number(1e-8, above=0)
    num_train_epochs: float = _number(3.0, above=0)
    max_steps: int = _number(-1, least=-1)
    warmup_epochs: float = _number(0.0, least=0)
    head_only_epochs: float = _number(0.0, least=0)
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
    report_to: Literal["none", "tensorboard", "trackio"] = "none"
    metric_for_best_model: str = "accuracy"
    greater_is_better: bool | None = None
    dataloader_num_workers: int = _number(0, least=0)
    cache_mebibytes: int = _number(512, least=0)
    name: str = "unnamed"

    def __post_init__(self):
        check_recipe(dataclasses.asdict(self), "Recipe")

    @property
    def best_is_greatest(self) -> bool:
        """Whether the best epoch is that with the greatest metric."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return EPOCH_METRICS[self.metric_for_best_model].greater_is_better


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


# Keys whose values are mappings, into which `--set` reaches.
NESTED_KEYS = ("model", "processor", "augmentation", "dataset_options")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as such.") from error


def _augmentation(options: dict[str, Any], source: str) -> Augmentation:
    known = [item.name for item in dataclasses.fields(Augmentation)]
    for key in options:
        if key not in known:
            raise ValueError(f"{source}: augmentation has no key {key}; {suggest(str(key), known)}")
    try:
        return Augmentation(**options)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def check_recipe(values: dict[str, Any], source: str) -> None:
    """
    Checks keys, types and values of a recipe.

    Args:
        values: keys and values; keys that are absent have their defaults.
        source: what to name in errors.

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
    if values.get("max_steps") == 0:
        raise ValueError(f"{source}: max_steps must be at least 1, or -1 for no limit; got 0.")
    if values.get("lr_scheduler_type") == "constant" and values.get("warmup_epochs", 0) > 0:
        raise ValueError(f"{source}: lr_scheduler_type constant has no warm-up: use constant_with_warmup.")
    metric = values.get("metric_for_best_model", "accuracy")
    if metric not in EPOCH_METRICS:
        raise ValueError(f"{source}: metric_for_best_model {metric!r} is no metric; {suggest(metric, EPOCH_METRICS)}")
    if values.get("augmentation"):
        _augmentation(values["augmentation"], source)
    epochs = values.get("num_train_epochs", FIELDS["num_train_epochs"].default)
    for key in ("warmup_epochs", "head_only_epochs"):
        if values.get(key, 0) >= epochs:
            raise ValueError(
                f"{source}: {key} must be below num_train_epochs, {epochs}, so that something is left to train; "
                f"got {values[key]}."
            )


def configuration_files(kind: Literal["models", "recipes"]) -> dict[str, Any]:
    """The files that come with the package, by name: the installed ones, or those of the source tree."""
    try:
        folder = importlib.resources.files("ascent_vit.configuration")
    except ModuleNotFoundError:
        folder = Path(__file__).resolve().parents[2] / "configuration"
    files = folder / kind
    return {item.name.removesuffix(".yaml"): item for item in files.iterdir() if item.name.endswith(".yaml")}


def _read_shipped(kind: Literal["models", "recipes"], name: str, source: str) -> dict[str, Any]:
    files = configuration_files(kind)
    if not isinstance(name, str) or name not in files:
        raise ValueError(f"{source}: there is no {kind[:-1]} preset {name!r}; {suggest(str(name), sorted(files))}")
    return read_yaml(files[name].read_text(encoding="utf-8"), f"{kind}/{name}.yaml")


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mappings within mappings merged likewise; neither is altered."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, value = read_key_value(override, "--set")
    parts = key.split(".")
    if not all(parts):
        raise ValueError(f"--set takes keys as in learning_rate or model.psi; got {key!r}.")
    if key == "dataset" and values.get("dataset") not in (None, value):
        values = values | {"dataset_options": {}}
    if len(parts) == 1:
        return values | {parts[0]: value}
    if parts[0] not in NESTED_KEYS:
        raise ValueError(f"--set {override}: {parts[0]} has no keys within; known are {', '.join(NESTED_KEYS)}.")
    for part in reversed(parts[1:]):
        value = {part: value}
    current = values.get(parts[0]) or {}
    if isinstance(current, str):
        current = {"preset": current}
    return values | {parts[0]: merge(current, value)}


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """
    Reads and checks a recipe.

    Args:
        name_or_path: a YAML file, or the name of a recipe that comes with the package.
        overrides: `KEY=VALUE` each, values in YAML; dots reach into mappings, as in `model.psi=0.5`.
            Another dataset than the recipe's has none of its `dataset_options`.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for an unknown key, a wrong type or an impossible value, naming file and key.

    Example:

    ```python
    >>> recipe = load_recipe("digits", ["learning_rate=1e-4", "model.psi=0.5"])
    >>> recipe.learning_rate
    0.0001
    ```
    """
    path = Path(name_or_path).expanduser()
    shipped = configuration_files("recipes")
    if path.is_file():
        values, source = read_yaml(read_text(path), str(path)), str(path)
    elif str(name_or_path) in shipped:
        text = shipped[str(name_or_path)].read_text(encoding="utf-8")
        values, source = read_yaml(text, f"recipes/{name_or_path}.yaml"), f"recipes/{name_or_path}.yaml"
    else:
        names = ", ".join(sorted(shipped))
        raise FileNotFoundError(f"There is no recipe {name_or_path}: give a YAML file, or one of {names}.")
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected a mapping of keys to values; got {type(values).__name__}.")
    values = {"name": path.stem} | values
    check_recipe(values, source)
    overrides = list(overrides)
    for override in overrides:
        values = _apply_override(values, override)
    if overrides:
        # Together, as one may be valid only beside another.
        check_recipe(values, f"--set {' '.join(overrides)}")
    recipe = Recipe(**values)
    model_fields(recipe, source)
    processor_fields(recipe, source)
    return recipe


def model_fields(recipe: Recipe, source: str = "The recipe") -> dict[str, Any]:
    """
    Fields of [`AscentViTConfig`] that a recipe asks for, its preset merged in; without names of classes and concepts.

    Raises:
        ValueError: for an unknown preset or field, or a backbone given twice or not at all.
    """
    from transformers import CONFIG_MAPPING

    from modeling_ascent_vit import AscentViTConfig

    given = {"preset": recipe.model} if isinstance(recipe.model, str) else dict(recipe.model or {})
    preset = given.pop("preset", None)
    if recipe.backbone is not None and (preset is not None or "backbone_config" in given):
        raise ValueError(
            f"{source}: backbone {recipe.backbone} brings its own configuration: leave preset and backbone_config out "
            "of model, or set backbone: null."
        )
    known = [name for name in AscentViTConfig.__annotations__ if name in AscentViTConfig.__dataclass_fields__]
    for key in given:
        if key not in known:
            raise ValueError(f"{source}: model has no field {key}; {suggest(str(key), ['preset', *known])}")
    fields = merge(_read_shipped("models", preset, source), given) if preset is not None else given
    if recipe.backbone is not None:
        return fields
    backbone_config = fields.get("backbone_config")
    if backbone_config is None:
        presets = ", ".join(sorted(configuration_files("models")))
        raise ValueError(
            f"{source}: there is no backbone: give model a preset ({presets}) or a backbone_config, or give "
            "backbone a Hub id."
        )
    model_type = backbone_config.get("model_type") if isinstance(backbone_config, dict) else None
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"{source}: model.backbone_config needs a model_type of transformers; got {model_type!r}.")
    known = list(CONFIG_MAPPING[model_type].__dataclass_fields__)
    for key in backbone_config:
        if key not in ("model_type", *known):
            raise ValueError(f"{source}: model.backbone_config has no field {key}; {suggest(str(key), known)}")
    return fields


def processor_fields(recipe: Recipe, source: str = "The recipe") -> dict[str, Any]:
    """
    Parameters of the image processor that a recipe asks for.

    Raises:
        ValueError: for an unknown parameter.
    """
    from modeling_ascent_vit import AscentViTImageProcessor

    known = typing.get_type_hints(AscentViTImageProcessor.valid_kwargs)
    for key in recipe.processor:
        if key not in known or key.startswith("num_"):
            raise ValueError(f"{source}: processor has no parameter {key}; {suggest(str(key), known)}")
    return dict(recipe.processor)


__all__ = [
    "Recipe",
    "configuration_files",
    "load_recipe",
    "model_fields",
    "processor_fields",
]


def augmentation_of(recipe: Recipe) -> Augmentation | None:
    """The augmentation that a recipe asks for, None without one."""
    return _augmentation(recipe.augmentation, "The recipe") if recipe.augmentation else None
