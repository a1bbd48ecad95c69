# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints and their settings without running any code that a file may hold."""

import argparse
import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ascent_vit.utils.files import read_json


# Types that training scripts keep beside the weights and that are safe to read: they hold plain values, run nothing.
HARMLESS_TYPES: list[Any] = [argparse.Namespace, pathlib.PosixPath]

# Keys under which checkpoints of Lightning and timm, and released files, keep their state dict.
STATE_DICT_KEYS = ("state_dict", "model")

# First bytes of an archive of torch.save.
ZIP_START = b"PK\x03\x04"

# Name of a type that torch refuses to make, in its error.
REFUSED_TYPE = re.compile(r"GLOBAL ([\w.]+)")

NUMBER = (int, float)
BACKBONE_KEYS: dict[str, Any] = {
    "layout": str,
    "image_size": (int, list),
    "patch_size": (int, list),
    "embed_dim": int,
    "depth": int,
    "num_heads": int,
    "mlp_ratio": NUMBER,
    "layer_norm_eps": NUMBER,
}
KEYS: dict[str, Any] = {
    "backbone": dict,
    "num_classes": int,
    "num_global_concepts": int,
    "num_spatial_concepts": int,
    "num_unsupervised_concepts": int,
    "concept_attention_heads": int,
    "fusion_heads": int,
    "fusion_points": int,
    "fusion_levels": int,
    "psi": NUMBER,
    "labels": list,
    "global_concepts": list,
    "spatial_concepts": list,
    "image_mean": list,
    "image_std": list,
    "model_name": str,
    "license": str,
}


def _check_settings(settings: Any, keys: dict[str, Any], place: str) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{place} must be a JSON object; got {type(settings).__name__}.")
    unknown = sorted(set(settings) - set(keys))
    if unknown:
        raise ValueError(f"{place} has unknown keys: {', '.join(unknown)}. It may have {', '.join(keys)}.")
    for name, value in settings.items():
        if not isinstance(value, keys[name]) or isinstance(value, bool):
            types = keys[name] if isinstance(keys[name], tuple) else (keys[name],)
            raise ValueError(
                f"{place}: {name} must be of type {' or '.join(t.__name__ for t in types)}; got {json.dumps(value)}."
            )
        if isinstance(value, NUMBER) and not math.isfinite(value):
            raise ValueError(f"{place}: {name} must be a finite number; got {value}.")
        member = {"labels": str, "global_concepts": str, "spatial_concepts": str}.get(name, NUMBER)
        if isinstance(value, list) and not all(isinstance(x, member) and not isinstance(x, bool) for x in value):
            raise ValueError(f"{place}: {name} must be a list of {'names' if member is str else 'numbers'}.")


def read_settings(path: str | os.PathLike | None) -> dict[str, Any]:
    """
    Reads what a checkpoint's shapes cannot tell from a JSON file; returns `{}` for `None`.

    Args:
        path: JSON file with any of `KEYS`, of which `backbone` has any of `BACKBONE_KEYS`.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for a file that is no JSON object, an unknown key or a value of a wrong type.
    """
    if path is None:
        return {}
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give a JSON file as --config.")
    settings = read_json(path)
    _check_settings(settings, KEYS, str(path))
    _check_settings(settings.get("backbone", {}), BACKBONE_KEYS, f"{path}, backbone")
    for name in ("image_mean", "image_std"):
        if not all(math.isfinite(x) and (name == "image_mean" or x > 0) for x in settings.get(name, ())):
            raise ValueError(f"{path}: {name} must hold finite numbers{' above 0' * (name == 'image_std')}.")
    return settings


def _check_archive(path: pathlib.Path) -> None:
    """Raises `ValueError` for an archive that unpacks to more than it holds, as `torch.save` does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint: {error}.") from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(f"{path} unpacks to more than it holds, and torch.save writes no such files: it is not read.")


def _is_held(tensor: torch.Tensor) -> bool:
    """Whether a tensor is plain, with each of its values in memory of its own."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _load_pickle(path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP_START
    if zipped:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(HARMLESS_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        held = REFUSED_TYPE.search(str(error))
        if held:
            raise ValueError(
                f"{path} holds {held[1]} beside tensors, and reading that could run code: if you trust whoever made "
                "the file, save its state dict alone, with safetensors.torch.save_file, and convert that."
            ) from error
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint of tensors and plain values: give a whole file that "
            "torch.save or safetensors wrote."
        ) from error


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Reads the tensors of a Lightning checkpoint, a bare state dict or a safetensors file.

    Nothing of the file is run: what `torch.load(weights_only=True)` refuses is refused here, except namespaces and
    paths, which training scripts keep beside the weights.

    Args:
        path: file of the checkpoint; one that does not end in `.safetensors` is read as PyTorch's.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for a file that is damaged, needs code to be read, or holds something else than tensors.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the checkpoint file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    content = _load_pickle(path)
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict: give a file that maps names to tensors.")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path} holds no state dict: {', '.join(others[:10])}{', ...' * (len(others) > 10)} "
            "are no tensors. Save the state dict alone, and convert that."
        )
    spread = [str(name) for name, value in content.items() if not _is_held(value)]
    if spread:
        raise ValueError(f"{path}: {spread[0]} is no plain tensor that the file holds in full: it is not read.")
    return {str(name): value for name, value in content.items()}


__all__ = ["read_settings", "read_state_dict"]
