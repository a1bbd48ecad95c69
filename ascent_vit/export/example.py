# SPDX-License-Identifier: Apache-2.0
"""
Classifies images with an exported ASCENT-ViT, and says which concepts made the class score.

    python example.py IMAGE [IMAGE ...]

Needs numpy, pillow and the runtime of the exported file, which lies in this folder: onnxruntime for `model.onnx`,
openvino for `model.xml`, torch for `model.pt2`.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def read_image(path: str | Path, window: list[float] | None = None) -> Image.Image:
    """
    Reads an image as RGB, transparency over white, turned upright by its EXIF orientation, as phones leave it.

    Args:
        path: image file.
        window: low and high value, shown black and white, of images of more than 8 bits; without it the smallest
            range of 0 to 1 (floats alone), 0 to 255, 0 to 4095 and 0 to 65535 that holds the image's values.
    """
    # Not by its path: Pillow 12.3 then scrambles uncompressed grey TIFF files that EXIF turns.
    with open(path, "rb") as file:
        image: Image.Image = Image.open(file)
        image.load()
    # Damaged EXIF data raises what Pillow's TIFF reader happens to meet.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image)
        tops = ([1] if image.mode == "F" else []) + [255, 4095, 65535]
        top = next((top for top in tops if pixels.max() <= top), 0)
        if not window and (top == 0 or pixels.min() < 0):
            raise ValueError(f"{path} must have values from 0 to 65535, or the image processor a window.")
        low, high = window or (0, top)
        if not window and high == 65535 and image.mode != "F":
            pixels, high = pixels >> 8, 255
        share = (pixels.astype(np.float64) - low) / (high - low)
        image = Image.fromarray(np.round(np.clip(share, 0, 1) * 255).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def prepare(image: Image.Image, settings: dict[str, Any]) -> np.ndarray:
    """Makes pixels for the model, (3, height, width) float32: resized, cropped, rescaled, normalised."""
    size = settings["resize"]
    if size is not None:
        width, height = image.size
        if "shortest_edge" in size:
            short, edge = min(width, height), size["shortest_edge"]
            # The shorter edge exactly, the longer one rounded down.
            target = (edge, int(edge * height / short)) if width <= height else (int(edge * width / short), edge)
        else:
            target = (size["width"], size["height"])
        image = image.resize(target, Image.Resampling(settings["resample"]))
    pixels = np.asarray(image).transpose(2, 0, 1)
    if settings["crop"] is not None:
        for axis, length in ((1, settings["crop"]["height"]), (2, settings["crop"]["width"])):
            missing = max(length - pixels.shape[axis], 0)
            margins = [(0, 0)] * 3
            margins[axis] = (missing // 2, missing - missing // 2)
            pixels = np.pad(pixels, margins)
            start = (pixels.shape[axis] - length) // 2
            pixels = np.take(pixels, range(start, start + length), axis)
    values = pixels.astype(np.float32)
    if settings["rescale_factor"] is not None:
        values = (values * settings["rescale_factor"]).astype(np.float32)
    if settings["mean"] is not None:
        mean, std = (np.array(settings[name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))
        values = (values - mean) / std
    return values


def load(folder: str | Path, threads: int = 0) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """
    Loads the model as a function from pixels, (batch, 3, height, width) float32, to its outputs by name.

    Args:
        folder: folder of the exported model.
        threads: number of threads of onnxruntime and openvino; 0 leaves it to them. Torch has a setting of its own.
    """
    folder = Path(folder)
    if (folder / "model.onnx").exists():
        import onnxruntime

        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", session_options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return lambda pixels: dict(zip(names, session.run(names, {"pixel_values": pixels}), strict=True))
    if (folder / "model.xml").exists():
        import openvino

        # On some CPUs it would compute in bfloat16 by default.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
        names = [output.any_name for output in compiled.outputs]

        def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
            outputs = compiled({"pixel_values": pixels})
            return {name: outputs[name].copy() for name in names}

        return run

    import torch

    model: Any
    if json.loads((folder / "export.json").read_text(encoding="utf-8"))["format"] == "aotinductor":
        model = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    else:
        model = torch.export.load(folder / "model.pt2").module()

    def run_torch(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = model(pixel_values=torch.from_numpy(pixels))
        return {name: value.numpy() for name, value in outputs.items()}

    return run_torch


def contribution_maps(
    outputs: dict[str, np.ndarray], tables: dict[str, np.ndarray], class_ids: np.ndarray
) -> np.ndarray:
    """Contribution of each spatial concept to a class score of each image at each place: (batch, concepts, h, w)."""
    heads = outputs["spatial_concept_attention_heads"]
    table = tables["spatial_contributions"][:, :, class_ids]
    # A patch counts by its attention to any concept.
    voices = np.minimum(heads.sum(3).mean(1), 1.0).sum(1)
    maps = np.einsum("bans,asb->bsn", heads, table) / np.maximum(voices, 1.0)[:, None, None]
    return maps.reshape(*maps.shape[:2], *outputs["patch_grid"][0])


def class_scores(logits: np.ndarray, function: str) -> np.ndarray:
    """Probabilities of the classes, by softmax, or by sigmoid where an image may have several; of "none", values."""
    if function == "none":
        return logits
    if function == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def explain(outputs: dict[str, np.ndarray], facts: dict[str, Any], tables: dict[str, np.ndarray], top: int = 5) -> str:
    """
    Describes what is predicted of the first image, and the concepts that moved its score most: of the class, where an
    image may have several of those above a probability of 0.5 or the most probable one, or of the values.
    """
    logits, function = outputs["logits"][0], facts["score_function"]
    scores = class_scores(logits, function)
    labels = [int(logits.argmax())]
    if function == "sigmoid":
        labels = np.flatnonzero(scores > 0.5).tolist() or labels
    elif function == "none":
        labels = list(range(len(logits)))
    return "\n".join(describe(label, float(scores[label]), outputs, facts, tables, top) for label in labels)


def describe(
    label: int,
    class_score: float,
    outputs: dict[str, np.ndarray],
    facts: dict[str, Any],
    tables: dict[str, np.ndarray],
    top: int,
) -> str:
    """Describes the score of a class of the first image, and the concepts that moved it most."""
    logit = outputs["logits"][0][label]
    contributions = outputs["concept_contributions"][0, :, label]
    bias = tables["class_bias"][label]
    text = f"value {logit:+.6f}"
    if facts["score_function"] != "none":
        text = f"probability {class_score:.4f}, score {logit:+.6f}"
    lines = [f"{facts['classes'][label]}: {text}"]
    for index in np.argsort(-np.abs(contributions), kind="stable")[:top]:
        concept = facts["concepts"][index]
        lines.append(f"  {contributions[index]:+.6f}  {concept['name']} ({concept['stream']})")
    total = contributions.sum() + bias
    lines.append(f"  {total:+.6f}  sum of all {len(contributions)} concepts and the bias {bias:+.6f}")
    if "spatial_concept_attention_heads" in outputs:
        maps = contribution_maps(outputs, tables, np.array([label]))[0]
        concept_id, row, column = np.unravel_index(maps.argmax(), maps.shape)
        spatial = [concept["name"] for concept in facts["concepts"] if concept["stream"] == "spatial"]
        lines.append(f"  most of one place: {spatial[concept_id]}, patch {row}, {column} (row, column)")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("Usage: python example.py IMAGE [IMAGE ...]")
    # By itself, Pillow refuses images only from twice its limit of pixels on.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    folder = Path(__file__).resolve().parent
    facts = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    with np.load(folder / "tables.npz") as file:
        tables = dict(file)
    run, judge = load(folder), None
    if (folder / "guard.json").exists():
        import doubt

        judge = doubt.Judge.load(folder)
    for path in sys.argv[1:]:
        pixels = prepare(read_image(path, facts["image"]["window"]), facts["image"])
        outputs = run(pixels[None])
        print(path, explain(outputs, facts, tables), sep="\n")
        if judge is not None:
            print(judge.judge({name: value[0] for name, value in outputs.items()}))


if __name__ == "__main__":
    main()
