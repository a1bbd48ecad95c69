# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit convert`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    source: Annotated[
        Path, typer.Argument(help="A Lightning .ckpt, a state dict (.pt, .pth, .bin) or .safetensors; no code is run.")
    ],
    layout: Annotated[
        Literal["authors", "timm"],
        typer.Option(
            "--from",
            help="Layout of the checkpoint: the authors' code, or timm's ViT, DeiT, DINO and DINOv2. From timm it is "
            "a backbone, or an ASCENT-ViT with an untrained head where --config has concepts and classes.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the converted model; new or empty.")],
    config: Annotated[
        Path | None,
        typer.Option(help="JSON with what shapes cannot tell: heads, psi, labels, names of concepts, normalisation."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of an untrained concept head.")] = 0,
) -> None:
    """Convert a checkpoint of another layout: writes a folder as the Hub has it, and conversion.json."""
    from ascent_vit.conversion import convert as convert_checkpoint

    report = convert_checkpoint(source, layout, output, config, seed)
    for name, value in report.assumed.items():
        print(f"Assumed, as neither the checkpoint nor --config tells: {name} = {json.dumps(value)}")
    for name in report.dropped:
        print(f"Dropped, as no output depends on it: {name}")
    for note in report.notes:
        print(f"Note: {note}")
    print(f"Model: {output}")
