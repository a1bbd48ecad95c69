# SPDX-License-Identifier: Apache-2.0
"""Writes the folder that is published anew from a run or a model, so that nothing else is sent."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ascent_vit.cases.index import FOLDER as INDEX
from ascent_vit.cases.index import ConceptIndex
from ascent_vit.inference.identity import model_digest
from ascent_vit.inference.load import load_processor, load_whole
from ascent_vit.safeguard.safeguard import find_guard
from ascent_vit.utils.files import read_json, write_json, write_text
from ascent_vit.utils.markdown import escape_markdown
from ascent_vit.utils.metrics import METRICS

from .benchmark import benchmark_result
from .card import ModelCardContent, check_card, model_card, pin_examples
from .examples import about_examples, check_examples, example_images, may_show_images, write_card_examples
from .privacy import check_secrets, strip_paths
from .source import (
    CARD,
    EXAMPLES,
    PACKAGED_DATASETS,
    PICTURES,
    RECORDS,
    PublishOptions,
    Source,
    dataset_path,
    find_data_license,
    find_source,
    read_records,
)


EVAL_RESULTS = ".eval_results"


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
class StagedFile:
    """A file that is published: its path in the repository, and its size in bytes."""

    path: str
    size: int


def store_as_float16(folder: Path) -> None:
    """Stores float32 weights as float16; their configuration names float32, so that they load as that."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata()
            tensors = {name: file.get_tensor(name) for name in names}
        save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, path, metadata)


def stage_model(source: Source, target: Path, float16: bool = False) -> tuple[Any, Any]:
    """
    Writes weights, configuration, image processor and code anew into a folder, and loads what was written.

    Args:
        source: folder of the model.
        target: folder to write.
        float16: whether to round float32 weights to float16 and store them so, in half the bytes.

    Raises:
        ValueError: with `float16`, for weights of another dtype than float32, or too large for float16.
    """
    import torch

    model: Any = load_whole(source.model_dir)
    # Code that the folder names may lie elsewhere: saving names the code that it writes instead.
    model.config.auto_map = {}
    if float16:
        if model.dtype != torch.float32:
            raise ValueError(f"--float16 is for float32 weights, and these are {model.dtype}: leave it out.")
        model.half().float()
        # Loading gives factors of edits in full precision, whatever the file has.
        model.check_factors()
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError("Some weights are too large for float16: leave --float16 out.")
    model.save_pretrained(target)
    if float16:
        store_as_float16(target)
    load_processor(source.model_dir).save_pretrained(target)
    written = load_whole(target)
    before, after = model.state_dict(), written.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        raise RuntimeError("The weights that were written are not those that were read: please report this.")
    return written, load_processor(target)


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether something read from a file is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Picks the figures of a metrics file that a card can show."""
    return {name: float(metrics[name]) for name in METRICS if is_finite(metrics.get(name))}


def whole_number(value: Any) -> int | None:
    """The value if it is a whole number, as a seed is."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def run_figures(metrics: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a run: those of its training, replaced by those of `ascent-vit evaluate` of the same name."""
    return numbers(metrics) | numbers(evaluation)


