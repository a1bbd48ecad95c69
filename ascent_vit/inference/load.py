# SPDX-License-Identifier: Apache-2.0
"""
Loads untrusted models, or rejects them with one error that names the folder.

`from_pretrained` takes what it is given, as everywhere in transformers. The commands load models by this file: it
checks the configuration before anything is built from it, runs no code of a repository, and takes weights only if each
is there, of the right shape, and finite.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascent_vit.utils.files import read_json


if TYPE_CHECKING:
    from .protocols import ConceptClassifier, ConceptImageProcessor

# No vision transformer has larger sizes or more layers; what has is rejected before it costs memory.
LARGEST, MOST_LAYERS = 1_000_000, 200
POSITIVE = ("hidden_size", "image_size", "patch_size", "num_attention_heads", "num_channels", "height", "width")
LONGEST_SIDE = 4096  # pixels of a processed image

# Fewest bytes that a value of a model may have: half of what 4-bit quantisation stores, as a margin.
LEAST_BYTES = 0.25

# Types of weights in a safetensors file; only counters have another one.
FLOATS = re.compile(r"B?F\d+.*")
COUNTS = "num_batches_tracked"

# Arguments of timm's models that would read other files or the network.
FOREIGN_FILES = ("cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON file, nested ones too, with its key; values in a list have the key of the list."""
    yield name, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item, name)


def check_numbers(data: Any, path: str) -> None:
    """Raises `ValueError` for numbers that no vision transformer has."""
    for name, value in walk(data):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        limit = MOST_LAYERS if re.search("layers|depth", name) else LARGEST
        if not abs(value) <= limit:
            raise ValueError(f"{path}: {name} is {value}; it must be a number up to {limit:,}.")
        if name in POSITIVE and value < 1:
            raise ValueError(f"{path}: {name} is {value}; it must be 1 or more.")


def check_config(data: Any, path: str) -> None:
    """
    Checks a model's `config.json` before anything is built from it.

    Raises:
        ValueError: for another kind of model, sizes beyond any memory, code or files from elsewhere, or class ids that
            are not 0 to K - 1.
    """
    from modeling_ascent_vit import AscentViTConfig

    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold names and values; it holds {type(data).__name__}.")
    model_type = data.get("model_type")
    if model_type != "ascent_vit":
        raise ValueError(
            f"{Path(path).parent} is a model of type {model_type}: give an ASCENT-ViT, as train writes it."
        )
    check_numbers(data, path)
    methods = sorted(name for name in data if callable(getattr(AscentViTConfig, name, None)))
    if methods:
        raise ValueError(f"{path} may not set {methods[0]}, which is code.")
    for name, value in walk(data):
        if "attn_implementation" in name and isinstance(value, str) and re.search(r"[/:@]", value):
            raise ValueError(f"{path}: {name} names {value!r}, code of the Hub, which is not run.")
    backbone = data.get("backbone_config")
    if isinstance(backbone, dict) and backbone.get("model_type") == "timm_wrapper":
        arguments = backbone.get("model_args") or {}
        foreign = [name for name in FOREIGN_FILES if name in arguments]
        if foreign or re.search(r"[:/\\]", str(backbone.get("architecture"))):
            what = foreign[0] if foreign else backbone.get("architecture")
            raise ValueError(f"{path}: the backbone names files of elsewhere ({what}), which are not read.")
    labels = data.get("id2label")
    if labels is not None and (
        not isinstance(labels, dict)
        or set(labels) != {str(i) for i in range(len(labels))}
        or not all(isinstance(label, str) for label in labels.values())
    ):
        raise ValueError(f"{path}: id2label must name the classes, 0 to {len(labels) - 1}, each by a text.")


def check_processor(data: Any, path: str) -> None:
    """Raises `ValueError` for settings with which no image processor can run."""
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold names and values; it holds {type(data).__name__}.")
    check_numbers(data, path)
    for name in ("size", "crop_size"):
        for side, value in walk(data.get(name)):
            if isinstance(value, int) and value > LONGEST_SIDE:
                raise ValueError(f"{path}: {side} of {name} is {value}; it must be {LONGEST_SIDE} pixels or less.")
    std = data.get("image_std")
    if isinstance(std, list) and not all(isinstance(value, int | float) and value > 0 for value in std):
        raise ValueError(f"{path}: image_std must hold numbers above 0; got {std}.")


