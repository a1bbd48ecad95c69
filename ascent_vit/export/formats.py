# SPDX-License-Identifier: Apache-2.0
"""Writes the file of each format by transformers' exporters, from the model as one traced graph."""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptClassifier

# Packages that writing and checking a format needs; pip and Python call them the same.
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch-export": (),
    "aotinductor": (),
    "openvino": ("openvino",),
}

# Precisions of each format besides float32.
QUANTIZATIONS = {
    "onnx": ("int8",),
    "torch-export": ("bf16",),
    "aotinductor": ("bf16",),
    "openvino": (),
}

REFUSED_QUANTIZATIONS = {
    ("onnx", "bf16"): "onnxruntime lacks bfloat16 kernels on CPUs",
}

OUTPUTS = (
    "logits",
    "global_concept_attention",
    "spatial_concept_attention",
    "unsupervised_concept_attention",
    "concept_contributions",
    "global_concept_attention_heads",
    "spatial_concept_attention_heads",
    "patch_grid",
)

# Larger ONNX files do not fit into one protobuf message, and keep their weights in a file beside them.
MAX_ONNX_BYTES = 1_800_000_000


class ExportableModel(nn.Module):
    """
    Computes what an explanation needs from pixels alone: `(B, C, H, W) float32 -> dict` of tensors, keys of `OUTPUTS`.

    Args:
        model (`AscentViTForImageClassification`): the model in evaluation mode.
        interpolate_pos_encoding (`bool`): whether the images have another size than the backbone's.
    """

    def __init__(self, model: "ConceptClassifier", interpolate_pos_encoding: bool):
        super().__init__()
        # Exporters cast the inputs to the dtype of the first parameter: the head's is always float32.
        self.head = nn.ModuleList(model.streams().values())
        self.model = model
        self.config = model.config
        self.interpolate_pos_encoding = interpolate_pos_encoding

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(
            pixel_values,
            output_contributions=True,
            output_concept_heads=True,
            interpolate_pos_encoding=self.interpolate_pos_encoding,
            return_dict=True,
        )
        return {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}


def in_bfloat16(model: "ConceptClassifier") -> "ConceptClassifier":
    """
    Copies a model with backbone and pyramid in bfloat16.

    The concept head stays in float32, so that contributions and biases still add up to the logits.
    """
    model = copy.deepcopy(model)
    model.ascent_vit.to(torch.bfloat16)
    model.ascent_vit.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0].to(torch.bfloat16), *args[1:]), kwargs), with_kwargs=True
    )
    for stream in model.streams().values():
        stream.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))
    return model


