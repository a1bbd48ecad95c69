# SPDX-License-Identifier: Apache-2.0
"""Finds and reads what is published: the parts of a run or a model, and what may be shown of its data."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascent_vit.cases.index import FOLDER as INDEX
from ascent_vit.safeguard.safeguard import FOLDER as GUARD
from ascent_vit.utils.files import check_extent, read_json

from .privacy import strip_values


CARD, PICTURES, EXAMPLES, RECORDS = "README.md", "explanations.png", "examples", "training"
RECORD_NAMES = ("recipe.json", "recipe.yaml", "metrics.json", "evaluation.json", "report.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# Datasets that come with the package, and licences under which anybody may be shown images.
PACKAGED_DATASETS = {"digits": "cc-by-4.0"}
_OPEN_NAMES = """\
apache-2.0 mit bsd bsd-2-clause bsd-3-clause cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0
cdla-permissive-1.0 cdla-permissive-2.0 pddl odc-by odbl unlicense
"""
OPEN_LICENSES = frozenset(_OPEN_NAMES.split())

MOST_CHARACTERS = 60  # of a Space's short description


def check_repo_id(repo_id: str, option: str = "--repo-id", form: str = "USER/NAME") -> None:
    """Raises `ValueError` for an id that is not USER/NAME; `option` is where it was given, in this `form`."""
    from huggingface_hub.utils import validate_repo_id

    if repo_id.count("/") != 1:
        raise ValueError(f"{option} must be {form}; got {repo_id!r}.")
    validate_repo_id(repo_id)


@dataclass(frozen=True)
class PublishOptions:
    """
    Choices for the publication of a model that its folder does not tell.

    Args:
        tag: tag of the published commit, which the card's examples pin.
        license: licence of the weights, by the Hub's name; "apache-2.0" by default.
        dataset_id: Hub id of the dataset that the figures were measured on.
        dataset_name: name that people use for the dataset.
        data_license: licence of the dataset, by the Hub's name.
        other_metrics: metrics files of runs that differ in their seed only, for the spread.
        include_images: whether to send pictures of images even if no licence is known that allows it.
        new_version: Hub id of a model that supersedes this one, `USER/NAME`.
        benchmark: a benchmark of the Hub that accuracy was measured on, and the id of its task in the benchmark's
            `eval.yaml`, `USER/NAME:TASK`.
        float16: whether to store float32 weights as float16, in half the bytes. They load as float32.
        space_description: what the Space is, in at most 60 characters, for its thumbnail.
        space_hardware: hardware that the Space is made for, by the Hub's name, for example "zero-a10g" for ZeroGPU.
    """

    tag: str = "v1"
    license: str | None = None
    dataset_id: str | None = None
    dataset_name: str | None = None
    data_license: str | None = None
    other_metrics: Sequence[str | os.PathLike] = ()
    include_images: bool = False
    new_version: str | None = None
    benchmark: str | None = None
    float16: bool = False
    space_description: str | None = None
    space_hardware: str = "cpu-basic"

    def __post_init__(self):
        from huggingface_hub import SpaceHardware

        if not self.tag or any(c in " ~^:?*[\\'\"" or not c.isprintable() for c in self.tag) or ".." in self.tag:
            raise ValueError(f"--tag must be the name of a git tag, for example v1; got {self.tag!r}.")
        for option, given in (("--dataset-id", self.dataset_id), ("--new-version", self.new_version)):
            if given is not None:
                check_repo_id(given, option)
        if self.benchmark is not None:
            dataset_id, _, task = self.benchmark.partition(":")
            check_repo_id(dataset_id, "--benchmark", "USER/NAME:TASK")
            if not task:
                raise ValueError(f"--benchmark must be USER/NAME:TASK; got {self.benchmark!r}.")
        length = len(self.space_description or "")
        if length > MOST_CHARACTERS:
            raise ValueError(f"--space-description must have at most {MOST_CHARACTERS} characters; got {length}.")
        hardware = [flavor.value for flavor in SpaceHardware]
        if self.space_hardware not in hardware:
            raise ValueError(f"--space-hardware must be one of {', '.join(hardware)}; got {self.space_hardware!r}.")


@dataclass(frozen=True)
class Source:
    """Paths in a folder to publish: its model, records, pictures and card."""

    model_dir: Path
    records: Mapping[str, Path]
    pictures: Path | None
    card: Path | None


def check_source(folder: Path, files: Sequence[Path]) -> None:
    """Raises `ValueError` for pickled weights, and for links that leave the folder."""
    root = folder.resolve()
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path} is a link that leaves {folder}: put the file itself there.")
        if path.suffix in PICKLED:
            raise ValueError(
                f"{path} holds pickled data, which can run code: publish sends safetensors alone. Remove it from the "
                "folder."
            )


def find_source(folder: str | os.PathLike) -> Source:
    """
    Finds the parts of a run (`model/`, `metrics.json`, ...) or of a model's folder.

    Raises:
        FileNotFoundError: for a folder that is missing or has no model.
        ValueError: for another kind of model, pickled weights, or links that leave the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: give that of a run or of a saved model.")
    run = (folder / "model" / "config.json").is_file()
    model_dir, records_dir = (folder / "model", folder) if run else (folder, folder / RECORDS)
    if not (model_dir / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no model: neither config.json nor model/config.json is there.")
    records = {name: records_dir / name for name in RECORD_NAMES if (records_dir / name).is_file()}
    pictures = folder / PICTURES if (folder / PICTURES).is_file() else None
    card = model_dir / CARD if (model_dir / CARD).is_file() else None
    folders = [model_dir / EXAMPLES, model_dir / GUARD, model_dir / INDEX]
    inside = [file for part in folders for file in part.rglob("*")]
    files = [*model_dir.iterdir(), *inside, *records.values()]
    check_source(folder, [*files, *([pictures] if pictures else [])])
    config = read_json(model_dir / "config.json")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "ascent_vit":
        raise ValueError(f"{model_dir} holds a model of type {model_type!r}; publish sends ascent_vit.")
    return Source(model_dir, records, pictures, card)


def read_records(source: Source) -> dict[str, Any]:
    """Reads metrics, report and recipe of a run, as far as they exist, without paths of this machine."""
    import yaml

    records: dict[str, Any] = {}
    for name, path in source.records.items():
        text = path.read_text(encoding="utf-8")
        try:
            data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
            check_extent(data)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read: {error}.") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path} must hold names and values; got {type(data).__name__}.")
        records[name] = strip_values(data)
    if "recipe.json" in records:
        recipe = records.pop("recipe.json")
        recipe.pop("steps", None)
        records["recipe.yaml"] = recipe
    return records


def dataset_path(source: Source) -> str | None:
    """Path or name of the dataset, as it was given to the run."""
    for name in ("recipe.json", "metrics.json"):
        if name in source.records:
            dataset = read_json(source.records[name]).get("dataset")
            if isinstance(dataset, str):
                return dataset
    return None


def find_data_license(dataset: str | None, options: PublishOptions) -> str | None:
    """Licence of a dataset: the given or the known one, or that of the card in its folder or on the Hub."""
    from huggingface_hub import DatasetCard

    if options.data_license is not None:
        return options.data_license
    if dataset in PACKAGED_DATASETS:
        return PACKAGED_DATASETS[dataset]
    try:
        if dataset is not None and Path(dataset, CARD).is_file():
            licence = DatasetCard.load(Path(dataset, CARD)).data.get("license")
        elif options.dataset_id is not None:
            licence = DatasetCard.load(options.dataset_id).data.get("license")
        else:
            return None
    # Without a card the licence is unknown, and pictures are not sent.
    except (OSError, ValueError):
        return None
    return licence if isinstance(licence, str) else None


__all__ = [
    "PublishOptions",
    "Source",
    "check_repo_id",
    "check_source",
    "dataset_path",
    "find_data_license",
    "find_source",
    "read_records",
]
