# SPDX-License-Identifier: Apache-2.0
"""Models out: a folder for another runtime, with preprocessing, an example and a check that it answers the same."""

import copy
import json
import os
import platform
import shutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ascent_vit.utils.files import check_new_folder, new_folder, write_json, write_text
from ascent_vit.utils.hardware import warn_if_slow

from . import example
from .check import check_export, measure_quantization
from .example import load
from .formats import PACKAGES, WRITERS, ExportableModel, check_format, in_bfloat16, quietly


# Pixels of an image on which the image processor shows what it makes of images: neither square nor a whole number of
# patches, so that a processor whose output follows the image's shape is found out.
PROBE_SIZE = (50, 83)

EXAMPLE_PACKAGES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "torch-export": "torch",
    "aotinductor": "torch",
}

PRECISIONS = {"none": "", "int8": ", int8 weights", "bf16": ", in bfloat16 but for the concept head"}

README = """\
# {name} for {title}

An [ASCENT-ViT](https://arxiv.org/abs/2501.09221) that was exported: an image classifier whose class scores are exact
sums of what named concepts contributed.

```bash
pip install {packages}
python example.py image.png
```

- `{file}`: the model{precision}, for any number of images of {height} x {width} pixels at once.
- `preprocessing.json`: how an image becomes pixels, and the names of classes and concepts.
- `tables.npz`: `class_bias`, what each score holds beside the concepts' contributions{table}.
- `example.py`: reads an image, runs the model, prints class, concepts and their sum. It needs no transformers.
- `export.json`: versions, and how far the exported model is from the original.

| input | shape |
|---|---|
| `pixel_values` | batch, {channels}, {height}, {width} (float32) |

| output | shape |
|---|---|
{outputs}

`concept_contributions` summed over concepts plus `class_bias` is `logits`. Columns are the concepts of
`preprocessing.json` in their order, rows of patches go from left to right and top to bottom, `patch_grid` is their
height and width.{maps}
"""

TABLE_LINE = ", and `spatial_contributions` (heads, spatial concepts, classes)"

MAPS_PARAGRAPH = """

What each spatial concept added to a class at each place is `spatial_concept_attention_heads` times
`spatial_contributions`, summed over heads and divided by the number of patches: see `contribution_maps` in
`example.py`."""

TITLES = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch-export": "torch.export",
    "aotinductor": "AOTInductor",
}
FILES = {
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "torch-export": "model.pt2",
    "aotinductor": "model.pt2",
}


def image_settings(processor: Any) -> dict[str, Any]:
    """
    What an image processor does, for `prepare` of the example.

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
    return {
        "resize": size,
        "resample": int(processor.resample),
        "crop": crop,
        "rescale_factor": float(processor.rescale_factor) if processor.do_rescale else None,
        "mean": [float(value) for value in processor.image_mean] if normalizes else None,
        "std": [float(value) for value in processor.image_std] if normalizes else None,
    }


def processed_shape(processor: Any) -> tuple[int, int, int]:
    """
    Channels, height and width of what an image processor gives.

    Raises:
        ValueError: where they depend on the image.
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