def check_format(to: str, quantize: str) -> None:
    """
    Checks that a format can be written here.

    Raises:
        ValueError: for an unknown format, or a precision that the format does not have.
        ModuleNotFoundError: for packages that are missing.
        RuntimeError: without the C++ compiler that AOTInductor needs.
    """
    if to == "executorch":
        raise ValueError(
            "ExecuTorch cannot run the model (executorch 1.5: its partitioner fails on a dynamic batch, and a program "
            "for one image crashes): use onnx, openvino, torch-export or aotinductor."
        )
    if to not in PACKAGES:
        raise ValueError(f"--to must be one of {', '.join(PACKAGES)}; got {to!r}.")
    if quantize not in ("none", *QUANTIZATIONS[to]):
        reason = REFUSED_QUANTIZATIONS.get((to, quantize))
        known = ", ".join(("none", *QUANTIZATIONS[to]))
        raise ValueError(f"{to} takes --quantize {known}; got {quantize!r}{f': {reason}' if reason else ''}.")
    missing = [name for name in PACKAGES[to] if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"Exporting to {to} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if to == "aotinductor":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError) as error:
            raise RuntimeError("AOTInductor compiles C++ and found no compiler: install g++ or clang++.") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silences exporters and quantizers, whose notes say nothing about the model."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _dynamo_arguments(image_shape: tuple[int, int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace with, and their dimensions that vary: the batch."""
    pixel_values = torch.zeros(2, *image_shape)
    return {"pixel_values": pixel_values}, {"pixel_values": {0: torch.export.Dim("batch", min=1)}}


def _own_gemm_weights(program: Any) -> None:
    """
    Gives every Gemm of an ONNX model a weight that no other node reads.

    ONNX Runtime's quantizer transposes the weights of all Gemms in place, also those that other nodes read.
    """
    import onnx_ir

    for node in program.graph:
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is not None and weight.is_initializer() and len(weight.uses()) > 1:
            own = onnx_ir.Value(
                name=f"{weight.name}.{node.name}", shape=weight.shape, type=weight.type, const_value=weight.const_value
            )
            program.graph.register_initializer(own)
            node.replace_input_with(1, own)


def _int8(program: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """Quantises the linear layers of backbone and fusion: int8 weights, activations quantised at run time."""
    from transformers.exporters import ExportFormat, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    _own_gemm_weights(program)
    names = []
    for node in program.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        # The concept head stays float32, so that contributions still add up, and so do the layers that say where the
        # fusion looks.
        if node.op_type in ("MatMul", "Gemm") and "'model.ascent_vit'" in scopes and "fusion.sampling_" not in scopes:
            names.append(node.name)
    # 7 bits, as products of 8 bits overflow on CPUs without VNNI.
    config = OnnxRuntimeDynamicConfig(nodes_to_quantize=names, per_channel=True, reduce_range=True)
    return OnnxRuntimeQuantizer(config).quantize(program, inputs, ExportFormat.ONNX)


def write_onnx(module: nn.Module, image_shape: tuple[int, int, int], folder: Path, quantize: str) -> None:
    """Writes `model.onnx`, and from 1.8 GB on `model.onnx.data` beside it."""
    import onnx_ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    inputs, dynamic_shapes = _dynamo_arguments(image_shape)
    program = OnnxExporter().export(module, inputs, OnnxConfig(dynamic_shapes=dynamic_shapes)).program  # type: ignore[arg-type]
    if quantize == "int8":
        program = _int8(program, inputs)
    for graph in program.graphs():
        for node in graph:
            # These notes hold paths of the exporting machine.
            node.metadata_props.clear()
            node.doc_string = None
    size = sum(
        value.const_value.nbytes for value in program.graph.initializers.values() if value.const_value is not None
    )
    external = "model.onnx.data" if size > MAX_ONNX_BYTES else None
    onnx_ir.save(program, str(folder / "model.onnx"), external_data=external)


def _trace(module: nn.Module, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    from transformers.exporters import DynamoConfig, DynamoExporter

    inputs, dynamic_shapes = _dynamo_arguments(image_shape)
    program = DynamoExporter().export(module, inputs, DynamoConfig(dynamic_shapes=dynamic_shapes)).program  # type: ignore[arg-type]
    for node in program.graph_module.graph.nodes:
        # It holds paths of the exporting machine.
        node.meta.pop("stack_trace", None)
    return program


def write_torch_export(module: nn.Module, image_shape: tuple[int, int, int], folder: Path, quantize: str) -> None:
    """Writes `model.pt2` for `torch.export.load`."""
    torch.export.save(_trace(module, image_shape), folder / "model.pt2")


def write_aotinductor(module: nn.Module, image_shape: tuple[int, int, int], folder: Path, quantize: str) -> None:
    """Writes `model.pt2` for `torch._inductor.aoti_load_package`: machine code for this kind of CPU."""
    program = _trace(module, image_shape)
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))


def write_openvino(module: nn.Module, image_shape: tuple[int, int, int], folder: Path, quantize: str) -> None:
    """Writes `model.xml` and `model.bin`."""
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    inputs, dynamic_shapes = _dynamo_arguments(image_shape)
    program = OpenVINOExporter().export(module, inputs, OpenVINOConfig(dynamic_shapes=dynamic_shapes)).program  # type: ignore[arg-type]
    OpenVINOExporter.save_program(program, folder / "model.xml")


WRITERS: dict[str, Callable[[nn.Module, tuple[int, int, int], Path, str], None]] = {
    "onnx": write_onnx,
    "torch-export": write_torch_export,
    "aotinductor": write_aotinductor,
    "openvino": write_openvino,
}


__all__ = ["PACKAGES", "QUANTIZATIONS", "WRITERS", "ExportableModel", "check_format", "in_bfloat16", "quietly"]
