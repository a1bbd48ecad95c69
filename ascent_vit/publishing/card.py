# SPDX-License-Identifier: Apache-2.0
"""Writes model cards: what a published model sees, how to use it, its measured figures, and its limits."""

import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ascent_vit.utils.files import read_json, write_text
from ascent_vit.utils.markdown import escape_markdown
from ascent_vit.utils.metrics import METRICS
from modeling_ascent_vit.class_scores_ascent_vit import score_function


if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData


TEMPLATE = Path(__file__).with_name("card_template.md")

TAGS = ["ascent-vit", "explainability", "interpretability", "concept-based-models", "vision-transformer"]

# Headline figures, by the Hub's names of their metrics: the header has these alone, as it shows no others.
HUB_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "label_f1_macro": "f1",
    "mae": "mae",
    "r2": "r_squared",
}
# How a model can derive from another, by the Hub's names.
RELATIONS = ("adapter", "finetune", "merge", "quantized")

# Names that the Hub takes as the licence of a repository.
_LICENSE_NAMES = """\
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0
gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc intel-research lppl-1.3c ms-pl apple-ascl mpl-2.0
odc-by odbl openmdw-1.0 ofl-1.1 osl-3.0 postgresql ncsa unlicense zlib pddl deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
LICENSES = frozenset(_LICENSE_NAMES.split())


@dataclass
class ModelCardContent:
    """
    Content of a model card.

    Args:
        model_name (`str`): Title of the card.
        classes (`list[str]`): Names of the classes, or of the values that are predicted.
        global_concepts, spatial_concepts (`list[str]`): Names of the concepts; an empty list for a stream without.
        dataset_name (`str`): Name that people use for the dataset of training and figures.
        score_function (`str`, *optional*, defaults to `"softmax"`): What makes scores of the model's logits;
            `"sigmoid"` where an image may have several classes, `"none"` of values.
        num_unsupervised_concepts (`int`, *optional*, defaults to 0): Number of concepts learned without targets.
        none_concept (`bool`, *optional*, defaults to `False`): Whether attention may go to "none of these".
        annotation_coverage (`float`, *optional*, defaults to 0.5): Share of a patch that an annotation had to cover;
            None if it is unknown how the targets were made.
        unannotated (`"ignore"` or `"none"`, *optional*, defaults to `"ignore"`): Target of patches without annotation.
        repo_id (`str`, *optional*, defaults to the model's name): Hub id or folder in the card's examples.
        revision (`str`, *optional*): Revision of `repo_id` that the examples pin, for example a tag.
        license (`str`, *optional*, defaults to `"apache-2.0"`): Licence of the weights, by the Hub's name.
        dataset_id (`str`, *optional*): Hub id of the dataset, if it has one.
        base_model (`str`, *optional*): Hub id of the backbone that the model was fine-tuned from.
        metrics (`dict[str, float]`, *optional*): Measured figures by the names of `ascent_vit.evaluation`.
        intervals (`dict[str, tuple[float, float]]`, *optional*): Lower and upper ends of intervals of 95 %, by the
            names in `metrics`.
        split (`str`, *optional*, defaults to `"test"`): Split that the figures were measured on.
        seed (`int`, *optional*): Random seed of the run.
        other_runs (`list[dict]`, *optional*): Metrics of runs that differ in their seed only, each with its "seed".
            With `metrics`, they give the spread.
        command (`str`, *optional*): Command that makes the model and its figures.
        training_data (`str`, *optional*): Origin of the data and its licence, in Markdown.
        concept_source (`str`, *optional*): Origin of the concepts' annotations, in Markdown.
        settings (`dict`, *optional*): Settings of the training, by name.
        pictures (`str`, *optional*): Name of a picture of explanations, a file beside the card.
        widget (`list[dict]`, *optional*): Example images beside the card and the model's output for each, as
            [`~ascent_vit.publishing.examples.write_card_examples`] gives them.
        widget_source (`str`, *optional*): Origin of these images, in Markdown.
        figures_files (`list[str]`, *optional*): Paths of the JSON files of the figures, beside the card.
        new_version (`str`, *optional*): Hub id of a model that supersedes this one.
        concept_edits (`list[dict]`, *optional*): Terms that were removed or scaled after training, as the model's
            configuration has them.
        guard (`dict`, *optional*): Content of the `guard.json` of the model's guard.
    """

    model_name: str
    classes: list[str]
    global_concepts: list[str]
    spatial_concepts: list[str]
    dataset_name: str
    score_function: str = "softmax"
    num_unsupervised_concepts: int = 0
    none_concept: bool = False
    annotation_coverage: float | None = 0.5
    unannotated: str = "ignore"
    repo_id: str | None = None
    revision: str | None = None
    license: str = "apache-2.0"
    dataset_id: str | None = None
    base_model: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    split: str = "test"
    seed: int | None = None
    other_runs: Sequence[Mapping[str, Any]] = ()
    command: str | None = None
    training_data: str | None = None
    concept_source: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    pictures: str | None = None
    widget: Sequence[Mapping[str, Any]] = ()
    widget_source: str | None = None
    figures_files: Sequence[str] = ()
    new_version: str | None = None
    concept_edits: Sequence[Mapping[str, Any]] = ()
    guard: Mapping[str, Any] | None = None

    @classmethod
    def from_model_dir(cls, model_dir: str | os.PathLike, **kwargs) -> "ModelCardContent":
        """
        Reads classes, concepts and targets from the files of a model.

        Args:
            model_dir (`str` or `os.PathLike`): Folder with `config.json` and `preprocessor_config.json`.
            kwargs: Values of the other fields.

        Raises:
            FileNotFoundError: if one of the files is missing.
        """
        config = read_json(Path(model_dir) / "config.json")
        processor = read_json(Path(model_dir) / "preprocessor_config.json")
        # transformers does not store its default names of two classes.
        names = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
        problem = SimpleNamespace(problem_type=config.get("problem_type"), num_labels=len(names))
        return cls(
            classes=[name for _, name in sorted(names.items(), key=lambda item: int(item[0]))],
            score_function=score_function(problem),
            global_concepts=config["global_concepts"],
            spatial_concepts=config["spatial_concepts"],
            num_unsupervised_concepts=config["num_unsupervised_concepts"],
            none_concept=config["none_concept"],
            annotation_coverage=processor["annotation_coverage"],
            unannotated=processor["unannotated"],
            concept_edits=config.get("concept_edits") or (),
            **kwargs,
        )


def format_value(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def format_spread(values: Sequence[float | None]) -> str:
    """Formats the mean and the sample standard deviation of several runs, if each has the value."""
    measured = [value for value in values if value is not None]
    if len(measured) < max(2, len(values)):
        return "not measured in all"
    return f"{format_value(statistics.mean(measured))} ± {format_value(statistics.stdev(measured))}"


def format_interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " to ".join(format_value(end) for end in interval)


def source_code(repo: str, revision: str | None) -> str:
    """Writes the arguments that name a repository in Python code."""
    pinned = f", revision={json.dumps(revision, ensure_ascii=False)}" if revision else ""
    return json.dumps(repo, ensure_ascii=False) + pinned


def pin_examples(card: str, repo: str, revision: str) -> str:
    """
    Makes the Python examples of a card load a repository at a revision, and changes nothing else.

    Args:
        card: text of the card.
        repo: Hub id of the repository.
        revision: revision to pin, for example a tag.
    """
    source = r"(?P<call>\bfrom_pretrained\(|\bmodel=)\"(?:[^\"\\\n]|\\.)*\"(?:,\s*revision=\"[^\"\n]*\")?"

    def pin(block: re.Match[str]) -> str:
        return re.sub(source, lambda match: match["call"] + source_code(repo, revision), block[0])

    return re.sub(r"^```python\n.*?^```", pin, card, flags=re.M | re.S)


def card_metadata(content: ModelCardContent) -> "ModelCardData":
    """Makes the card's YAML header, with the headline figures as evaluation results."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=content.dataset_id or re.sub(r"[^a-z0-9]+", "-", content.dataset_name.lower()).strip("-"),
            dataset_name=content.dataset_name,
            dataset_split=content.split,
            metric_type=hub_name,
            metric_name=name,
            metric_value=float(content.metrics[name]),
        )
        for name, hub_name in HUB_METRICS.items()
        if name in content.metrics
    ]
    optional: dict[str, Any] = {
        "base_model_relation": "finetune" if content.base_model else None,
        "new_version": content.new_version,
        "widget": [dict(example) for example in content.widget] or None,
    }
    return ModelCardData(
        base_model=content.base_model,
        datasets=[content.dataset_id] if content.dataset_id else None,
        eval_results=results or None,
        library_name="transformers",
        license=content.license,
        metrics=[result.metric_type for result in results] or None,
        model_name=content.model_name,
        pipeline_tag="image-classification",
        tags=TAGS,
        **{name: value for name, value in optional.items() if value is not None},
    )


