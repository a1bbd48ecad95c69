# SPDX-License-Identifier: Apache-2.0
"""Reads recipes: YAML files, the presets that they start from, and changes from the command line."""

import importlib.resources
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ascent_vit.utils.yaml import read_key_value, read_yaml
from modeling_ascent_vit.suggestions_ascent_vit import suggest

from .recipe import Recipe, check_recipe


# Keys whose values are mappings, into which `--set` reaches.
NESTED_KEYS = ("model", "processor", "augmentation", "dataset_options")


def read_text(path: Path) -> str:
    """Reads a text file; ValueError for one that is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as such.") from error


def configuration_files(kind: Literal["models", "recipes"]) -> dict[str, Any]:
    """Finds the files that come with the package, by name: the installed ones, or those of the source tree."""
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
    """Gives `base` with `changes`, mappings within mappings merged likewise; neither is altered."""
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
        name_or_path: path of a YAML file, or name of a recipe that comes with the package.
        overrides: changes, `KEY=VALUE` each, values in YAML; dots reach into mappings, as in `model.psi=0.5`. Another
            dataset than the recipe's has none of its `dataset_options`.

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
    Gives the fields of [`AscentViTConfig`] that a recipe asks for, its preset merged in; without names of classes and
    concepts.

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
    Gives the parameters of the image processor that a recipe asks for.

    Raises:
        ValueError: for an unknown parameter.
    """
    from modeling_ascent_vit import AscentViTImageProcessor

    known = typing.get_type_hints(AscentViTImageProcessor.valid_kwargs)
    for key in recipe.processor:
        if key not in known or key.startswith("num_"):
            raise ValueError(f"{source}: processor has no parameter {key}; {suggest(str(key), known)}")
    return dict(recipe.processor)


__all__ = ["configuration_files", "load_recipe", "model_fields", "processor_fields"]
