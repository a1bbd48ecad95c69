# SPDX-License-Identifier: Apache-2.0
"""Exports a model to a folder for another runtime, with preprocessing, an example and a check of its answers."""

import copy
import json
import os
import platform
import shutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ascent_vit.safeguard import doubt
from ascent_vit.utils.files import check_new_folder, new_folder, write_json, write_text
from ascent_vit.utils.hardware import warn_if_slow
from modeling_ascent_vit.class_scores_ascent_vit import score_function
from modeling_ascent_vit.names_ascent_vit import class_names, concept_names

from . import example
from .check import check_export, measure_quantization
from .example import load
from .formats import PACKAGES, WRITERS, ExportableModel, check_format, in_bfloat16, quietly
from .readme import make_readme


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor
    from ascent_vit.safeguard import Safeguard

# Width and height of the image that shows what size the image processor makes: neither square nor a whole number of
# patches, so that a processor whose output follows the image's shape is found out.
PROBE_SIZE = (50, 83)


def image_settings(processor: "ConceptImageProcessor") -> dict[str, Any]:
    """
    Settings of an image processor, for `prepare` of the example.

    Raises:
        ValueError: for a processor that pads, or resizes in a way that the example does not know.
    """
    size = None
    if processor.do_resize:
        given = {key: int(value) for key, value in dict(processor.size).items() if value is not None}
        if set(given) not in ({"height", "width"}, {"shortest_edge"}):
            raise ValueError(
                f"An exported model resizes to a height and a width or by the shortest edge; this image processor has "
                f"size {given}."
            )
        size = given
    if processor.do_pad:
        raise ValueError("This image processor pads, which an exported model cannot: set do_pad=False.")
    if not processor.do_convert_rgb:
        raise ValueError("An exported model takes RGB: set do_convert_rgb=True in the image processor.")
    crop = None
    if processor.do_center_crop:
        crop = {"height": int(processor.crop_size["height"]), "width": int(processor.crop_size["width"])}
    normalizes = processor.do_normalize
    window = getattr(processor, "window", None)
    return {
        "window": None if window is None else [float(value) for value in window],
        "resize": size,
        "resample": int(processor.resample),
        "crop": crop,
        "rescale_factor": float(processor.rescale_factor) if processor.do_rescale else None,
        "mean": [float(value) for value in processor.image_mean] if normalizes else None,
        "std": [float(value) for value in processor.image_std] if normalizes else None,
    }


def processed_shape(processor: "ConceptImageProcessor") -> tuple[int, int, int]:
    """
    Channels, height and width of the images that an image processor makes.

    Raises:
        ValueError: if they depend on the image.
    """
    shapes = set()
    for size in (PROBE_SIZE, PROBE_SIZE[::-1]):
        image = Image.new("RGB", size)
        shapes.add(tuple(processor(image, return_tensors="np")["pixel_values"].shape[1:]))
    if len(shapes) > 1:
        raise ValueError(
            "An exported model takes images of one size, and this image processor keeps the image's shape: "
            "set size to a height and a width, or do_center_crop=True."
        )
    return shapes.pop()