def edit_rows(edits: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of the card's table of edits: the concepts that have one factor for one class, or for all, together."""
    rows: dict[tuple[str | None, float], list[str]] = {}
    for edit in edits:
        rows.setdefault((edit["class"], edit["factor"]), []).append(escape_markdown(edit["concept"]))
    return [
        {
            "label": "all" if label is None else escape_markdown(label),
            "factor": "removed" if factor == 0 else f"times {factor:g}",
            "concepts": ", ".join(concepts),
        }
        for (label, factor), concepts in rows.items()
    ]


def model_card(content: ModelCardContent) -> "ModelCard":
    """
    Writes a model card.

    Args:
        content: content of the card.

    Raises:
        ValueError: for a metric that is not a finite number or has an unknown name, runs without seeds that differ, a
            licence that the Hub does not know, or a model without any concept.
    """
    from huggingface_hub import ModelCard

    if not (content.global_concepts or content.spatial_concepts or content.num_unsupervised_concepts):
        raise ValueError("A model card needs the model's concepts; got none.")
    for name, value in content.metrics.items():
        if name not in METRICS:
            raise ValueError(f"Unknown metric {name!r} in a model card; it may have {', '.join(METRICS)}.")
        if not math.isfinite(value):
            raise ValueError(f"Metric {name} must be a finite number in a model card; got {value}. Leave it out.")
    if content.license not in LICENSES:
        raise ValueError(f"The Hub knows no licence {content.license!r}: give its name there, or other.")
    runs = [{**content.metrics, "seed": content.seed}, *content.other_runs]
    if len(runs) > 1 and len({run.get("seed") for run in runs} - {None}) < len(runs):
        raise ValueError("Runs in one model card must differ in their seed, and each needs one.")
    what = "first value" if content.score_function == "none" else "class probability"
    figures = [
        {
            "name": f"`{name}`",
            "value": format_value(content.metrics[name]),
            "interval": format_interval(content.intervals.get(name)),
            "spread": format_spread([run.get(name) for run in runs]),
            "meaning": metric.meaning.replace("class probability", what),
        }
        for name, metric in METRICS.items()
        if name in content.metrics
    ]
    return ModelCard.from_template(
        card_metadata(content),
        template_path=str(TEMPLATE),
        title=escape_markdown(content.model_name),
        classes=[escape_markdown(name) for name in content.classes],
        score_function=content.score_function,
        global_concepts=[escape_markdown(name) for name in content.global_concepts],
        spatial_concepts=[escape_markdown(name) for name in content.spatial_concepts],
        num_unsupervised_concepts=content.num_unsupervised_concepts,
        edits=edit_rows(content.concept_edits),
        none_concept=content.none_concept,
        annotation_coverage=content.annotation_coverage and f"{content.annotation_coverage:.0%}",
        unannotated=content.unannotated,
        source=source_code(content.repo_id or content.model_name, content.revision),
        revision=content.revision,
        pictures=content.pictures,
        widget_source=content.widget_source if content.widget else None,
        figures=figures,
        figures_files=content.figures_files,
        intervals=bool(content.intervals),
        other_runs=bool(content.other_runs),
        num_runs=len(runs),
        seeds=[run.get("seed") for run in runs],
        split=escape_markdown(content.split),
        dataset_name=escape_markdown(content.dataset_name),
        seed=content.seed,
        command=content.command and " ".join(content.command.split()),
        training_data=content.training_data,
        concept_source=content.concept_source,
        settings={escape_markdown(name): escape_markdown(value) for name, value in content.settings.items()},
        guard=guard_fields(content.guard),
    )


def guard_fields(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a card says of a guard, by the content of its `guard.json`."""
    if facts is None:
        return None
    place = " of ".join(escape_markdown(facts[key]) for key in ("split", "dataset") if facts.get(key))
    return {
        "share": f"{1 - facts['alpha']:.4g}",
        "foreign": f"{facts['outlier_rate']:.4g}",
        "images": f"{facts['images']:,}",
        "place": f" ({place})" if place else "",
        "per_class": facts["per_class"],
        "number_shared": len(facts["shared"]),
        "shared": ", ".join(escape_markdown(name) for name in facts["shared"][:10]),
        "warnings": [escape_markdown(sentence) for sentence in facts["warnings"]],
    }


def check_header(data: Mapping[str, Any]) -> None:
    """
    Checks what the Hub asks of a header beside its licence: lists of names, ids of models, examples and their outputs.

    Args:
        data: header of a model card.

    Raises:
        ValueError: for a field that is not as the Hub takes it.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    def is_names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    for field_name in ("datasets", "metrics", "tags"):
        if not is_names(data.get(field_name, [])):
            raise ValueError(f"{field_name} in the header of the model card must be a list of names.")
    bases = data.get("base_model", [])
    bases = [bases] if isinstance(bases, str) else bases
    ids = [*bases, data["new_version"]] if "new_version" in data else bases
    try:
        for repo_id in ids:
            validate_repo_id(repo_id)
    except (HFValidationError, TypeError) as error:
        raise ValueError(f"base_model and new_version of the model card must be ids of the Hub: {error}") from error
    if data.get("base_model_relation", RELATIONS[0]) not in RELATIONS or ("base_model_relation" in data and not bases):
        raise ValueError(f"base_model_relation goes with base_model, and is one of {', '.join(RELATIONS)}.")
    for example in data.get("widget", []):
        outputs = example.get("output", []) if isinstance(example, dict) else None
        if outputs is None or not isinstance(example.get("src"), str):
            raise ValueError("Each example in the widget of the model card needs src, the path or URL of an image.")
        if not all(isinstance(each, dict) and {"label", "score"} <= each.keys() for each in outputs):
            raise ValueError("Each output in the widget of the model card needs a label and a score.")


def check_card(card: str) -> None:
    """
    Checks a card by rules of the Hub, as far as they can be checked offline.

    Args:
        card: text of the card.

    Raises:
        ValueError: for an invalid header, an unknown licence, an empty section or a gap left to fill in.
    """
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(card).data.to_dict()
    except Exception as error:
        raise ValueError(f"The header of the model card is not valid: {error}") from error
    licences = data.get("license")
    for name in licences if isinstance(licences, list) else [licences]:
        if name not in LICENSES:
            raise ValueError(f"The model card has the licence {name!r}, which the Hub does not know.")
    check_header(data)
    task = data.get("pipeline_tag")
    if task != "image-classification":
        raise ValueError(f"The model card must have pipeline_tag: image-classification; it has {task!r}.")
    if re.search(r"more information needed", card, flags=re.IGNORECASE):
        raise ValueError('The model card says "More information needed": fill that in, or take the section out.')
    empty = re.search(r"^(#+) (.*)\n+(?:(?!\1#)#|\Z)", re.sub(r"^```.*?^```", "code", card, flags=re.M | re.S), re.M)
    if empty:
        raise ValueError(f"The section {empty[2]!r} of the model card is empty: fill it in, or take it out.")


def write_model_card(model_dir: str | os.PathLike, content: ModelCardContent) -> Path:
    """
    Writes the model card into a model's folder, whole or not at all.

    Args:
        model_dir (`str` or `os.PathLike`): Folder of the model, which exists.
        content (`ModelCardContent`): Content of the card.

    Returns:
        `Path`: Path of the card, `model_dir/README.md`.

    Raises:
        FileNotFoundError: for a folder that does not exist.
        ValueError: see [`model_card`].
    """
    model_dir = Path(model_dir)
    if not model_dir.is_dir():
        raise FileNotFoundError(f"{model_dir} is no folder: give the folder of a saved model.")
    path = model_dir / "README.md"
    write_text(path, str(model_card(content)).rstrip("\n") + "\n")
    return path


__all__ = ["LICENSES", "ModelCardContent", "check_card", "model_card", "pin_examples", "write_model_card"]
