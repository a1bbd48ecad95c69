# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit export`."""

from pathlib import Path
from typing import Annotated

import typer

from .inputs import DatasetOptions, load_batches


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, or a folder with model and processor.")],
    to: Annotated[str, typer.Option(help="onnx, openvino, torch-export or aotinductor.")],
    output: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    quantize: Annotated[
        str, typer.Option(help="none; int8 (onnx); bf16 (torch-export, aotinductor). The concept head stays float32.")
    ] = "none",
    dataset: Annotated[
        str | None,
        typer.Option(help="A Hub id, a local folder or digits, to measure what changed in classes and maps."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass on the dataset.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random pixels of the check.")] = 0,
    options: DatasetOptions = None,
) -> None:
    """Write a model for another runtime, with preprocessing and an example; checked against PyTorch."""
    from ascent_vit.export import export_model
    from ascent_vit.export.formats import check_format
    from ascent_vit.inference import load_model
    from ascent_vit.safeguard.safeguard import find_guard
    from ascent_vit.utils.files import check_new_folder

    check_format(to, quantize)
    check_new_folder(output)
    if dataset is None and options:
        raise ValueError("--option is of a dataset: name one with --dataset, or leave it out.")
    classifier, processor = load_model(model)
    batches = None
    if dataset is not None:
        batches = load_batches(classifier, processor, dataset, split, options or (), batch_size)
    name = Path(model).resolve().name if Path(model).expanduser().is_dir() else model
    guard = find_guard(model, classifier, processor)
    if guard is not None and quantize != "none":
        print(f"The model's guard is left out: it was calibrated in full precision, not in {quantize}.")
        guard = None
    report = export_model(
        classifier, processor, output, to, quantize, name=name, batches=batches, seed=seed, progress=True, guard=guard
    )
    for key, value in report["max_differences"].items():
        print(f"{key}: {'' if key == 'additivity_error' else 'differs by '}at most {value:.2g}")
    for key, value in report.get("measured", {}).items():
        print(f"{key} on {split}: {value:.6g}")
    print(f"Size: {report['bytes'] / 2**20:.1f} MiB")
    print(f"Exported: {output}")
