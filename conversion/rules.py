# SPDX-License-Identifier: Apache-2.0
"""Rules for renaming: which tensors of a model a tensor of a checkpoint becomes, and the shape that it must have."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch


# Number of names of each kind that one message shows.
SHOWN_NAMES = 40


class Rule(NamedTuple):
    """
    Renames one tensor of a checkpoint.

    Args:
        source: name in the checkpoint.
        shape: shape that the tensor must have in the checkpoint.
        targets: names in the model; several get equal parts of the tensor along the first axis.
        factor: factor that the tensor is multiplied with.
    """

    source: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    factor: float = 1.0


def size(state: Mapping[str, torch.Tensor], name: str, axis: int) -> int:
    """Length of a tensor's axis; 0 if there is no such tensor or axis, as `check_rules` reports what is missing."""
    tensor = state.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else 0


def strip_prefix(state: Mapping[str, torch.Tensor], anchor: str, layout: str) -> dict[str, torch.Tensor]:
    """
    Strips the prefix of a wrapper from each name, as in `model.` or `module.`.

    Args:
        state: tensors by name.
        anchor: name that every checkpoint of the layout has.
        layout: name of the layout, for the error.

    Raises:
        ValueError: for a state dict without the anchor.
    """
    prefixes = [name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")]
    if not prefixes:
        raise ValueError(
            f"The checkpoint is not in the {layout} layout: it has no {anchor}, but {_listed(state)}. Choose "
            "another layout with --from, or give another checkpoint."
        )
    prefix = min(prefixes, key=len)
    # Names without the prefix are made unknown, so that none is taken for the name of a tensor with the prefix.
    return {
        name.removeprefix(prefix) if name.startswith(prefix) else f"{name} (outside {prefix})": tensor
        for name, tensor in state.items()
    }


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def check_rules(rules: list[Rule], state: Mapping[str, torch.Tensor], dropped: Iterable[str], layout: str) -> None:
    """
    Raises one `ValueError` that lists every name that is missing or unknown, and every wrong shape.

    Args:
        rules: rules, one for each tensor that is used.
        state: tensors by name.
        dropped: names that are known and not used.
        layout: name of the layout, for the error.
    """
    shapes = {rule.source: rule.shape for rule in rules}
    missing = [name for name in shapes if name not in state]
    unknown = sorted(set(state) - set(shapes) - set(dropped))
    problems = []
    if missing:
        problems.append(f"missing: {_listed(missing)}")
    if unknown:
        problems.append(f"unknown: {_listed(unknown)}")
    if not missing:
        # Expected shapes follow from other tensors: if one is missing, right shapes would be reported as wrong.
        wrong = [
            f"{name} is {tuple(state[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if tuple(state[name].shape) != shape
        ]
        if wrong:
            problems.append(f"wrong shapes: {_listed(wrong)}")
    if problems:
        raise ValueError(f"The checkpoint does not fit the {layout} layout; {'; '.join(problems)}.")


def apply_rules(rules: list[Rule], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Makes the model's tensors, by name; numbers become float32, whatever precision the checkpoint has."""
    converted: dict[str, torch.Tensor] = {}
    for rule in rules:
        tensor = state[rule.source]
        if tensor.is_floating_point():
            # Scaled in float64, so that it is rounded once.
            tensor = (tensor.double() * rule.factor).float()
        parts = tensor.chunk(len(rule.targets)) if len(rule.targets) > 1 else (tensor,)
        converted |= zip(rule.targets, parts, strict=True)
    return converted


def setting(settings: Mapping[str, Any], name: str, default: Any, assumed: dict[str, Any], place: str = "") -> Any:
    """Returns a setting, or its default, which it then adds to `assumed` under `place` and its name."""
    return settings[name] if name in settings else assumed.setdefault(place + name, default)


def check_agreement(settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises one `ValueError` that lists every setting that the checkpoint's shapes contradict."""
    problems = [
        f"{name} is {settings[name]}, the checkpoint has {value}"
        for name, value in found.items()
        if name in settings and settings[name] != value
    ]
    if problems:
        raise ValueError(f"--config and the checkpoint disagree: {'; '.join(problems)}.")


__all__ = ["Rule", "apply_rules", "check_agreement", "check_rules", "setting", "size", "strip_prefix"]