def preprocessing(config: Any, processor: Any, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The content of `preprocessing.json`."""
    streams = {
        "global": config.num_global_concepts,
        "spatial": config.num_spatial_concepts,
        "unsupervised": config.num_unsupervised_concepts,
    }
    kinds = [stream for stream, number in streams.items() for _ in range(number)]
    return {
        "image": image_settings(processor),
        "channels": image_shape[0],
        "height": image_shape[1],
        "width": image_shape[2],
        "patch_size": list(config.patch_size),
        "classes": [config.id2label[i] for i in range(config.num_labels)],
        "concepts": [{"name": name, "stream": kind} for name, kind in zip(config.concepts, kinds, strict=True)],
    }


def tables(model: Any) -> dict[str, np.ndarray]:
    """What explains the outputs and depends on the weights alone."""
    with torch.no_grad():
        values = {"class_bias": model.class_bias().numpy()}
        if model.spatial_stream is not None:
            values["spatial_contributions"] = model.spatial_stream.contribution_table().numpy()
    return values


def _shapes(run: Any, image_shape: tuple[int, int, int]) -> str:
    """Rows of the README's table of outputs."""
    outputs = run(np.zeros((1, *image_shape), dtype=np.float32))
    return "\n".join(
        f"| `{name}` | {', '.join(['batch', *map(str, value.shape[1:])])} |" for name, value in outputs.items()
    )


def _versions(to: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", *PACKAGES[to]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def export_model(
    model: Any,
    processor: Any,
    output: str | os.PathLike,
    to: str = "onnx",
    quantize: str = "none",
    name: str = "ASCENT-ViT",
    batches: Iterable[dict[str, Tensor]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    r"""
    Writes a model for another runtime, checks it against PyTorch, and adds what is needed to use it there.

    The batch is dynamic, the image size that of the image processor. Nothing is written where the
    check fails.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        processor (`AscentViTImageProcessor`): The model's image processor.
        output (`str` or `os.PathLike`): Folder to write, new or empty.
        to (`str`, *optional*, defaults to `"onnx"`):
            `"onnx"`, `"openvino"`, `"torch-export"` or `"aotinductor"`.
        quantize (`str`, *optional*, defaults to `"none"`):
            `"int8"` (ONNX): int8 weights in the linear layers of backbone and fusion, activations quantised as it
            runs. `"bf16"` (torch-export, AOTInductor): backbone and pyramid in bfloat16. The concept head stays in
            float32, so that contributions go on to add up to the logits.
        name (`str`, *optional*, defaults to `"ASCENT-ViT"`): The model's name, for the README.
        batches (`Iterable[dict]`, *optional*):
            Batches of a dataset on which the exported model is compared with the original, see
            [`measure_quantization`].
        seed (`int`, *optional*, defaults to 0): Seed of the random pixels of the check.
        progress (`bool`, *optional*, defaults to `False`): Whether to show progress bars.

    Returns:
        `dict`: what `export.json` says: `format`, `quantization`, names of `outputs`, `max_differences` of each output
        on random pixels, `seed`, `bytes` of the model, versions, and `measured` with `batches`.

    Raises:
        FileExistsError: for an output that is not empty.
        NotADirectoryError: for an output that is a file.
        ValueError: for a format or precision that there is not, or an image processor without fixed image size.
        ModuleNotFoundError: for packages that are missing.
        RuntimeError: for an exported model that does not answer as the original, or a missing C++ compiler.

    Example:

    ```python
    >>> from ascent_vit.export import export_model
    >>> report = export_model(model, processor, "exported", to="onnx")
    >>> report["max_differences"]["logits"] < 1e-4
    True
    ```"""
    output = Path(output)
    check_format(to, quantize)
    check_new_folder(output)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    image_shape = processed_shape(processor)
    facts = preprocessing(model.config, processor, image_shape)
    interpolate = image_shape[1:] != tuple(model.config.image_size)
    module = ExportableModel(model, interpolate).eval()
    steps = ["Tracing and writing", "Checking"] + ["Measuring"] * (batches is not None)
    bar: Any = None
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(total=len(steps), desc=steps[0], unit="step")
    if quantize == "bf16":
        warn_if_slow(torch.bfloat16, "the exported model")
    with new_folder(output) as folder:
        written = ExportableModel(in_bfloat16(model), interpolate).eval() if quantize == "bf16" else module
        with quietly():
            WRITERS[to](written, image_shape, folder, quantize)
        with torch.no_grad():
            names = list(module(torch.zeros(1, *image_shape)))
        report: dict[str, Any] = {"format": to, "quantization": quantize, "outputs": names}
        model_files = sorted(path for path in folder.iterdir())
        write_json(folder / "export.json", report)
        if bar is not None:
            bar.update()
            bar.set_description(steps[1])
        run = load(folder)
        report["max_differences"] = check_export(module, run, image_shape, quantize == "none", seed)
        report |= {"seed": seed, "bytes": sum(path.stat().st_size for path in model_files), "versions": _versions(to)}
        if batches is not None:
            if bar is not None:
                bar.update()
                bar.set_description(steps[2])
            report["measured"] = measure_quantization(module, run, batches)
        write_json(folder / "export.json", report)
        write_json(folder / "preprocessing.json", facts)
        np.savez(folder / "tables.npz", **tables(model))  # type: ignore[arg-type]
        shutil.copyfile(Path(example.__file__), folder / "example.py")
        has_maps = model.spatial_stream is not None
        readme = README.format(
            name=name,
            title=TITLES[to],
            packages=f"{EXAMPLE_PACKAGES[to]} pillow numpy",
            file=FILES[to],
            precision=PRECISIONS[quantize],
            channels=image_shape[0],
            height=image_shape[1],
            width=image_shape[2],
            outputs=_shapes(run, image_shape),
            table=TABLE_LINE if has_maps else "",
            maps=MAPS_PARAGRAPH if has_maps else "",
        )
        write_text(folder / "README.md", readme)
        # OpenVINO reads its weights from the file as long as it lives.
        del run
        if bar is not None:
            bar.update()
            bar.close()
    return json.loads((output / "export.json").read_text(encoding="utf-8"))


__all__ = ["export_model", "image_settings", "preprocessing", "processed_shape", "tables"]
