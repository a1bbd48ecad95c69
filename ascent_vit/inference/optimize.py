# SPDX-License-Identifier: Apache-2.0
"""Compiles a model for serving, with its weights frozen."""

import copy
from typing import TYPE_CHECKING

import torch

from ascent_vit.utils.hardware import warn_if_slow


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def optimize_for_inference(model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """
    Copies a model for serving on a CPU.

    The copy is compiled at the first call (half a minute; again for another image size and for other outputs), with
    its weights packed for the CPU. It is used as before: called, in pipelines, by [`explain`]. It runs only without
    gradients, in `torch.no_grad()` or `torch.inference_mode()`.

    In the model's own dtype the results are equal up to rounding. `torch.bfloat16` rounds weights and activations to
    eight bits, which is much faster on CPUs with matrix units for it; docs/speed.md says what it changes. On a CPU
    without them it is slower, and a warning says so.

    Args:
        model: model to copy, an `AscentViTForImageClassification` or `AscentViTModel`, also one loaded as remote code.
        dtype: dtype to compute in; by default the model's.

    Returns:
        A model of the same class, in evaluation mode, without gradients. Changes of the given model's weights do not
        reach it, and its own weights must not be changed.

    Raises:
        RuntimeError: without a C++ compiler.
        ValueError: for a dtype that is not floating point.

    Example:

    ```python
    >>> fast = optimize_for_inference(model, torch.bfloat16)
    >>> with torch.no_grad():
    ...     outputs = fast(pixel_values.to(fast.dtype))
    ```
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, for example torch.bfloat16; got {dtype}.")
    if dtype is not None:
        warn_if_slow(dtype, "inference in float32")
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            "optimize_for_inference needs a C++ compiler: install g++ or clang, or export the model to ONNX with "
            "ascent-vit export."
        ) from error
    optimized = copy.deepcopy(model).eval().requires_grad_(False)
    if dtype is not None:
        optimized = optimized.to(dtype)
    optimized.compile(options={"freezing": True})
    return optimized


__all__ = ["optimize_for_inference"]
