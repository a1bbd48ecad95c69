# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit prepare`."""

import difflib
import inspect
import shlex
import tempfile
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer


if TYPE_CHECKING:
    from ascent_vit.data.schema import PreparedDataset

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _convert(text: str, hint: Any) -> Any:
    """A typed value from the text of an option; ValueError where it is none."""
    if get_origin(hint) in (Union, types.UnionType):
        choices = get_args(hint)
        if type(None) in choices and text.lower() in ("none", "null"):
            return None
        for choice in sorted((c for c in choices if c is not type(None)), key=lambda c: c is str):
            try:
                return _convert(text, choice)
            except ValueError:
                continue
        raise ValueError
    if get_origin(hint) is Literal:
        for value in get_args(hint):
            if text == str(value):
                return value
        raise ValueError
    if get_origin(hint) in (list, tuple, Sequence):
        (item, *_) = get_args(hint)
        return get_origin(hint)(_convert(part.strip(), item) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in TRUTH:
            raise ValueError
        return TRUTH[text.lower()]
    return hint(text)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(str(value) for value in get_args(hint))
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, str(hint))


def read_options(name: str, adapter: Callable[..., Any], pairs: Sequence[str]) -> dict[str, Any]:
    """
    The options KEY=VALUE of an adapter, typed as its keyword-only arguments are.

    Raises:
        ValueError: for an option that is unknown, given twice, or of another type.
    """
    hints = typing.get_type_hints(adapter)
    known = [p.name for p in inspect.signature(adapter).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not separator:
            raise ValueError(f"--option takes KEY=VALUE; got {pair!r}.")
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f" did you mean {close[0]}?" if close else f" it has {', '.join(known) or 'none'}."
            raise ValueError(f"{name} has no option {key};{hint}")
        if key in options:
            raise ValueError(f"--option {key} is given twice.")
        try:
            options[key] = _convert(text.strip(), hints[key])
        except ValueError:
            raise ValueError(f"The option {key} of {name} takes {_describe(hints[key])}; got {text!r}.") from None
    return options


def _write(prepared: "PreparedDataset", folder: Path, repo_id: str | None, command: str, inspected: bool) -> str:
    """Everything into an empty folder; gives what there is to print."""
    from ascent_vit.data.card import write_dataset
    from ascent_vit.data.inspect import dataset_table, format_table, picture_sheet
    from ascent_vit.files import write_json

    write_dataset(prepared, folder, repo_id, command)
    if not inspected:
        return "\n".join(f"{name}: {len(split):,} images" for name, split in prepared.dataset.items())
    table = dataset_table(prepared.dataset)
    write_json(folder / "inspect.json", table)
    picture_sheet(prepared.dataset).savefig(folder / "inspect.png")
    return format_table(table)


def prepare(
    name: Annotated[str, typer.Argument(help="cub, apy, awa2, kits19 or mnist.")],
    source: Annotated[Path, typer.Option(help="Folder with the dataset's official files, unpacked.")],
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
    """Turn a dataset's official files into a concept dataset that train takes: parquet files and a card."""
    if (output is None) == (push_to_hub is None):
        raise ValueError("Give either --output, a folder, or --push-to-hub, a repository of the Hub.")
    from ascent_vit.files import check_new_folder, new_folder

    if output is not None:
        check_new_folder(output)

    from ascent_vit.data.adapters import load_adapter
    from ascent_vit.data.schema import validate_dataset

    adapter = load_adapter(name)
    options = read_options(name, adapter, option or ())
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}: give the one with the dataset's official files.")
    prepared = adapter(source, **options)
    validate_dataset(prepared.dataset)
    words = ["ascent-vit", "prepare", name, "--source", "DIR"]
    words += ["--push-to-hub", push_to_hub] if push_to_hub else ["--output", "DIR"]
    command = shlex.join([*words, *(word for pair in option or () for word in ("--option", pair))])
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
        # One commit; parquet files of an earlier one go, as their number may differ.
        commit = api.upload_folder(
            repo_id=str(push_to_hub),
            repo_type="dataset",
            folder_path=temporary,
            commit_message=f"{prepared.title}, by ascent-vit",
            delete_patterns="data/*.parquet",
        )
    print(f"{shown}\nDataset: {commit.repo_url}")


__all__ = ["prepare", "read_options"]
