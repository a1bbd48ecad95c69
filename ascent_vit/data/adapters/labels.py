# SPDX-License-Identifier: Apache-2.0
"""The class and the group of annotated images, and their concepts of the whole image."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from modeling_ascent_vit.suggestions_ascent_vit import suggest

from .annotated import AnnotatedImage, Reading, private_form
from .tables import add_table


YES, NO = {"1", "true", "yes", "y"}, {"0", "-1", "false", "no", "n"}


def _names(values: Iterable[str]) -> str:
    counted = Counter(values)
    return ", ".join(name for name, _ in counted.most_common(5)) + (" ..." if len(counted) > 5 else "") or "none"


def ways(reading: Reading) -> str:
    """Ends a sentence with the ways to give classes, and what there is of each."""
    images = list(reading.images.values())
    tags = [answer for image in images for question, answer in image.tags if not question]
    questions = sorted({question for image in images for question, _ in image.tags if question})
    folders = [folder for path in reading.files.paths if (folder := reading.files.class_folder(path))]
    shapes = [thing.name for image in images for thing in image.things]
    fields = {name for image in images for name in image.fields}
    return (
        f"--option class_from=folder (folders: {_names(folders)}), class_from=tag (tags: {_names(tags)}), "
        f"class_from=tag:QUESTION (questions: {_names(questions)}), class_from=category:NAME or category:NAME,NAME "
        f"(categories: {_names(shapes)}), class_from=field:NAME (fields: {_names(sorted(fields))}), or "
        "class_from=csv:FILE with columns file_name and class."
    )


def _check_names(option: str, names: list[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: nothing is called {name!r}; {suggest(name, sorted(known))}")


def _categories(image: AnnotatedImage) -> set[str]:
    return {thing.name for thing in image.things} | {answer for question, answer in image.tags if not question}


def _by_category(image: AnnotatedImage, names: list[str]) -> list[str]:
    found = _categories(image)
    if len(names) == 1:
        # What was not taken may be it.
        known = image.looked_at and (names[0] in found or not image.unread)
        return [names[0] if names[0] in found else f"no {names[0]}"] if known else []
    return [name for name in names if name in found]


def find_classes(
    reading: Reading, class_from: str | None, classes: list[str] | None, source: Path
) -> tuple[dict[Path, str], tuple[str, ...]]:
    """
    Finds the class of each image.

    Args:
        reading: images with their annotations; tags and fields that tell the class are taken out.
        class_from: folder, tag, tag:QUESTION, category:NAME, category:NAME,NAME, field:NAME or csv:FILE.
        classes: names of the classes, where not all that is found is one.
        source: folder that a relative FILE may be in.

    Returns:
        The class by image file, and names of concepts that would tell it: none, or those of its category.

    Raises:
        ValueError: without `class_from`, for one that finds nothing, or an image with two classes.
    """
    kind, _, detail = (class_from or "").partition(":")
    detail = detail.strip()
    named = ("category", "field", "csv")
    if kind not in ("folder", "tag", *named) or (kind in named and not detail):
        said = f"class_from={class_from} is unknown" if class_from else "Annotations have no class of the image"
        raise ValueError(f"{said}: say where it is, by {ways(reading)}")
    column = detail
    if kind == "csv":
        file = Path(detail).expanduser()
        column = add_table(file if file.is_file() else source / detail, reading)
    names = [name.strip() for name in detail.split(",")] if kind == "category" else []
    _check_names("class_from", names, {name for image in reading.images.values() for name in _categories(image)})
    unlisted = [path for path in reading.files.paths if path not in reading.images]
    found = {path: folder for path in unlisted if kind == "folder" and (folder := reading.files.class_folder(path))}
    seen = set(found.values())
    found = {path: name for path, name in found.items() if not classes or name in classes}
    for path, image in reading.images.items():
        if kind == "category":
            own = _by_category(image, names)
        elif kind == "tag":
            own = [answer for question, answer in image.tags if question == detail]
        else:
            own = [(reading.files.class_folder(path) if kind == "folder" else image.fields.get(column)) or ""]
        seen.update(own)
        own = [name for name in dict.fromkeys(own) if name and (not classes or name in classes)]
        if len(own) > 1 and kind != "category":
            hint = "name the classes with --option classes=[A, B]" if not classes else "remove one"
            raise ValueError(f"{image.where}: the image has the classes {' and '.join(own)}: {hint}.")
        if len(own) == 1:
            found[path] = own[0]
        else:
            reading.counts[f"images with {'several classes' if own else 'no class'}, left out"] += 1
        if kind == "tag":
            image.tags = [tag for tag in image.tags if tag[0] != detail or (classes and tag[1] not in classes)]
        elif kind in ("field", "csv"):
            image.fields.pop(column, None)
    _check_names("classes", classes or [], seen)
    if not found:
        raise ValueError(f"class_from={class_from} finds no class of any image; there are {ways(reading)}")
    return found, tuple(names)


def add_field_concepts(reading: Reading, columns: list[str]) -> None:
    """
    Makes questions of the whole image of fields, whose cells are the answers.

    Several answers in a cell are separated by a semicolon or a bar; an empty cell is not known.

    Raises:
        ValueError: for a column that no image has.
    """
    for column in columns:
        known = {name for image in reading.images.values() for name in image.fields}
        if column not in known:
            raise ValueError(f"concepts_from: no image has the column {column!r}; {suggest(column, sorted(known))}")
        for image in reading.images.values():
            answers = (part.strip() for part in re.split("[;|]", image.fields.get(column, "")))
            image.tags += [(column, answer) for answer in answers if answer]


def concept_name(question: str, answer: str) -> str | None:
    """The concept of an answer: the question itself where the answer is yes, None where it is no."""
    if not question or answer.lower() in NO:
        return None if question else answer
    return question if answer.lower() in YES else f"{question}: {answer}"


def leave_out_numbers(reading: Reading) -> None:
    """Takes out the answers to questions whose answers are numbers: each would be a concept of its own."""
    answers: dict[str, set[str]] = {}
    tags = [tag for image in reading.images.values() for tag in image.tags]
    tags += [tag for image in reading.images.values() for shape in image.shapes for tag in shape.attributes]
    for question, answer in tags:
        answers.setdefault(question, set()).add(answer.lower())
    numeric = {
        question
        for question, found in answers.items()
        if question and not found <= YES | NO and all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", answer) for answer in found)
    }
    for question in sorted(numeric):
        number = sum(other == question for other, _ in tags)
        reading.counts[f"answers to {question}, which are numbers and no concepts"] = number
    for image in reading.images.values():
        image.tags = [tag for tag in image.tags if tag[0] not in numeric]
        for shape in image.shapes:
            shape.attributes = [tag for tag in shape.attributes if tag[0] not in numeric]


def keep_concepts(reading: Reading, names: list[str] | None) -> None:
    """
    Takes out the shapes and points of other names.

    Raises:
        ValueError: for a name that no shape or point has.
    """
    if names is None:
        return
    _check_names("concepts", names, {thing.name for image in reading.images.values() for thing in image.things})
    for image in reading.images.values():
        number = len(image.shapes) + len(image.points)
        image.shapes = [shape for shape in image.shapes if shape.name in names]
        image.points = [point for point in image.points if point.name in names]
        reading.counts["places of other names than concepts, left out"] += (
            number - len(image.shapes) - len(image.points)
        )


def find_groups(reading: Reading, group: str | None, paths: Iterable[Path]) -> dict[Path, str]:
    """
    Finds what images belong together: of the same folder, or with the same value of a field or answer to a question.

    Raises:
        ValueError: for a field or question that no image has.
    """
    if group is None:
        return {}
    if group == "folder":
        return {path: str(path.parent.relative_to(reading.files.root)) for path in paths}
    found = {}
    for path, image in reading.images.items():
        value = image.fields.get(group) or next((answer for question, answer in image.tags if question == group), "")
        if value:
            found[path] = value
    if not found:
        known = {name for image in reading.images.values() for name in (*image.fields, *dict(image.tags)) if name}
        raise ValueError(f"group={group}: no image has it; {suggest(group, ['folder', *sorted(known)])}")
    return found


def public_groups(groups: dict[Path, str], private: set[str]) -> dict[Path, str]:
    """Groups as they are, or numbers in the order of the images where they bear names or numbers of patients."""
    if not private & {private_form(name) for name in groups.values()}:
        return groups
    numbers = {name: f"g{number:04d}" for number, name in enumerate(dict.fromkeys(groups.values()), start=1)}
    return {path: numbers[name] for path, name in groups.items()}


def check_private(names: Iterable[str], private: set[str]) -> None:
    """Raises ValueError for names of classes or concepts that are those of patients."""
    # Of an answer to a question, "question: answer", the answer.
    number = sum(private_form(name.rpartition(": ")[2]) in private for name in names)
    if number:
        raise ValueError(
            f"{number} names of classes or concepts are names or numbers of patients, as those of their folders may "
            "be: give the classes otherwise, as by --option class_from=csv:FILE."
        )


__all__ = [
    "add_field_concepts",
    "check_private",
    "concept_name",
    "find_classes",
    "find_groups",
    "keep_concepts",
    "leave_out_numbers",
    "public_groups",
    "ways",
]