def check_weights(folder: Path) -> int:
    """
    Checks the headers of a folder's safetensors files, without reading the weights.

    Returns:
        Bytes of these files.

    Raises:
        ValueError: for a header that is damaged or does not fit its file, or weights that are not floating point.
    """
    from safetensors import SafetensorError, safe_open

    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        size += path.stat().st_size
        try:
            with safe_open(path, "pt") as file:
                types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}.") from error
        for name, kind in types.items():
            if not FLOATS.fullmatch(kind) and not name.endswith(COUNTS):
                raise ValueError(f"{path}: {name} is of type {kind}; weights must be floating point numbers.")
    return size


def check_size(config: Any, size: int, folder: Path) -> None:
    """Raises `ValueError` for a configuration of far more weights than the files hold."""
    import torch
    from transformers import AutoModelForImageClassification

    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    values = sum(tensor.numel() for tensor in model.state_dict().values())
    if values * LEAST_BYTES > size:
        raise ValueError(f"{folder}: config.json is of a model of {values:,} values; the weights have {size:,} bytes.")


@contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Turns any error of a damaged folder into one sentence, and silences reports of transformers."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (ValueError, FileNotFoundError):
        raise
    except OSError as error:
        raise FileNotFoundError(f"{what} cannot be read: {error}") from error
    except Exception as error:
        reason = str(error) if " " in str(error) else f"{type(error).__name__} {error}"
        raise ValueError(f"{what} cannot be read: {reason.rstrip('.')}.") from error
    finally:
        logging.set_verbosity(verbosity)


def load_whole(name_or_path: str | Path) -> "ConceptClassifier":
    """
    Loads a model that has each of its weights and no other, all finite.

    Args:
        name_or_path: Hub id or folder of the model.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for another kind of model, or a folder that is damaged or asks for code, files or sizes that a
            model does not need.
    """
    from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig

    folder = Path(name_or_path)
    with one_sentence(f"The model {name_or_path}"):
        if folder.is_dir():
            data = read_json(folder / "config.json")
        else:
            data, _ = PreTrainedConfig.get_config_dict(str(name_or_path))
        check_config(data, str(folder / "config.json"))
        options = {"trust_remote_code": False}
        if folder.is_dir() and "quantization_config" not in data:
            size = check_weights(folder)
            if size:
                check_size(AutoConfig.from_pretrained(folder, **options), size, folder)
        model, report = AutoModelForImageClassification.from_pretrained(
            name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report.get(kind):
                names = ", ".join(sorted(key if isinstance(key, str) else key[0] for key in report[kind])[:3])
                raise ValueError(
                    f"The weights in {name_or_path} do not fit its config.json: {kind.replace('_', ' ')} {names}."
                )
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"The weight {name} in {name_or_path} has values that are not finite numbers.")
    return model.eval()


def load_processor(name_or_path: str | Path) -> "ConceptImageProcessor":
    """
    Loads the image processor of a model.

    Args:
        name_or_path: Hub id or folder of the model.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for another kind of image processor, or one that is damaged.
    """
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor

    path = Path(name_or_path, "preprocessor_config.json")
    with one_sentence(f"The image processor of {name_or_path}"):
        if path.is_file():
            check_processor(read_json(path), str(path))
        processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
        if not hasattr(processor, "resize_concept_maps"):
            raise ValueError(
                f"The image processor of {name_or_path} is a {type(processor).__name__}: give an ASCENT-ViT's."
            )
        # Some wrong settings raise an error at the first image only.
        num_channels = getattr(processor, "num_channels", 3)
        plain = num_channels in (1, 3)
        image: Any = Image.new("RGB", (64, 64)) if plain else np.zeros((num_channels, 64, 64), np.uint8)
        processor(image, return_tensors="pt")
    return processor


def load_model(name_or_path: str) -> "tuple[ConceptClassifier, ConceptImageProcessor]":
    """
    Loads a model and its image processor.

    Args:
        name_or_path: Hub id or folder of the model.

    Returns:
        The model in evaluation mode, and the image processor.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for another kind of model, or one that is damaged.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir() and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise FileNotFoundError(f"There is no model folder {folder}.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"The folder {folder} holds no config.json: give one that a model was saved to.")
    source = str(folder) if folder.is_dir() else name_or_path
    return load_whole(source), load_processor(source)


__all__ = ["load_model", "load_processor", "load_whole"]