def preprocessing(
    config: Any, processor: "ConceptImageProcessor", image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """
    The content of `preprocessing.json`.

    Args:
        config: the model's `AscentViTConfig`.
        processor: the model's image processor.
        image_shape: channels, height and width of the images that it makes.
    """
    return {
        "image": image_settings(processor),
        "channels": image_shape[0],
        "height": image_shape[1],
        "width": image_shape[2],
        "patch_size": list(config.patch_size),
        "classes": class_names(config),
        "score_function": score_function(config),
        "concepts": [
            {"name": name, "stream": stream} for stream, names in concept_names(config).items() for name in names
        ],
    }


def tables(model: "ConceptClassifier") -> dict[str, np.ndarray]:
    """The content of `tables.npz`: what explains the outputs and depends on the weights alone."""
    streams = model.streams()
    with torch.no_grad():
        values = {"class_bias": model.class_bias().numpy()}
        if "spatial" in streams:
            values["spatial_contributions"] = streams["spatial"].contribution_table().numpy()
    return values


def _versions(to: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", *PACKAGES[to]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def export_model(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    output: str | os.PathLike,
    to: str = "onnx",
    quantize: str = "none",
    name: str = "ASCENT-ViT",
    batches: Iterable[dict[str, Tensor]] | None = None,
    seed: int = 0,
    progress: bool = False,
    guard: "Safeguard | None" = None,
) -> dict[str, Any]:
    r"""
    Writes a model for another runtime, checks it against PyTorch, and adds what is needed to use it there.

    The batch is dynamic, the image size that of the image processor. Nothing is written if the check fails.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        processor (`AscentViTImageProcessor`): The model's image processor.
        output (`str` or `os.PathLike`): Folder to write, new or empty.
        to (`str`, *optional*, defaults to `"onnx"`):
            Format to write: `"onnx"`, `"openvino"`, `"torch-export"` or `"aotinductor"`.
        quantize (`str`, *optional*, defaults to `"none"`):
            Precision beside float32. `"int8"` (ONNX): int8 weights in the linear layers of backbone and fusion,
            activations quantised at run time. `"bf16"` (torch-export, AOTInductor): backbone and pyramid in bfloat16.
            The concept head stays in float32, so that contributions still add up to the logits.
        name (`str`, *optional*, defaults to `"ASCENT-ViT"`): Name of the model, for the README.
        batches (`Iterable[dict]`, *optional*):
            Batches of a dataset on which the exported model is compared with the original, see
            [`measure_quantization`].
        seed (`int`, *optional*, defaults to 0): Seed of the random pixels of the check.
        progress (`bool`, *optional*, defaults to `False`): Whether to show progress bars.
        guard ([`~ascent_vit.safeguard.Safeguard`], *optional*):
            The model's guard, which the example then asks too. It was calibrated in full precision, and goes with no
            other.

    Returns:
        `dict`: The content of `export.json`: `format`, `quantization`, names of `outputs`, `max_differences` of each
        output on random pixels, `seed`, `bytes` of the model, versions, and `measured` with `batches`.

    Raises:
        FileExistsError: for an output that is not empty.
        NotADirectoryError: for an output that is a file.
        ValueError: for an unknown format or precision, an image processor without a fixed image size, or a guard with
            another precision than the calibrated one.
        ModuleNotFoundError: for packages that are missing.
        RuntimeError: for an exported model that does not answer as the original, or without the C++ compiler that
            AOTInductor needs.

    Example:

    ```python
    >>> from ascent_vit.export import export_model
    >>> report = export_model(model, processor, "exported", to="onnx")
    >>> report["max_differences"]["logits"] < 1e-4
    True
    ```"""
    from tqdm.auto import tqdm

    output = Path(output)
    check_format(to, quantize)
    check_new_folder(output)
    if guard is not None and quantize != "none":
        raise ValueError(f"A guard is calibrated in full precision, and promises nothing of {quantize}: leave it out.")
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    image_shape = processed_shape(processor)
    facts = preprocessing(model.config, processor, image_shape)
    interpolate = image_shape[1:] != tuple(model.config.image_size)
    module = ExportableModel(model, interpolate).eval()
    if quantize == "bf16":
        warn_if_slow(torch.bfloat16, "the exported model in float32")
    bar = tqdm(total=2 + (batches is not None), desc="Tracing and writing", unit="step", disable=not progress)
    with new_folder(output) as folder, bar:
        written = ExportableModel(in_bfloat16(model), interpolate).eval() if quantize == "bf16" else module
        with quietly():
            WRITERS[to](written, image_shape, folder, quantize)
        with torch.no_grad():
            names = list(module(torch.zeros(1, *image_shape)))
        report: dict[str, Any] = {"format": to, "quantization": quantize, "outputs": names}
        size = sum(path.stat().st_size for path in folder.iterdir())
        # The exported model is loaded by the format that this file names.
        write_json(folder / "export.json", report)
        bar.update()
        bar.set_description("Checking")
        run = load(folder)
        report["max_differences"] = check_export(module, run, image_shape, quantize == "none", seed)
        report |= {"seed": seed, "bytes": size, "versions": _versions(to)}
        if batches is not None:
            bar.update()
            bar.set_description("Measuring")
            report["measured"] = measure_quantization(module, run, batches)
        write_json(folder / "export.json", report)
        write_json(folder / "preprocessing.json", facts)
        np.savez(folder / "tables.npz", **tables(model))  # type: ignore[arg-type]
        shutil.copyfile(Path(example.__file__), folder / "example.py")
        if guard is not None:
            guard.save_files(folder)
            shutil.copyfile(Path(doubt.__file__), folder / "doubt.py")
        readme = make_readme(name, to, quantize, run, image_shape, "spatial" in model.streams(), guard is not None)
        write_text(folder / "README.md", readme)
        # OpenVINO holds its file of weights open, and Windows moves no folder with an open file.
        del run
        bar.update()
    return json.loads((output / "export.json").read_text(encoding="utf-8"))


__all__ = ["export_model", "image_settings", "preprocessing", "processed_shape", "tables"]
