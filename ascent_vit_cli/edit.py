# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit edit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import DatasetOptions, load_batches


if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ascent_vit.explanation.intervene import Concept
    from ascent_vit.inference import ConceptClassifier

# Classes in the printed table, at most: those whose accuracy changed most.
MOST_ROWS = 20


def edit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, or a folder with model and processor.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    remove: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CLASS=]CONCEPT",
            help="Concept that contributes nothing any more, to the class or to all classes; repeatable. Where two "
            "streams have it, STREAM:CONCEPT, as in global:striped.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CLASS=]CONCEPT", help="Concept that is kept, where all others are removed; repeatable."
        ),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CLASS=]CONCEPT=FACTOR", help="What the concept contributes, times a factor; repeatable."
        ),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take all edits of the model back.")] = False,
    dataset: Annotated[
        str | None, typer.Option(help="A Hub id, a local folder or digits, to measure before and after.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass on the dataset.")] = 32,
    options: DatasetOptions = None,
) -> None:
    """Remove concepts from what a model judges by, or scale them, for good; writes the edited model."""
    from ascent_vit.explanation.edit import edit as edit_model
    from ascent_vit.explanation.edit import new_factors
    from ascent_vit.inference import load_model
    from ascent_vit.utils.files import check_new_folder, new_folder, write_json
    from ascent_vit.utils.versions import versions

    check_new_folder(output)
    if dataset is None and options:
        raise ValueError("--option is of a dataset: name one with --dataset, or leave it out.")
    if undo == bool(remove or only or scale):
        raise ValueError("Give --remove, --only or --scale, or --undo alone.")
    classifier, processor = load_model(model)
    config, old_terms = classifier.config, classifier.edited_terms()
    if undo and not old_terms:
        raise ValueError(f"{model} has no edits to undo.")
    asked: dict[str, Any] = {
        "remove": read_terms(config, remove, "--remove"),
        "only": read_terms(config, only, "--only"),
        "scale": read_factors(config, scale),
    }
    # What is said wrong is found before anything is measured.
    new_factors(config, **asked)
    batches = None
    if dataset is not None:
        batches = load_batches(classifier, processor, dataset, split, options or (), batch_size)
    before = None if batches is None else measure(classifier, batches, "Before")
    edits = edit_model(classifier, **asked, undo=undo)
    after = None if batches is None else measure(classifier, batches, "After")
    facts: dict[str, Any] = {"model": model, "concept_edits": edits}
    if before is not None and after is not None:
        new_terms = classifier.edited_terms()
        touched = {term[2] for term in old_terms.keys() | new_terms if old_terms.get(term) != new_terms.get(term)}
        classes = [name for index, name in enumerate(after["classes"]) if index in touched]
        facts |= {"dataset": dataset, "split": split, "before": before, "after": after, "touched_classes": classes}
    with new_folder(output) as folder:
        classifier.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_json(folder / "edit.json", facts | versions())
        if after is not None:
            # Where publish looks for the figures of the card.
            figures = {name: value for name, value in after.items() if name != "classes"}
            write_json(folder / "training" / "metrics.json", figures | {"dataset": dataset, "split": split})
    print_edits(facts)
    print(f"Written: {output}")


def read_term(config: Any, text: str, option: str) -> "tuple[str | None, Concept]":
    """
    Reads CLASS=CONCEPT, or CONCEPT for all classes, with STREAM: before the concept where it is given.

    Raises:
        ValueError: for names that the model does not have, or that can be read in two ways.
    """
    from modeling_ascent_vit.names_ascent_vit import class_index, class_names, concept_names, find_concept

    labels, names = class_names(config), concept_names(config)

    def concept(name: str) -> "Concept":
        stream, _, rest = name.partition(":")
        if rest in names.get(stream, ()):
            return stream, rest
        streams = [stream for stream, known in names.items() if name in known]
        if len(streams) > 1:
            raise ValueError(
                f"{option} {text!r}: {' and '.join(streams)} concepts have it; write {streams[0]}:{name} or both."
            )
        return name

    def is_concept(name: str) -> bool:
        return isinstance(concept(name), tuple) or any(name in known for known in names.values())

    cuts = [i for i, letter in enumerate(text) if letter == "="]
    readings = [(text[:i], text[i + 1 :]) for i in cuts if text[:i] in labels and is_concept(text[i + 1 :])]
    if len(readings) + is_concept(text) > 1:
        raise ValueError(f"{option} {text!r} can be read in two ways: edit the model in Python.")
    if is_concept(text):
        return None, concept(text)
    if readings:
        return readings[0][0], concept(readings[0][1])
    label, equals, name = text.partition("=")
    if equals:
        class_index(label, labels)
    find_concept(name if equals else text, names)
    raise ValueError(f"{option} takes CLASS=CONCEPT, or CONCEPT for all classes; got {text!r}.")


