# SPDX-License-Identifier: Apache-2.0
"""The device to train on, and the precision that it computes fast in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env


def training_device() -> torch.device:
    """Asks Accelerate for the device that it trains on: an accelerator where there is one, or the CPU if told so."""
    on_cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=on_cpu).device


def has_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator says that it has units for bfloat16; what it only emulates is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    says = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return says is not None and bool(says())


def resolve_precision(
    asked: Literal["auto", "no", "bf16", "fp16"], device: torch.device
) -> Literal["no", "bf16", "fp16"]:
    """
    Decides on the mixed precision to train in.

    Args:
        asked: `mixed_precision` of the recipe: "auto", "no", "bf16" or "fp16".
        device: device to train on.

    Returns:
        "no", "bf16" or "fp16". For "auto", "bf16" on an accelerator that has units for it, else "no": on a CPU
        always, so that figures do not depend on which one it is.
    """
    if asked != "auto":
        return asked
    return "bf16" if device.type != "cpu" and has_bfloat16(device) else "no"


@contextmanager
def own_precision() -> Iterator[None]:
    """
    Lets a run have a mixed precision of its own.

    Accelerate keeps one for all accelerators of a process: what is first made in here is forgotten at the end, so that
    another run, or `Trainer`, may have another. Where there is an accelerator already, it keeps its precision.
    """
    is_own = not AcceleratorState._shared_state
    try:
        yield
    finally:
        if is_own:
            AcceleratorState._reset_state()


def check_precision(mixed_precision: str) -> None:
    """Checks that an accelerator of this mixed precision can be made in this process; ValueError otherwise."""
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        raise ValueError(
            f"This process has an accelerator with mixed_precision {AcceleratorState().mixed_precision}, and "
            f"Accelerate keeps one precision for all: set mixed_precision to it, or train with {mixed_precision} in a "
            "process of its own."
        )


__all__ = ["check_precision", "own_precision", "resolve_precision", "training_device"]
