# SPDX-License-Identifier: Apache-2.0
"""Writes the folder that is published anew from a run or a model, so that nothing else is sent."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascent_vit.inference.load import load_processor, load_whole
from ascent_vit.utils.files import check_extent, read_json, write_json, write_text
from ascent_vit.utils.markdown import escape_markdown
from ascent_vit.utils.metrics import METRICS

from .card import ModelCardContent, check_card, model_card, pin_examples
from .privacy import check_secrets, strip_paths, strip_values


CARD, PICTURES, RECORDS, EVAL_RESULTS = "README.md", "explanations.png", "training", ".eval_results"
RECORD_NAMES = ("recipe.json", "recipe.yaml", "metrics.json", "evaluation.json", "report.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# Datasets that come with the package, and licences under which anybody may be shown images.
PACKAGED_DATASETS = {"digits": "cc-by-4.0"}
_OPEN_NAMES = """\
apache-2.0 mit bsd bsd-2-clause bsd-3-clause cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0
cdla-permissive-1.0 cdla-permissive-2.0 pddl odc-by odbl unlicense
"""
OPEN_LICENSES = frozenset(_OPEN_NAMES.split())

# Settings of the recipe that the card shows.
CARD_SETTINGS = (
    "backbone",
    "image_size",
    "freeze_backbone",
    "frozen_layers",
    "cache_features",
    "label_smoothing",
    "class_weights",
    "learning_rate",
    "backbone_learning_rate",
    "layer_decay",
    "weight_decay",
    "num_train_epochs",
    "max_steps",
    "warmup_epochs",
    "head_only_epochs",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "mixed_precision",
    "ema_decay",
    "metric_for_best_model",
)
OFF = (None, 0, -1)


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
    """

    tag: str = "v1"
    license: str | None = None
    dataset_id: str | None = None
    dataset_name: str | None = None
    data_license: str | None = None
    other_metrics: Sequence[str | os.PathLike] = ()
    include_images: bool = False

    def __post_init__(self):
        from huggingface_hub.utils import validate_repo_id

        if not self.tag or any(c in " ~^:?*[\\'\"" or not c.isprintable() for c in self.tag) or ".." in self.tag:
            raise ValueError(f"--tag must be the name of a git tag, for example v1; got {self.tag!r}.")
        if self.dataset_id is not None:
            validate_repo_id(self.dataset_id)
            if "/" not in self.dataset_id:
                raise ValueError(f"--dataset-id must be USER/NAME; got {self.dataset_id!r}.")


@dataclass(frozen=True)
class Source:
    """Paths in a folder to publish: its model, records, pictures and card."""

    model_dir: Path
    records: Mapping[str, Path]
    pictures: Path | None
    card: Path | None


@dataclass(frozen=True)
class StagedFile:
    """A file that is published: its path in the repository, and its size in bytes."""

    path: str
    size: int


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
    check_source(folder, [*model_dir.iterdir(), *records.values(), *([pictures] if pictures else [])])
    config = read_json(model_dir / "config.json")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "ascent_vit":
        raise ValueError(f"{model_dir} holds a model of type {model_type!r}; publish sends ascent_vit.")
    return Source(model_dir, records, pictures, card)


def stage_model(source: Source, target: Path) -> None:
    """Writes weights, configuration, image processor and code anew into the folder `target`."""
    import torch

    model = load_whole(source.model_dir)
    # Code that the folder names may lie elsewhere: saving names the code that it writes instead.
    model.config.auto_map = {}
    model.save_pretrained(target)
    load_processor(source.model_dir).save_pretrained(target)
    load_processor(target)
    before, after = model.state_dict(), load_whole(target).state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        raise RuntimeError("The weights that were written are not those that were read: please report this.")


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


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Picks the figures of a metrics file that a card can show."""
    return {
        name: float(metrics[name])
        for name in METRICS
        if isinstance(metrics.get(name), int | float) and math.isfinite(metrics[name])
    }


def whole_number(value: Any) -> int | None:
    """The value if it is a whole number, as a seed is."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def run_figures(metrics: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a run: those of its training, replaced by those of `ascent-vit evaluate` of the same name."""
    return numbers(metrics) | numbers(evaluation)


def read_run(path: Path) -> dict[str, Any]:
    """Reads figures and seed of a run from its metrics file, and from `evaluation.json` beside it if there is one."""
    metrics, beside = read_json(path), path.with_name("evaluation.json")
    evaluation = read_json(beside) if beside.is_file() else {}
    return run_figures(metrics, evaluation) | {"seed": whole_number(metrics.get("seed"))}


def base_model(model_dir: Path) -> str | None:
    """Hub id of the backbone, if the model was built on one of the Hub."""
    name = read_json(model_dir / "config.json")["backbone_config"].get("_name_or_path") or ""
    return name if name.count("/") == 1 and not name.startswith(("/", ".", "~")) else None