def read_terms(config: Any, texts: Sequence[str] | None, option: str) -> "dict[str | None, list[Concept]] | None":
    """Concepts by class, None for all classes; see [`read_term`]."""
    terms: dict[str | None, list[Concept]] = {}
    for text in texts or ():
        label, concept = read_term(config, text, option)
        terms.setdefault(label, []).append(concept)
    return terms or None


def read_factors(config: Any, texts: Sequence[str] | None) -> "dict[str | None, dict[Concept, float]] | None":
    """Factors by class and concept, None for all classes; see [`read_term`]."""
    factors: dict[str | None, dict[Concept, float]] = {}
    for text in texts or ():
        term, _, number = text.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            raise ValueError(f"--scale takes CLASS=CONCEPT=FACTOR or CONCEPT=FACTOR; got {text!r}.") from None
        label, concept = read_term(config, term, "--scale")
        if concept in factors.setdefault(label, {}):
            raise ValueError(f"--scale gives {concept!r} two factors: give one.")
        factors[label][concept] = factor
    return factors or None


def measure(classifier: "ConceptClassifier", batches: "DataLoader", description: str) -> dict[str, Any]:
    """
    Class figures of a model on the images of a split.

    Returns:
        The metrics of the model's kind of label. Under "classes", where an image has one class: the number of images
        of each, the share of them that is right (None without any), and the number of images taken for it.

    Raises:
        ValueError: for a split without labels.
    """
    import torch
    from tqdm.auto import tqdm

    from ascent_vit.evaluation.evaluate import check_labels
    from ascent_vit.evaluation.metrics import label_metrics
    from ascent_vit.inference.mode import evaluation_mode, input_kind, size_options
    from modeling_ascent_vit.class_scores_ascent_vit import class_scores, score_function
    from modeling_ascent_vit.names_ascent_vit import class_names

    config, (device, dtype) = classifier.config, input_kind(classifier)
    function, metrics, pairs = score_function(config), label_metrics(config), []
    with evaluation_mode(classifier):
        for batch in tqdm(batches, desc=description, unit="batch"):
            labels = check_labels(batch.get("labels"), config)
            if labels is None:
                raise ValueError("The split has no labels to measure by: leave --dataset out, or name one that has.")
            pixels = batch["pixel_values"].to(device, dtype)
            logits = classifier(pixels, **size_options(config, pixels)).logits.double().cpu()
            metrics.update(class_scores(logits, function), labels)
            pairs.append((logits.argmax(-1), labels))
    if not pairs:
        raise ValueError("The split has no images: name one that has some.")
    classes = {}
    if config.problem_type != "multi_label_classification" and function == "softmax":
        predicted, labels = (torch.cat(values) for values in zip(*pairs, strict=True))
        for index, name in enumerate(class_names(config)):
            of_class, number = labels == index, int((labels == index).sum())
            right = int((predicted[of_class] == index).sum())
            classes[name] = {
                "images": number,
                "accuracy": right / number if number else None,
                "predicted": int((predicted == index).sum()),
            }
    figures = {name: float(value) for name, value in metrics.compute().items() if value.isfinite()}
    return figures | {"num_images": sum(len(labels) for _, labels in pairs), "classes": classes}


def print_edits(facts: dict[str, Any]) -> None:
    """Prints the model's edits, and the figures before and after, of the classes that the edit touches."""
    edits = facts["concept_edits"]
    for entry in edits[:MOST_ROWS]:
        whose = "all classes" if entry["class"] is None else entry["class"]
        what = "removed" if entry["factor"] == 0 else f"times {entry['factor']:g}"
        print(f"{whose}: {entry['concept']} ({entry['stream']}) {what}")
    if len(edits) != len(edits[:MOST_ROWS]):
        print(f"... {len(edits) - MOST_ROWS} more in edit.json")
    if not edits:
        print("The model has no edits.")
    if "before" not in facts:
        return
    before, after = facts["before"], facts["after"]
    rows = [(name, before[name], after[name]) for name in after if isinstance(after[name], float) and name in before]
    touched = [name for name in facts["touched_classes"] if after["classes"][name]["images"]]
    shares = [(name, *(part["classes"][name]["accuracy"] for part in (before, after))) for name in touched]
    shares.sort(key=lambda row: -abs(row[1] - row[2]))
    rows += [(f"accuracy of {name}", old, new) for name, old, new in shares[:MOST_ROWS]]
    width = max(len(name) for name, _, _ in rows)
    print(f"{facts['split']}, {after['num_images']:,} images".ljust(width) + "  before   after")
    for name, old, new in rows:
        print(f"{name:{width}}  {old:6.4f}  {new:6.4f}")
    if len(shares) > MOST_ROWS:
        print(f"... {len(shares) - MOST_ROWS} more classes in edit.json")
