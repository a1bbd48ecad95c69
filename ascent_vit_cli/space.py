# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit space`."""

from pathlib import Path
from typing import Annotated

import typer


def space(
    folder: Annotated[Path, typer.Argument(help="Folder of a run of train or demo, or of a saved model.")],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="the first free from 7860")
    ] = None,
    examples: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR_OR_FILE", help="Image, or folder of images, to choose from; repeatable."),
    ] = None,
) -> None:
    """Run the app of a model's Space on this machine: explain images, set concepts by hand, compare classes."""
    from ascent_vit.publishing.space import run_space

    run_space(folder, port, examples or ())


__all__ = ["space"]
