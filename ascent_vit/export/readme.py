# SPDX-License-Identifier: Apache-2.0
"""The README of an exported model."""

import numpy as np

from .check import Runner


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
{guard}- `export.json`: versions, and how far the exported model is from the original.

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

GUARD_LINE = """\
- `guard.json`, `guard.safetensors`, `doubt.py`: says "I don't know", and what would settle it, with numpy alone:
  `Judge.load(".").judge({"logits": ..., ...})` of one image's outputs, then `.answer({"CONCEPT": "yes"})`.
"""

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


def describe_outputs(run: Runner, image_shape: tuple[int, int, int]) -> str:
    """Rows of the table of outputs, with their shapes for images of (C, H, W)."""
    outputs = run(np.zeros((1, *image_shape), dtype=np.float32))
    return "\n".join(
        f"| `{name}` | {', '.join(['batch', *map(str, value.shape[1:])])} |" for name, value in outputs.items()
    )


def make_readme(
    name: str,
    to: str,
    quantize: str,
    run: Runner,
    image_shape: tuple[int, int, int],
    has_maps: bool,
    has_guard: bool = False,
) -> str:
    """
    Text of the README.

    Args:
        name: name of the model.
        to: format of the exported model.
        quantize: precision of the exported model.
        run: the exported model.
        image_shape: channels, height and width of its images.
        has_maps: whether the model has spatial concepts.
        has_guard: whether the model's guard lies beside it.
    """
    channels, height, width = image_shape
    return README.format(
        name=name,
        title=TITLES[to],
        packages=f"{EXAMPLE_PACKAGES[to]} pillow numpy",
        file=FILES[to],
        precision=PRECISIONS[quantize],
        channels=channels,
        height=height,
        width=width,
        outputs=describe_outputs(run, image_shape),
        guard=GUARD_LINE if has_guard else "",
        table=TABLE_LINE if has_maps else "",
        maps=MAPS_PARAGRAPH if has_maps else "",
    )


__all__ = ["make_readme"]
