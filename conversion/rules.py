# SPDX-License-Identifier: Apache-2.0
"""Renaming rules: which tensor of a checkpoint becomes which tensors of a model, and what it must look like."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch


# Names that one message shows of each kind.
SHOWN_NAMES = 40


class Rule(NamedTuple):
    """
    One tensor of a checkpoint.

    Args:
        source: its name in the checkpoint.
        shape: the shape that it must have there.
        targets: names in the model; more than one share it in equal parts along the first axis.
        factor: what it is multiplied with.
    """

    source: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    factor: float = 1.0


def size(state: Mapping[str, torch.Tensor], name: str, axis: int) -> int:
    """Length of a tensor's axis, 0 where there is no such tensor or axis: what is missing is told by `check_rules`."""
    tensor = state.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else 0


def strip_prefix(state: Mapping[str, torch.Tensor], anchor: str, layout: str) -> dict[str, torch.Tensor]:
    """
    The state dict without what wrappers put before each name, as in `model.` or `module.`.

    Args:
        state: names to tensors.
        anchor: a name that every checkpoint of the layout has.
        layout: the layout's name, for the message.

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
    # What lies outside keeps its name and something more, so that it is unknown and never taken for what lies inside.
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
        rules: one for each tensor that is used.
        state: names to tensors.
        dropped: names that are known and not used.
        layout: the layout's name, for the message.
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
        # Shapes follow from each other, so that next to something missing they would be wrong without reason.
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
    """The model's tensors by their names; numbers in float32, whatever precision the checkpoint has."""
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
    """A setting, or its default, which is then written to `assumed` under `place` and its name."""
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
