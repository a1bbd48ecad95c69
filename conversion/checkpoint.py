# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint of another layout to a model's folder: weights, configuration, image processor and card."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ascent_vit.utils.files import check_new_folder, file_digest, new_folder, write_json, write_text

from .reading import read_settings, read_state_dict
from .rules import setting


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Layout = Literal["authors", "timm"]

# The Hub's name for a licence that nobody stated.
UNKNOWN_LICENSE = "unknown"

BACKBONE_CARD = """
# {title}

A {model_type} backbone in the layout of transformers, without any head. Converted from weights in timm's layout, of
which it computes the same features.

```python
from ascent_vit import AscentViTForImageClassification

model = AscentViTForImageClassification.from_backbone(
    {repo}, spatial_concepts=["beak", "wing", "tail"], num_labels=200
)
```

`transformers.AutoModel.from_pretrained({repo})` loads it alone.
"""


@dataclass
class ConversionReport:
    """
    Report of a conversion, which is `conversion.json` in the output folder.

    Args:
        source (`str`): Name of the checkpoint file.
        sha256 (`str`): Hash of that file, which tells it from another one of the same name.
        layout (`"authors"` or `"timm"`): Layout of the checkpoint.
        model_type (`str`): Type of the written model: `"ascent_vit"`, or that of a backbone.
        dropped (`list[str]`): Names in the checkpoint that no output depends on, which were left out.
        assumed (`dict`): Values that neither the checkpoint's shapes nor the settings told, by name.
        notes (`list[str]`): Further notes, a sentence each.
        seed (`int`, *optional*): Random seed of the new concept head, if there is one.
    """

    source: str
    sha256: str
    layout: str
    model_type: str
    dropped: list[str]
    assumed: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    seed: int | None = None


@dataclass
class _Converted:
    """A converted model, the usual normalisation of its images, and what is reported of it."""

    model: "PreTrainedModel"
    usual: Mapping[str, list[float]]
    dropped: list[str]
    origin: str
    notes: list[str] = field(default_factory=list)
    seed: int | None = None


def _from_authors(
    checkpoint: Mapping[str, "Tensor"], settings: Mapping[str, Any], assumed: dict[str, Any]
) -> _Converted:
    from .authors import model_from_authors

    model, usual, dropped = model_from_authors(checkpoint, settings, assumed)
    origin = "Converted from a checkpoint of the authors' code. What it was trained on is not recorded in it."
    converted = _Converted(model, usual, dropped, origin)
    if any(length % 32 for length in model.config.image_size):
        converted.notes.append(
            "The image size is no multiple of 32: the pyramid's last row and column then lie outside the image here, "
            "and not in the authors' code, so that outputs differ."
        )
    return converted


def _from_timm(
    checkpoint: Mapping[str, "Tensor"], settings: Mapping[str, Any], assumed: dict[str, Any], seed: int
) -> _Converted:
    from .timm_checkpoint import backbone_from_timm, model_on_backbone

    backbone, usual, dropped = backbone_from_timm(checkpoint, settings, assumed)
    origin = "The backbone is converted from weights in timm's layout. **The concept head is not trained yet.**"
    model = model_on_backbone(backbone, settings, seed)
    if model is None:
        return _Converted(backbone, usual, dropped, origin)
    note = "The concept head is new and not trained: fine-tune the model before it is used."
    return _Converted(model, usual, dropped, origin, [note], seed)


def _normalisation(
    settings: Mapping[str, Any], usual: Mapping[str, list[float]], channels: int, assumed: dict[str, Any]
) -> dict[str, list[float]]:
    chosen = {name: setting(settings, name, value, assumed) for name, value in usual.items()}
    for name, values in chosen.items():
        if name in settings and len(values) != channels:
            raise ValueError(f"{name} in --config must have {channels} numbers, one per channel; got {len(values)}.")
    return chosen