def card_content(target: Path, repo_id: str, records: Mapping[str, Any], **known: Any) -> ModelCardContent:
    """Makes the content of a card from the records of a run; `known` are the other fields of the content."""
    metrics, recipe = records.get("metrics.json", {}), records.get("recipe.yaml", {})
    datasets = [record["dataset"] for record in (recipe, metrics) if isinstance(record.get("dataset"), str)]
    dataset = datasets[0] if datasets else None
    command = None
    if recipe:
        # A dataset that is not the package's has another path on the reader's machine.
        given = "" if dataset in PACKAGED_DATASETS else f" --dataset {known.get('dataset_id') or 'ID_OR_DIR'}"
        command = f"ascent-vit train --recipe {RECORDS}/recipe.yaml{given} --output DIR"
    settings = {name: recipe[name] for name in CARD_SETTINGS if recipe.get(name) not in OFF}
    return ModelCardContent.from_model_dir(
        target,
        model_name=repo_id.partition("/")[2],
        repo_id=repo_id,
        metrics=run_figures(metrics, records.get("evaluation.json", {})),
        split=metrics.get("split") or "test",
        seed=whole_number(metrics.get("seed")),
        command=command,
        settings=settings,
        base_model=base_model(target),
        **known,
    )


def make_card(
    target: Path, repo_id: str, records: Mapping[str, Any], dataset: str | None, options: PublishOptions
) -> str:
    """Writes the card of a model that has none."""
    name = options.dataset_name or options.dataset_id or (Path(dataset).name if dataset else None)
    if name is None:
        raise ValueError("Nothing says what the model was trained on: give --dataset-name, for the card.")
    licence = find_data_license(dataset, options)
    place = escape_markdown(name)
    if options.dataset_id:
        place = f"[{place}](https://huggingface.co/datasets/{options.dataset_id})"
    runs = [read_run(Path(path)) for path in options.other_metrics]
    if runs and not records.get("metrics.json"):
        raise ValueError("--metrics gives figures of further runs, but the folder has no metrics.json of its own.")
    content = card_content(
        target,
        repo_id,
        records,
        revision=options.tag,
        license=options.license or "apache-2.0",
        dataset_name=name,
        dataset_id=options.dataset_id,
        other_runs=runs,
        training_data=f"Trained on {place}, "
        + (f"whose licence is {escape_markdown(licence)}." if licence else "under the licence of its source."),
        pictures=PICTURES if (target / PICTURES).is_file() else None,
    )
    return str(model_card(content)).rstrip("\n") + "\n"


def stage_pictures(source: Source, target: Path, dataset: str | None, options: PublishOptions) -> bool:
    """Copies the pixels of the pictures if that is allowed, and returns whether it was."""
    from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

    if source.pictures is None:
        return False
    if not options.include_images and find_data_license(dataset, options) not in OPEN_LICENSES:
        return False
    with opened_image(source.pictures, f"The picture {source.pictures}") as image:
        image.convert("RGB").save(target / PICTURES)
    return True


def eval_results(records: Mapping[str, Any], dataset_id: str) -> str:
    """Writes the figures of the weights as the Hub's evaluation results, in YAML."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    metrics = records["metrics.json"]
    notes = ", ".join(f"{key} {metrics[key]}" for key in ("split", "seed") if metrics.get(key) is not None)
    entries = [
        EvalResultEntry(dataset_id=dataset_id, task_id=name, value=value, notes=notes or None)
        for name, value in run_figures(metrics, records.get("evaluation.json", {})).items()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def stage(
    folder: str | os.PathLike, target: str | os.PathLike, repo_id: str, options: PublishOptions | None = None
) -> list[StagedFile]:
    """
    Writes what is published of a run or a model into an empty folder, and checks it.

    These are weights as safetensors, configuration, image processor, the code that they need, the card `README.md`,
    the recipe, metrics and report of the run in `training/`, figures in `.eval_results/` if the dataset is one of the
    Hub, and `explanations.png` if the licence of the images allows it. A card that exists already is kept; its
    examples load the repository at the tag. Absolute paths are cut to their last part.

    Args:
        folder: folder of a run (`ascent-vit train`, `ascent-vit demo`), or of a model.
        target: folder to write, which exists and is empty.
        repo_id: Hub id of the model, for the card.
        options: choices for the publication; by default those of [`PublishOptions`].

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError: for a folder without a model.
        ValueError: for what must not or cannot be published; it says what and why.
    """
    import yaml
    from huggingface_hub import ModelCard

    options = options or PublishOptions()
    source, target = find_source(folder), Path(target)
    records, dataset = read_records(source), dataset_path(source)
    card = None
    if source.card is not None:
        given = [name for name in ("license", "dataset_name") if getattr(options, name) is not None]
        if given or options.other_metrics:
            raise ValueError(
                f"{source.card} is the card already: change it, or remove it to have one made with these options."
            )
        card = strip_paths(pin_examples(source.card.read_text(encoding="utf-8"), repo_id, options.tag))
        named = ModelCard(card).data.get("datasets") or []
        if options.dataset_id is None and len(named) == 1:
            options = dataclasses.replace(options, dataset_id=named[0])
    stage_model(source, target)
    stage_pictures(source, target, dataset, options)
    for name, data in records.items():
        if name.endswith(".json"):
            write_json(target / RECORDS / name, data)
        else:
            write_text(target / RECORDS / name, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    card = card or make_card(target, repo_id, records, dataset, options)
    check_card(card)
    write_text(target / CARD, card)
    if options.dataset_id is not None and numbers(records.get("metrics.json", {})):
        path = target / EVAL_RESULTS / f"{options.dataset_id.rpartition('/')[2]}.yaml"
        write_text(path, eval_results(records, options.dataset_id))
    files = sorted(path for path in target.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in (".json", ".yaml", ".md"):
            check_secrets(path.read_text(encoding="utf-8"), str(path.relative_to(target)))
    return [StagedFile(path.relative_to(target).as_posix(), path.stat().st_size) for path in files]


__all__ = ["PublishOptions", "StagedFile", "stage"]
