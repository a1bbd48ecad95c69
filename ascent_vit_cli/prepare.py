# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit prepare`."""

import inspect
import json
import re
import shlex
import tempfile
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from ascent_vit.data.prepared import PreparedDataset


NAMES = (
    "cub, apy, awa2, kits19 or mnist; or a tool: coco, yolo, voc, labelme, cvat, label-studio, imagefolder or dicom."
)


def read_options(name: str, adapter: Callable[..., Any], pairs: Sequence[str]) -> dict[str, Any]:
    """
    Reads options KEY=VALUE of an adapter, typed as its keyword-only arguments are.

    Args:
        name: name of the dataset, for errors.
        adapter: function that prepares the dataset.
        pairs: options as given, KEY=VALUE each.

    Raises:
        ValueError: for an option that is unknown, given twice, or of another type.
    """
    from ascent_vit.utils.types import describe, fits
    from ascent_vit.utils.yaml import read_key_value
    from modeling_ascent_vit.suggestions_ascent_vit import suggest

    hints = typing.get_type_hints(adapter)
    known = [p.name for p in inspect.signature(adapter).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options: dict[str, Any] = {}
    for pair in pairs:
        key, value = read_key_value(pair, "--option")
        key = key.replace("-", "_")
        if key not in known:
            raise ValueError(f"{name} has no option {key}; {suggest(key, known)}")
        if key in options:
            raise ValueError(f"--option {key} is given twice.")
        if not fits(value, hints[key]):
            raise ValueError(f"The option {key} of {name} takes {describe(hints[key])}; got {value!r}.")
        options[key] = value
    return options


def _write(prepared: "PreparedDataset", folder: Path, repo_id: str | None, command: str, inspected: bool) -> str:
    """Writes the dataset into an empty folder; returns the text to print."""
    from ascent_vit.data.card import write_dataset
    from ascent_vit.data.inspect import dataset_table, format_table, picture_sheet
    from ascent_vit.utils.files import write_json

    write_dataset(prepared, folder, repo_id, command)
    lines = [prepared.summary] * bool(prepared.summary)
    if not inspected:
        return "\n".join(lines + [f"{name}: {len(split):,} images" for name, split in prepared.dataset.items()])
    table = dataset_table(prepared.dataset)
    write_json(folder / "inspect.json", table)
    picture_sheet(prepared.dataset).savefig(folder / "inspect.png")
    return "\n".join([*lines, format_table(table)])


def prepare(
    name: Annotated[str, typer.Argument(help=NAMES)],
    source: Annotated[
        Path, typer.Option(help="Folder with the archive's files, unpacked, or with the tool's; a tool's file too.")
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, where it is not SOURCE; as --option images=DIR.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write; new or empty.")] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Dataset repository of the Hub to write, instead of a folder."),
    ] = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Also write a sheet of samples, inspect.png, and counts, inspect.json.")
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the dataset, as in seed=1; repeatable.")
    ] = None,
) -> None:
    """Turn an archive's or an annotation tool's files into a concept dataset that train takes, with its card."""
    if (output is None) == (push_to_hub is None):
        raise ValueError("Give either --output, a folder, or --push-to-hub, a repository of the Hub.")
    from ascent_vit.utils.files import check_new_folder, new_folder

    if output is not None:
        check_new_folder(output)

    from ascent_vit.data.adapters import TOOLS, load_adapter
    from ascent_vit.data.checks import validate_dataset

    adapter = load_adapter(name)
    options = read_options(name, adapter, option or ())
    if images is not None:
        options |= read_options(name, adapter, [f"images={json.dumps(str(images))}"])
    if not (source.is_dir() or (name in TOOLS and source.is_file())):
        files = "tool's files" if name in TOOLS else "dataset's official files"
        raise FileNotFoundError(f"There is no folder {source}: give the one with the {files}.")
    prepared = adapter(source, **options)
    validate_dataset(prepared.dataset)
    words = ["ascent-vit", "prepare", name, "--source", "DIR", *(["--images", "DIR"] if images else [])]
    words += ["--push-to-hub", push_to_hub] if push_to_hub else ["--output", "DIR"]
    # Of a file of the user's, the card names the file and not where it lies.
    pairs = [re.sub(r"^(class[_-]from=csv:|names=).*/", r"\1", pair) for pair in option or ()]
    command = shlex.join([*words, *(word for pair in pairs for word in ("--option", pair))])
    if output is not None:
        with new_folder(output) as folder:
            shown = _write(prepared, folder, None, command, inspect)
        print(f"{shown}\nDataset: {output}")
        return

    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        shown = _write(prepared, Path(temporary), push_to_hub, command, inspect)
        api.create_repo(str(push_to_hub), repo_type="dataset", exist_ok=True)
        # Parquet files of an earlier commit are deleted, as their number may have been larger.
        commit = api.upload_folder(
            repo_id=str(push_to_hub),
            repo_type="dataset",
            folder_path=temporary,
            commit_message=f"{prepared.title}, by ascent-vit",
            delete_patterns="data/*.parquet",
        )
    print(f"{shown}\nDataset: {commit.repo_url}")


__all__ = ["prepare", "read_options"]