def run_intervals(evaluation: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Intervals of the figures that `ascent-vit evaluate` wrote, by their names."""
    found = {}
    for name in numbers(evaluation):
        low, high = (evaluation.get(f"{name}_{end}") for end in ("low", "high"))
        if is_finite(low) and is_finite(high):
            found[name] = (low, high)
    return found


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
        intervals=run_intervals(records.get("evaluation.json", {})),
        split=metrics.get("split") or "test",
        seed=whole_number(metrics.get("seed")),
        command=command,
        settings=settings,
        base_model=base_model(target),
        **known,
    )


def make_card(
    target: Path,
    repo_id: str,
    records: Mapping[str, Any],
    dataset: str | None,
    options: PublishOptions,
    **known: Any,
) -> str:
    """Writes the card of a model that has none; `known` are fields of the content that the records do not tell."""
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
        figures_files=[f"{RECORDS}/{name}" for name in ("metrics.json", "evaluation.json") if name in records],
        new_version=options.new_version,
        **known,
    )
    return str(model_card(content)).rstrip("\n") + "\n"


def stage_pictures(source: Source, target: Path, options: PublishOptions) -> bool:
    """Copies the pixels of the pictures if that is allowed, and returns whether it was."""
    from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

    if source.pictures is None:
        return False
    if not may_show_images(source, options):
        return False
    with opened_image(source.pictures, f"The picture {source.pictures}") as image:
        image.convert("RGB").save(target / PICTURES)
    return True


def stage_index(source: Source, target: Path, model: Any, options: PublishOptions) -> None:
    """
    Writes the index of similar images beside the model, if there is one; its thumbnails only where images may be sent.

    Raises:
        ValueError: for an index of another model than the one that is published.
    """
    if not (source.model_dir / INDEX).is_dir():
        return
    index = ConceptIndex.load(source.model_dir)
    if index.facts["model"] != model_digest(model):
        raise ValueError(
            f"The index in {source.model_dir / INDEX} is of other weights or names than the model that is published "
            "(--float16 rounds weights): build it again with that model, or remove it."
        )
    if may_show_images(source, options):
        index.save(target / INDEX)
    else:
        index.write_without_thumbnails(target / INDEX)


def stage_card_examples(source: Source, target: Path, names: Sequence[str], options: PublishOptions) -> None:
    """Copies the pixels of the images beside the model that a card's examples name."""
    from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

    if names and not may_show_images(source, options):
        raise ValueError(
            f"The examples in {source.card} are images, and no licence is known that allows to send them: give "
            "--data-license or --include-images, or take widget out of the card."
        )
    for name in names:
        path = source.model_dir / name
        if path.parent != source.model_dir / EXAMPLES or not path.is_file():
            raise ValueError(f"The example {name} in {source.card} must be a file in {source.model_dir / EXAMPLES}.")
        with opened_image(path, f"The example {path}") as image:
            (target / EXAMPLES).mkdir(exist_ok=True)
            image.convert("RGB").save(target / name)


def stage_records(records: Mapping[str, Any], target: Path) -> None:
    """Writes the records of a run as files, JSON or YAML by their names."""
    import yaml

    for name, data in records.items():
        if name.endswith(".json"):
            write_json(target / RECORDS / name, data)
        else:
            write_text(target / RECORDS / name, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def kept_card(source: Source, repo_id: str, options: PublishOptions) -> str:
    """Reads the card that a model has, with examples that load the repository at the tag."""
    assert source.card is not None
    given = [name for name in ("license", "dataset_name", "new_version") if getattr(options, name) is not None]
    if given or options.other_metrics:
        raise ValueError(
            f"{source.card} is the card already: change it, or remove it to have one made with these options."
        )
    return strip_paths(pin_examples(source.card.read_text(encoding="utf-8"), repo_id, options.tag))


def stage(
    folder: str | os.PathLike,
    target: str | os.PathLike,
    repo_id: str,
    options: PublishOptions | None = None,
    examples: Sequence[str | os.PathLike] = (),
) -> list[StagedFile]:
    """
    Writes what is published of a run or a model into an empty folder, and checks it.

    These are weights as safetensors, configuration, image processor, the code that they need, the card `README.md`
    with its example images in `examples/`, the recipe, metrics and report of the run in `training/`, the model's guard
    in `guard/` and its index of similar images in `index/` if it has them, and `explanations.png` and the index's
    thumbnails if the licence of the images allows it. A card that exists is kept; its code loads the repository at the
    tag. Absolute paths are cut to their last part.

    Args:
        folder: folder of a run (`ascent-vit train`, `ascent-vit demo`), or of a model.
        target: folder to write, which exists and is empty.
        repo_id: Hub id of the model, for the card.
        options: choices for the publication; by default those of [`PublishOptions`].
        examples: image files, or folders of them: a card that is made shows the first 4 with what the model gives for
            each; by default digits for a model of the demo, else none.

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError: for a folder without a model, or an example that does not exist.
        ValueError: for what must not or cannot be published; it says what and why.
    """
    from huggingface_hub import ModelCard

    options = options or PublishOptions()
    source, target = find_source(folder), Path(target)
    records, dataset = read_records(source), dataset_path(source)
    card, shown = None, []
    if source.card is not None:
        card = kept_card(source, repo_id, options)
        check_card(card)
        header = ModelCard(card).data
        named = header.get("datasets") or []
        if options.dataset_id is None and len(named) == 1:
            options = dataclasses.replace(options, dataset_id=named[0])
        shown = [example["src"] for example in header.get("widget") or [] if "://" not in example["src"]]
    else:
        check_examples(source, options, examples)
    model, processor = stage_model(source, target, options.float16)
    guard = find_guard(source.model_dir, model, processor)
    if guard is not None:
        guard.save_pretrained(target)
    stage_pictures(source, target, options)
    stage_index(source, target, model, options)
    stage_records(records, target)
    if card is None:
        widget = write_card_examples(example_images(source, examples), model, processor, target)
        facts = None if guard is None else guard.judge.facts
        origin = about_examples(dataset, len(widget), bool(examples), options)
        card = make_card(target, repo_id, records, dataset, options, widget=widget, widget_source=origin, guard=facts)
        check_card(card)
    else:
        stage_card_examples(source, target, shown, options)
    write_text(target / CARD, card)
    if options.benchmark is not None:
        metrics = records.get("metrics.json", {})
        figures = run_figures(metrics, records.get("evaluation.json", {}))
        path = target / EVAL_RESULTS / f"{options.benchmark.partition(':')[0].rpartition('/')[2]}.yaml"
        write_text(path, benchmark_result(options.benchmark, figures, metrics))
    files = sorted(path for path in target.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in (".json", ".yaml", ".md"):
            check_secrets(path.read_text(encoding="utf-8"), str(path.relative_to(target)))
    return [StagedFile(path.relative_to(target).as_posix(), path.stat().st_size) for path in files]


__all__ = ["StagedFile", "stage"]
