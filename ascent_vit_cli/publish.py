# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit publish`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from ascent_vit.publishing import StagedFile


def _show(files: "list[StagedFile]") -> None:
    width = max(len(file.path) for file in files)
    for file in files:
        print(f"{file.path:{width}}  {file.size:>13,} bytes")
    print(f"{f'{len(files)} files':{width}}  {sum(file.size for file in files):>13,} bytes")


def publish(
    folder: Annotated[Path, typer.Argument(help="Folder of a run of train or demo, or of a saved model.")],
    repo_id: Annotated[str, typer.Option(metavar="USER/NAME", help="Repository of the Hub; made if it is new.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing: write it into --output.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="With --dry-run: folder for what would be sent; new or empty.")
    ] = None,
    tag: Annotated[str, typer.Option(help="Tag of the commit, which the card's examples pin.")] = "v1",
    include_images: Annotated[
        bool, typer.Option("--include-images", help="Send pictures although no licence is known that allows it.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="Licence of the weights, by the Hub's name.", show_default="apache-2.0")
    ] = None,
    dataset_id: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="The Hub's dataset that the figures were measured on.")
    ] = None,
    dataset_name: Annotated[str | None, typer.Option(help="What people call the dataset.")] = None,
    data_license: Annotated[str | None, typer.Option(help="Licence of the dataset, by the Hub's name.")] = None,
    metrics: Annotated[
        list[Path] | None,
        typer.Option(help="metrics.json of a run with another seed, for the spread in the card; repeatable."),
    ] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Also send a Space of the same name, an app that explains images.")
    ] = False,
    examples: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR_OR_FILE", help="Image, or folder of images, to show on the card and in the Space; repeatable."
        ),
    ] = None,
    new_version: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Model that supersedes this one.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME:TASK", help="The Hub's benchmark that accuracy was measured on, and its task's id."
        ),
    ] = None,
    float16: Annotated[
        bool, typer.Option("--float16", help="Store float32 weights as float16, in half the bytes; rounds them.")
    ] = False,
    space_description: Annotated[
        str | None, typer.Option(help="With --space: what the app is, in at most 60 characters.")
    ] = None,
    space_hardware: Annotated[
        str | None,
        typer.Option(help="With --space: hardware it is made for, zero-a10g for ZeroGPU.", show_default="cpu-basic"),
    ] = None,
) -> None:
    """Send a model to the Hub: weights, code, card, recipe and figures, in one commit; with --space an app too."""
    if dry_run and output is None:
        raise ValueError("--dry-run needs --output, a folder for what would be sent.")
    if output is not None and not dry_run:
        raise ValueError("--output goes with --dry-run; without it, publish sends to the Hub and writes nothing.")
    if not space and (space_description or space_hardware):
        raise ValueError("--space-description and --space-hardware go with --space.")
    from ascent_vit.utils.files import check_new_folder, new_folder

    if output is not None:
        check_new_folder(output)

    from ascent_vit.publishing import PublishOptions, publish_space, stage, stage_space
    from ascent_vit.publishing import publish as send
    from ascent_vit.publishing.examples import check_examples
    from ascent_vit.publishing.source import PICTURES, check_repo_id, find_source

    check_repo_id(repo_id)
    options = PublishOptions(
        tag,
        license,
        dataset_id,
        dataset_name,
        data_license,
        metrics or (),
        include_images,
        new_version,
        benchmark,
        float16,
        space_description,
        space_hardware or "cpu-basic",
    )
    source = find_source(folder)
    has_pictures = source.pictures is not None
    # Checked before the model is sent: a Space that is refused later would leave the publication half done.
    check_examples(source, options, examples or ())
    if examples and source.card is not None and not space:
        raise ValueError(f"{source.card} is the card already: --examples goes with --space then, or remove the card.")
    space_files: list[StagedFile] = []
    if output is not None:
        with new_folder(output) as target:
            # The model and its Space are two repositories.
            model_target = target / "model" if space else target
            model_target.mkdir(exist_ok=True)
            files = stage(folder, model_target, repo_id, options, examples or ())
            if space:
                space_files = stage_space(folder, target / "space", repo_id, options, examples or (), private)
        end = f"Nothing was sent. This is what would be: {output}"
    else:
        published = send(folder, repo_id, private, options, examples=examples or ())
        files, end = published.files, f"Published as {tag}, commit {published.commit}: {published.url}"
        if space:
            app = publish_space(folder, repo_id, private, options, examples or ())
            space_files, end = app.files, f"{end}\nIts Space, commit {app.commit}: {app.url}"
    _show(files)
    if space_files:
        print("Space:")
        _show(space_files)
    if has_pictures and PICTURES not in {file.path for file in files}:
        print(f"{PICTURES} stays here: no licence is known that allows it. Give --data-license, or --include-images.")
    print(end)


__all__ = ["publish"]
