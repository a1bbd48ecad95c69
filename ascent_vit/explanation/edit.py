# SPDX-License-Identifier: Apache-2.0
"""`edit`: takes concepts out of what a model judges by, or scales what they contribute, for good."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modeling_ascent_vit.edits_ascent_vit import Terms, check_factor, write_edits
from modeling_ascent_vit.names_ascent_vit import class_index, class_names, concept_names, find_concept

from .intervene import Concept


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptClassifier

# Names of concepts by class, by its name or index; None for all classes. Without classes, of all of them.
ClassId = int | str | None
Chosen = Concept | Sequence[Concept] | Mapping[ClassId, Concept | Sequence[Concept]]
Scaled = Mapping[Concept, float] | Mapping[ClassId, Mapping[Concept, float]]


class _Names:
    """Finds classes and concepts of a model by their names."""

    def __init__(self, config: Any):
        self.labels, self.concepts = class_names(config), concept_names(config)

    def classes(self, class_id: ClassId) -> Sequence[int]:
        return range(len(self.labels)) if class_id is None else [class_index(class_id, self.labels)]

    def concept(self, concept: Concept) -> tuple[str, int]:
        if not isinstance(concept, str | tuple):
            raise ValueError(f"A concept is given by its name, or as (stream, name); got {concept!r}.")
        stream, name = concept if isinstance(concept, tuple) else (None, concept)
        return find_concept(name, self.concepts, stream)

    def chosen(self, argument: str, chosen: Chosen) -> Iterator[tuple[Sequence[int], list[tuple[str, int]]]]:
        """The classes and concepts of each entry."""
        by_class = chosen if isinstance(chosen, Mapping) else {None: chosen}
        for class_id, given in by_class.items():
            concepts = [given] if isinstance(given, str | tuple) else given
            if not isinstance(concepts, Sequence) or not concepts:
                raise ValueError(
                    f"{argument} takes names of concepts, in a list or in a dict of lists; got {given!r}."
                )
            yield self.classes(class_id), [self.concept(concept) for concept in concepts]

    def all_concepts(self) -> Iterator[tuple[str, int]]:
        for stream, names in self.concepts.items():
            yield from ((stream, index) for index in range(len(names)))


def scaled_by_class(scale: Scaled) -> Mapping[Any, Mapping[Concept, float]]:
    """Factors by class, of which None is all."""
    nested = [isinstance(value, Mapping) for value in scale.values()]
    if any(nested) and not all(nested):
        raise ValueError(
            "scale has factors by concept, for all classes, or by class and concept; got both: name all classes None."
        )
    return scale if all(nested) else {None: scale}  # type: ignore[return-value,dict-item]


def new_factors(config: Any, remove: Chosen | None, only: Chosen | None, scale: Scaled | None) -> Terms:
    """
    Factors of terms that an edit asks for, also those that are 1.

    Args:
        config: configuration of the model.
        remove, only, scale: see [`edit`].

    Raises:
        ValueError: see [`edit`].
    """
    names = _Names(config)
    terms: Terms = {}

    def put(classes: Sequence[int], stream: str, concept: int, factor: float) -> None:
        for index in classes:
            if terms.setdefault((stream, concept, index), factor) != factor:
                raise ValueError(
                    f"The {stream} concept {names.concepts[stream][concept]!r} is given two factors for the class "
                    f"{names.labels[index]!r}: say one thing of each in one call."
                )

    kept = set()
    for classes, concepts in names.chosen("only", only) if only is not None else ():
        kept |= {(*concept, index) for concept in concepts for index in classes}
        for stream, concept in names.all_concepts():
            if (stream, concept) not in concepts:
                put(classes, stream, concept, 0.0)
    for classes, concepts in names.chosen("remove", remove) if remove is not None else ():
        for stream, concept in concepts:
            if any((stream, concept, index) in kept for index in classes):
                raise ValueError(f"{names.concepts[stream][concept]!r} is in both only and remove: leave one out.")
            put(classes, stream, concept, 0.0)
    for class_id, factors in scaled_by_class(scale).items() if scale is not None else ():
        for name, factor in factors.items():
            check_factor(factor, repr(name))
            put(names.classes(class_id), *names.concept(name), float(factor))
    return terms


def edit(
    model: "ConceptClassifier",
    remove: Chosen | None = None,
    only: Chosen | None = None,
    scale: Scaled | None = None,
    undo: bool = False,
) -> list[dict[str, Any]]:
    r"""
    Removes concepts from what a model judges by, or scales what they contribute, for some classes or for all.

    A class score is an exact sum of what each concept contributed, so one term can be changed and no other is: after
    the edit, the term of a concept and a class is exactly 0, or the factor times what it was, at every place of every
    image. The model is edited in place, and its parameters are not touched. Edits are part of the model: they are
    saved and exported with it, hold in further training, and `config.concept_edits` and the model card name them.

    Edits add up over several calls. A factor is of the term as it was trained, so the last one given to a term counts,
    and 1 takes an edit back.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        remove (`list` or `dict`, *optional*):
            Concepts whose terms become 0: for all classes as one name or a list of names, or by class as
            `{"cormorant": ["water", "sky"]}`. A class is given by name or index, or None for all; a concept by its
            name, or as `(stream, name)` where two streams have the name.
        only (`list` or `dict`, *optional*): Concepts that are kept, in the same form; all others are removed.
        scale (`dict`, *optional*):
            Factors, from 0 to 10,000: for all classes as `{"water": 0.5}`, or by class as
            `{"cormorant": {"water": 0.5}}`.
        undo (`bool`, *optional*, defaults to `False`):
            Whether to take all edits back, given alone. The model is then, bit for bit, what it was without them.

    Returns:
        `list[dict]`: all edits of the model now, each with `class` (None for all), `concept`, `stream` and `factor`.

    Raises:
        ValueError: for a class or concept that the model does not have, or has several of; a factor out of range; two
            factors of one term; nothing to do; or a model whose code is too old for edits. It is then as it was.

    Example:

    ```python
    >>> edit(model, remove={"cormorant": ["water"]})
    [{'class': 'cormorant', 'concept': 'water', 'stream': 'spatial', 'factor': 0.0}]
    >>> model.save_pretrained("edited")
    >>> edit(model, undo=True)
    []
    ```
    """
    if not hasattr(model, "edit_concepts"):
        raise ValueError(
            "The model's code is too old for edits: load it with this package's code (trust_remote_code=False)."
        )
    is_asked = any(argument is not None for argument in (remove, only, scale))
    if is_asked == undo:
        raise ValueError("edit takes remove, only or scale, or undo=True alone.")
    if undo:
        model.edit_concepts(None)
    else:
        terms = model.edited_terms() | new_factors(model.config, remove, only, scale)
        model.edit_concepts(write_edits(model.config, terms))
    return list(model.config.concept_edits or [])


__all__ = ["edit"]
