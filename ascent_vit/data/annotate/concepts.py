# SPDX-License-Identifier: Apache-2.0
"""The concepts that a detector looks for, and the file that names them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class DetectedConcept:
    """
    A concept to look for.

    Args:
        name: name of the concept in the dataset.
        prompt: words that the detector is asked for.
        threshold: score above which a box is kept, 0 to 1.
    """

    name: str
    prompt: str
    threshold: float


def _concept(name: str, entry: Any, threshold: float, path: Path) -> DetectedConcept:
    if entry is None:
        entry = {}
    if not isinstance(entry, Mapping) or set(entry) - {"prompt", "threshold"}:
        raise ValueError(
            f"{path}: the concept {name!r} may have prompt and threshold, as in beak: {{prompt: a bird's beak, "
            f"threshold: 0.3}}; got {entry!r}."
        )
    prompt, own = entry.get("prompt", name), entry.get("threshold", threshold)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{path}: the prompt of {name!r} must be text; got {prompt!r}.")
    if isinstance(own, bool) or not isinstance(own, int | float) or not 0 <= own <= 1:
        raise ValueError(f"{path}: the threshold of {name!r} must be a number from 0 to 1; got {own!r}.")
    return DetectedConcept(name, " ".join(prompt.split()), float(own))


def _yaml_entries(text: str, path: Path) -> list[tuple[str, Any]]:
    """Reads names and entries of YAML. Names stay as they are typed, such as `no` and `1`, also repeated ones."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
            return [(item.value, None) for item in node.value]
        if isinstance(node, yaml.MappingNode) and all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            return [(key.value, loader.construct_object(value, deep=True)) for key, value in node.value]
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    raise ValueError(f"{path} must map each concept to its prompt and threshold, or list the concepts.")


def read_concepts(path: str | Path, threshold: float = 0.2) -> list[DetectedConcept]:
    """
    Reads the concepts to look for from a file.

    Args:
        path: text file with one concept per line, or YAML (.yaml, .yml) that maps each concept to nothing or to its
            `prompt` (by default its name) and `threshold`, as in `beak: {prompt: a bird's beak, threshold: 0.3}`.
        threshold: threshold of the concepts without their own, 0 to 1.

    Returns:
        The concepts in the order of the file.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for a file without concepts or in another encoding than UTF-8, a repeated concept or prompt, or a
            threshold outside 0 to 1.
    """
    path = Path(path)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a number from 0 to 1; got {threshold}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected concepts, one per line, or YAML.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        entries = _yaml_entries(text, path)
    else:
        entries = [(line, None) for line in text.splitlines()]
    entries = [(" ".join(name.split()), entry) for name, entry in entries if name.strip()]
    if not entries:
        raise ValueError(f"{path} names no concept; expected one per line, or YAML.")
    concepts = [_concept(name, entry, threshold, path) for name, entry in entries]
    for what, values in (("concept", [c.name for c in concepts]), ("prompt", [c.prompt.lower() for c in concepts])):
        repeated = [value for value, number in Counter(values).items() if number > 1]
        if repeated:
            raise ValueError(f"{path}: the {what} {repeated[0]!r} is there twice; give each concept its own {what}.")
    return concepts


__all__ = ["DetectedConcept", "read_concepts"]
