# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit check`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .inputs import DatasetOptions, read_dataset_options


if TYPE_CHECKING:
    from datasets import DatasetDict

    from ascent_vit.data.checks import CheckReport


def check(
    dataset: Annotated[str, typer.Argument(metavar="ID_OR_DIR", help="A Hub id, a local folder or digits.")],
    decode_all: Annotated[
        bool, typer.Option("--all", help="Decode every picture, not 100 drawn at random and those that seem cut off.")
    ] = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Leave out rows with errors: says how many, and with --output writes the others.",
        ),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for the dataset of --fix; new or empty.")] = None,
    options: DatasetOptions = None,
) -> None:
    """Look for errors in every row of a dataset, and for annotations that mean something else than they seem to."""
    from ascent_vit.data import check_dataset, load_concept_dataset
    from ascent_vit.data.loading import spatial_names
    from ascent_vit.utils.files import check_new_folder

    if output is not None:
        if not fix:
            raise ValueError("--output is for the dataset that --fix writes: give both.")
        check_new_folder(output)
    dataset_options = read_dataset_options(options or ())
    splits = load_concept_dataset(dataset, **dataset_options)
    names = spatial_names(dataset_options)
    report = check_dataset(
        splits,  # type: ignore[arg-type]
        spatial_concepts=names,
        decode=None if decode_all else 100,
        window=dataset_options.get("window"),
        progress=True,
    )
    for name, split in splits.items():
        print(f"{name}: {len(split):,} rows")
    print(f"Pictures decoded: {report.decoded:,} of {report.rows:,}" + ("" if decode_all else " (--all decodes all)"))
    for sentence in report.shown_errors():
        print(f"Error: {sentence}")
    for sentence in report.warnings:
        print(f"Warning: {sentence}")
    bad = sum(map(len, report.bad_rows.values()))
    if fix and output is not None:
        words = ["ascent-vit", "check", "DIR" if Path(dataset).is_dir() else dataset, "--fix", "--output", "DIR"]
        words += [word for option in options or () for word in ("--option", option)]
        write_good_rows(splits, report, output, names, shlex.join(words))  # type: ignore[arg-type]
        print(f"Left out: {bad:,} rows\nDataset: {output}")
    elif fix:
        print(f"Would be left out: {bad:,} rows; --output writes the others.")
    if report.errors and (output is None or len(report.errors) > bad):
        raise ValueError(
            f"{len(report.errors)} error{'s' * (len(report.errors) > 1)} in {report.rows:,} rows."
            + (" Correct them, or leave these rows out by --fix --output DIR." if bad else "")
        )
    if not (report.errors or report.warnings):
        print("Nothing was found.")


def write_good_rows(
    splits: "DatasetDict", report: "CheckReport", output: Path, names: list[str] | None, command: str
) -> None:
    """Writes a dataset without the rows that have errors; ValueError for errors that are of no row."""
    from datasets import DatasetDict

    from ascent_vit.data.card import write_dataset
    from ascent_vit.data.prepared import PreparedDataset
    from ascent_vit.utils.files import new_folder

    if len(report.errors) > sum(map(len, report.bad_rows.values())):
        report.raise_errors()
    kept = {}
    for name, split in splits.items():
        bad = set(report.bad_rows.get(name, ()))
        kept[name] = split.select([i for i in range(len(split)) if i not in bad]) if bad else split
    counts = ", ".join(f"{len(report.bad_rows.get(name, ()))} of {name}" for name in splits)
    text = f"Rows that cannot be trained on are left out: {counts}."
    prepared = PreparedDataset(DatasetDict(kept), "Checked dataset", "other", text, {})
    with new_folder(output) as folder:
        write_dataset(prepared, folder, None, command, names)


__all__ = ["check"]