def _write_backbone(
    folder: Path, backbone: "PreTrainedModel", normalisation: dict[str, Any], title: str, license: str
) -> None:
    from huggingface_hub import ModelCardData
    from transformers import ViTImageProcessorPil

    from ascent_vit.utils.markdown import escape_markdown

    size = backbone.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    processor = ViTImageProcessorPil(size={"height": height, "width": width}, **normalisation)
    backbone.save_pretrained(folder)
    processor.save_pretrained(folder)
    metadata = ModelCardData(
        library_name="transformers", license=license, pipeline_tag="image-feature-extraction", model_name=title
    )
    repo = json.dumps(title, ensure_ascii=False)
    text = BACKBONE_CARD.format(title=escape_markdown(title), model_type=backbone.config.model_type, repo=repo)
    write_text(folder / "README.md", f"---\n{metadata.to_yaml()}\n---\n{text}")


def _write_model(
    folder: Path, model: "PreTrainedModel", normalisation: dict[str, Any], title: str, license: str, origin: str
) -> None:
    from ascent_vit.publishing import ModelCardContent, write_model_card
    from modeling_ascent_vit import AscentViTImageProcessorPil

    model.save_pretrained(folder)
    AscentViTImageProcessorPil.from_model_config(model.config, **normalisation).save_pretrained(folder)
    content = ModelCardContent.from_model_dir(
        folder, model_name=title, dataset_name="unknown", license=license, training_data=origin
    )
    # No checkpoint says how the targets of its training were made.
    content.annotation_coverage = None
    write_model_card(folder, content)


def convert(
    source: str | os.PathLike,
    layout: Layout,
    output: str | os.PathLike,
    config: str | os.PathLike | None = None,
    seed: int = 0,
) -> ConversionReport:
    """
    Writes the folder of a model, ready for the Hub, that computes what a checkpoint of another layout computes.

    The authors' layout becomes an ASCENT-ViT. timm's becomes a backbone for
    [`~AscentViTForImageClassification.from_backbone`] or, if the settings have concepts and classes, an ASCENT-ViT
    with an untrained concept head. Nothing in the file is run, and timm is not needed.

    Args:
        source: file of a Lightning checkpoint, a bare state dict of `torch.save`, or safetensors.
        layout: layout of the checkpoint, `"authors"` or `"timm"`.
        output: folder to write, new or empty; it is written whole or not at all.
        config: JSON file with what shapes cannot tell, see `docs/conversion.md`.
        seed: random seed of an untrained concept head.

    Returns:
        The report, which is in the folder too.

    Raises:
        FileNotFoundError: for a file that does not exist.
        FileExistsError: for an output folder that is not empty.
        ValueError: for a file that cannot be read without running code, names or shapes that are not those of the
            layout (each is listed), or settings that contradict the checkpoint.

    Example:

    ```python
    >>> from ascent_vit.conversion import convert
    >>> report = convert("cub.ckpt", "authors", "cub-ascent-vit", config="cub.json")
    >>> model = AutoModelForImageClassification.from_pretrained("cub-ascent-vit")
    ```
    """
    if layout not in get_args(Layout):
        raise ValueError(f"The layout must be one of {', '.join(get_args(Layout))}; got {layout!r}.")
    source, output = Path(source), Path(output)
    check_new_folder(output)
    settings = read_settings(config)
    checkpoint = read_state_dict(source)
    assumed: dict[str, Any] = {}
    if layout == "authors":
        converted = _from_authors(checkpoint, settings, assumed)
    else:
        converted = _from_timm(checkpoint, settings, assumed, seed)
    model = converted.model
    normalisation = _normalisation(settings, converted.usual, getattr(model.config, "num_channels", 3), assumed)
    report = ConversionReport(
        source=source.name,
        sha256=file_digest(source).hex(),
        layout=layout,
        model_type=model.config.model_type,
        dropped=converted.dropped,
        assumed=assumed,
        notes=converted.notes,
        seed=converted.seed,
    )
    title = settings.get("model_name", output.resolve().name)
    license = settings.get("license", UNKNOWN_LICENSE)
    with new_folder(output) as folder:
        if report.model_type == "ascent_vit":
            _write_model(folder, model, normalisation, title, license, converted.origin)
        else:
            _write_backbone(folder, model, normalisation, title, license)
        write_json(folder / "conversion.json", asdict(report))
    return report


__all__ = ["ConversionReport", "Layout", "convert"]
