# SPDX-License-Identifier: Apache-2.0
"""Export: what the written folder holds, that it answers as the model does, and that what does not is refused."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from ascent_vit import explain
from ascent_vit.export import example, export_model, measure_quantization
from ascent_vit.export.check import ExportError, check_export
from ascent_vit.export.export import image_settings, processed_shape
from ascent_vit.export.formats import WRITERS, ExportableModel, check_format, in_bfloat16
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.image_processing_pil_ascent_vit import AscentViTImageProcessorPil


SHAPE = (3, 48, 40)
STREAMS = {"num_global_concepts": 3, "num_spatial_concepts": 4, "num_unsupervised_concepts": 2}


def make_model(backbone: str = "vit", **kwargs) -> AscentViTForImageClassification:
    """A model of 48x40 pixels and 6x5 patches whose fusion and streams all count."""
    backbone_config = {
        "model_type": backbone,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": list(SHAPE[1:]),
        "patch_size": 8,
        **kwargs.pop("backbone_kwargs", {}),
    }
    kwargs = {"fusion_heads": 4, "num_labels": 5, **(kwargs or STREAMS)}
    torch.manual_seed(0)
    model = AscentViTForImageClassification(AscentViTConfig(backbone_config=backbone_config, **kwargs)).eval()
    with torch.no_grad():
        if model.ascent_vit.fusion is not None:
            model.ascent_vit.fusion.gamma.normal_()
            model.ascent_vit.fusion.sampling_offsets.weight.normal_(std=0.5)
        for stream in model.streams().values():
            stream.query.weight.normal_(std=0.3)
            stream.projection.weight.normal_()
            stream.projection.bias.normal_()
    return model


def make_processor(model, **kwargs):
    return AscentViTImageProcessorPil.from_model_config(model.config, **kwargs)


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(pixels)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def run_module(module):
    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {name: value.numpy() for name, value in module(torch.from_numpy(pixels)).items()}

    return run


def float64_outputs(model, pixels: torch.Tensor):
    """What the model gives in double precision."""
    double = AscentViTForImageClassification(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    with torch.no_grad():
        return double(pixels.double(), output_contributions=True, output_concept_heads=True)


@pytest.fixture(scope="module")
def model():
    return make_model(none_concept=True, **STREAMS)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Folder and report of the model as ONNX."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    return folder, export_model(model, make_processor(model), folder, name="tiny", seed=3)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_onnx_agrees_with_the_model_in_double_precision(model, exported, batch_size):
    pixels = torch.randn(batch_size, *SHAPE)
    expected = float64_outputs(model, pixels)
    got = example.load(exported[0])(pixels.numpy())
    assert list(got) == exported[1]["outputs"] and len(got) == 8
    for name, value in got.items():
        assert value.shape == expected[name].shape and value.shape[0] == batch_size
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-5 if name != "logits" else 1e-4)


def test_onnx_samples_by_gather_and_not_in_a_loop(exported):
    import onnx

    operators = {node.op_type for node in onnx.load(exported[0] / "model.onnx").graph.node}
    assert operators.isdisjoint({"Loop", "Scan", "If"}) and any(name.startswith("Gather") for name in operators)


def test_folder_is_whole_and_names_no_file_of_this_machine(exported):
    folder, report = exported
    names = {"README.md", "example.py", "export.json", "model.onnx", "preprocessing.json", "tables.npz"}
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.iterdir():
        content = path.read_bytes()
        assert os.getcwd().encode() not in content and b"site-packages" not in content
    assert report["seed"] == 3 and report["bytes"] == (folder / "model.onnx").stat().st_size
    assert 0 < max(report["max_differences"].values()) < 1e-4
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]


def test_names_and_sizes_are_written_down(model, exported):
    facts = json.loads((exported[0] / "preprocessing.json").read_text())
    assert facts["classes"] == [f"LABEL_{i}" for i in range(5)]
    assert [concept["name"] for concept in facts["concepts"]] == model.config.concepts
    assert [concept["stream"] for concept in facts["concepts"]] == ["global"] * 3 + ["spatial"] * 4 + [
        "unsupervised"
    ] * 2
    assert (facts["channels"], facts["height"], facts["width"], facts["patch_size"]) == (3, 48, 40, [8, 8])
    readme = (exported[0] / "README.md").read_text()
    assert "# tiny for ONNX Runtime" in readme and "| `concept_contributions` | batch, 9, 5 |" in readme


def test_example_maps_are_those_of_the_model(model, exported):
    pixels = torch.randn(2, *SHAPE)
    outputs = example.load(exported[0])(pixels.numpy())
    with np.load(exported[0] / "tables.npz") as file:
        tables = dict(file)
    got = example.contribution_maps(outputs, tables, np.array([4, 1]))
    with torch.no_grad():
        expected = model.contribution_maps(pixels, [[4], [1]])[:, 0]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_example_prints_the_exact_sum(model, exported, tmp_path):
    image = random_image(60, 50)
    image.save(tmp_path / "image.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", exported[0] / "example.py", tmp_path / "image.png"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    inputs = make_processor(model)(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_contributions=True)
    check_shown(shown, model, outputs)


def check_shown(shown: str, model, outputs):
    """The example's words against the model's outputs for one image."""
    label = int(outputs.logits.argmax())
    lines = shown.splitlines()
    name, probability = re.match(r"(\S+): probability (\S+),", lines[1]).groups()
    assert name == model.config.id2label[label]
    assert float(probability) == pytest.approx(float(outputs.logits.softmax(-1).max()), abs=1e-4)
    score = float(re.search(r"score (\S+)", lines[1])[1])
    total = float(re.search(r"(\S+)  sum of all", shown)[1])
    assert score == pytest.approx(float(outputs.logits[0, label]), abs=1e-4) and total == pytest.approx(
        score, abs=1e-4
    )
    contributions = outputs.concept_contributions[0, :, label]
    strongest = int(contributions.abs().argmax())
    value, name = lines[2].split(maxsplit=1)
    assert name.startswith(model.config.concepts[strongest])
    assert float(value) == pytest.approx(float(contributions[strongest]), abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(8, 90),
    height=st.integers(8, 90),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK", "LA", "I;16"]),
    resample=st.sampled_from([0, 1, 2, 3, 4, 5]),
    parameters=st.sampled_from(
        [
            {},
            {"do_normalize": False},
            {"do_rescale": False},
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
            {"size": {"shortest_edge": 50}, "do_center_crop": True},
            {"size": {"shortest_edge": 33}, "do_center_crop": True},
            {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 31, "width": 44}},
        ]
    ),
)
def test_example_prepares_images_as_the_processor_does(tmp_path_factory, width, height, mode, resample, parameters):
    path = tmp_path_factory.mktemp("image") / ("image.tiff" if mode in ("CMYK", "I;16") else "image.png")
    random_image(width, height, mode).save(path)
    processor = AscentViTImageProcessorPil(
        **{"size": {"height": 48, "width": 40}, "crop_size": {"height": 48, "width": 40}, "resample": resample}
        | parameters
    )
    got = example.prepare(example.read_image(path), image_settings(processor))
    expected = processor(str(path), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode, suffix", [("RGB", "jpeg"), ("RGB", "png"), ("I;16", "tiff")])
def test_example_turns_photographs_upright(model, tmp_path, orientation, mode, suffix):
    """As `explain` does, so that both name the same class."""
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"image.{suffix}"
    random_image(60, 50, mode).save(path, exif=exif)
    processor = make_processor(model)
    explanation = explain(model, processor, path)
    pixels = example.prepare(example.read_image(path), image_settings(processor))
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels[None])).logits[0]
    np.testing.assert_allclose(logits.numpy(), explanation.logits, atol=1e-5)
    assert example.read_image(path).size == explanation.image.size == ((60, 50) if orientation < 5 else (50, 60))


@pytest.mark.parametrize(
    "kwargs, outputs",
    [
        (
            {"num_spatial_concepts": 3},
            ["logits", "spatial_concept_attention", "concept_contributions", "spatial_concept_attention_heads"],
        ),
        (
            {"num_global_concepts": 3, "global_token": "pool"},
            ["logits", "global_concept_attention", "concept_contributions", "global_concept_attention_heads"],
        ),
    ],
)
def test_outputs_are_those_of_the_streams_that_exist(kwargs, outputs):
    module = ExportableModel(make_model(**kwargs), False).eval()
    assert list(module(torch.randn(1, *SHAPE))) == [*outputs, "patch_grid"]


def test_check_accepts_the_model_itself_and_refuses_others(model):
    module = ExportableModel(model, False).eval()
    run = run_module(module)
    differences = check_export(module, run, SHAPE, exact=True, seed=0)
    assert differences["logits"] == 0 and 0 < differences["additivity_error"] < 1e-4

    def changed(**changes):
        return lambda pixels: {name: changes.get(name, lambda x: x)(value) for name, value in run(pixels).items()}

    with pytest.raises(ExportError, match="exported logits differs from the model's by 0.01"):
        check_export(module, changed(logits=lambda x: x + 0.01), SHAPE, exact=True, seed=0)
    with pytest.raises(ExportError, match="Contributions and biases miss the logits by 0.01"):
        check_export(module, changed(logits=lambda x: x + 0.01), SHAPE, exact=False, seed=0)
    with pytest.raises(ExportError, match="exported spatial_concept_attention differs"):
        check_export(module, changed(spatial_concept_attention=lambda x: x * np.nan), SHAPE, exact=False, seed=0)
    with pytest.raises(ExportError, match="exported patch_grid differs"):
        check_export(module, changed(patch_grid=lambda x: x[:, ::-1]), SHAPE, exact=False, seed=0)
    with pytest.raises(ExportError, match="shape"):
        check_export(module, changed(logits=lambda x: x[:1, :2]), SHAPE, exact=True, seed=0)
    with pytest.raises(ExportError, match="gives logits instead of"):
        check_export(module, lambda pixels: {"logits": run(pixels)["logits"]}, SHAPE, exact=True, seed=0)
    with pytest.raises(ExportError, match="does not run on 1 images"):
        check_export(module, lambda pixels: run(pixels[:, :, :-1]), SHAPE, exact=True, seed=0)


def test_measures_are_known_for_known_changes(model):
    module = ExportableModel(model, False).eval()
    run = run_module(module)
    pixels = torch.randn(6, *SHAPE)
    classes = torch.from_numpy(run(pixels.numpy())["logits"].argmax(-1))
    labels = torch.where(torch.arange(6) < 2, (classes + 1) % 5, classes)
    batches = [{"pixel_values": pixels[i : i + 2], "labels": labels[i : i + 2]} for i in (0, 2, 4)]
    same = measure_quantization(module, run, batches)
    assert same["num_images"] == 6 and same["accuracy"] == same["accuracy_float32"] == pytest.approx(4 / 6)
    for name in ("class_agreement", "top_concept_agreement", "global_concept_agreement", "patch_concept_agreement"):
        assert same[name] == 1
    assert same["map_correlation"] == pytest.approx(1) and same["map_max_difference"] == 0

    def other(pixels):
        outputs = run(pixels)
        attention = outputs["spatial_concept_attention"]
        return outputs | {"logits": -outputs["logits"], "spatial_concept_attention": 0.5 - attention}

    changed = measure_quantization(module, other, batches)
    assert changed["class_agreement"] == 0 and changed["accuracy_float32"] == pytest.approx(4 / 6)
    assert changed["map_correlation"] == pytest.approx(-1) and changed["patch_concept_agreement"] < 0.5
    attention = run(pixels.numpy())["spatial_concept_attention"]
    assert changed["map_max_difference"] == pytest.approx(np.abs(0.5 - 2 * attention).max())
    with pytest.raises(ValueError, match="gave no images"):
        measure_quantization(module, run, [])


def test_bfloat16_leaves_the_sum_exact_and_the_original_alone(model):
    half = in_bfloat16(model)
    assert half.ascent_vit.backbone.dtype == torch.bfloat16 and model.dtype == torch.float32
    outputs = run_module(ExportableModel(half, False).eval())(np.ones((2, *SHAPE), dtype=np.float32))
    explained = outputs["concept_contributions"].sum(1) + model.class_bias().detach().numpy()
    np.testing.assert_allclose(outputs["logits"], explained, atol=1e-5)
    expected = run_module(ExportableModel(model, False).eval())(np.ones((2, *SHAPE), dtype=np.float32))
    assert 0 < np.abs(outputs["logits"] - expected["logits"]).max() < 0.2


def test_a_wrong_model_is_not_left_behind(model, tmp_path, monkeypatch):
    other = make_model(num_spatial_concepts=4)
    write = WRITERS["torch-export"]
    arguments = (ExportableModel(other, False).eval(), SHAPE)
    monkeypatch.setitem(WRITERS, "torch-export", lambda module, shape, *rest: write(*arguments, *rest))
    with pytest.raises(ExportError, match="instead of"):
        export_model(model, make_processor(model), tmp_path / "out", "torch-export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "to, quantize, message",
    [
        ("tensorrt", "none", "--to must be one of onnx, torch-export"),
        ("onnx", "bf16", "onnx takes --quantize none, int8; got 'bf16': onnxruntime lacks bfloat16 kernels"),
        ("executorch", "none", "ExecuTorch cannot run the model"),
        ("openvino", "int8", "openvino takes --quantize none; got 'int8'"),
    ],
)
def test_unknown_formats_and_precisions_are_refused(to, quantize, message):
    with pytest.raises(ValueError, match=message):
        check_format(to, quantize)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ModuleNotFoundError, match="needs onnxscript: pip install onnxscript"):
        check_format("onnx", "none")


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path):
    program = (
        "from ascent_vit.export.formats import check_format\n"
        "try: check_format('aotinductor', 'none')\n"
        "except RuntimeError as error: print(error)"
    )
    environment = os.environ | {"PATH": str(tmp_path), "CXX": ""}
    # Not from a clone's root, which has no folder ascent_vit/conversion.
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert "found no compiler: install g++ or clang++." in shown.stdout, shown


def test_outputs_in_use_are_refused(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty: name another one"):
        export_model(model, make_processor(model), tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file: name a folder"):
        export_model(model, make_processor(model), tmp_path / "file")


def test_processors_without_fixed_size_are_refused(model):
    with pytest.raises(ValueError, match="takes images of one size"):
        processed_shape(make_processor(model, size={"shortest_edge": 48}))
    with pytest.raises(ValueError, match="pads"):
        image_settings(make_processor(model, do_pad=True, pad_size={"height": 64, "width": 64}))
    with pytest.raises(ValueError, match="resizes to a height and a width"):
        image_settings(make_processor(model, size={"shortest_edge": 40, "longest_edge": 60}))


FORMATS = [("onnx", "int8"), ("torch-export", "none"), ("torch-export", "bf16"), ("openvino", "none")]


@pytest.mark.parametrize(
    "to, quantize",
    [
        *(pytest.param(*choice, marks=pytest.mark.slow) for choice in FORMATS),
        pytest.param("aotinductor", "bf16", marks=pytest.mark.nightly),
    ],
)
def test_other_formats(model, tmp_path, to, quantize):
    batches = DataLoader([{"pixel_values": torch.randn(SHAPE), "labels": i} for i in range(5)], batch_size=3)
    report = export_model(model, make_processor(model), tmp_path / "out", to, quantize, batches=batches)
    assert report["quantization"] == quantize and report["measured"]["num_images"] == 5
    assert report["measured"]["map_correlation"] > 0.99
    if quantize == "none":
        assert report["measured"]["logit_max_difference"] < 1e-4
    pixels = torch.randn(4, *SHAPE)
    expected = float64_outputs(model, pixels)
    got = example.load(tmp_path / "out")(pixels.numpy())
    np.testing.assert_allclose(got["logits"], expected.logits, atol=1e-4 if quantize == "none" else 0.5)
    for path in (tmp_path / "out").iterdir():
        assert os.getcwd().encode() not in path.read_bytes()


@pytest.mark.slow
def test_int8_weights_that_several_nodes_read(tmp_path):
    """So many classes that the projections are no longer folded into tables: two nodes read them."""
    model = make_model(num_labels=200, backbone_kwargs={"hidden_size": 192}, **STREAMS)
    report = export_model(model, make_processor(model), tmp_path / "out", "onnx", "int8")
    assert report["max_differences"]["additivity_error"] < 1e-4


@pytest.mark.nightly
@pytest.mark.parametrize("backbone", ["deit", "dinov2", "dinov2_with_registers", "siglip_vision_model"])
def test_other_backbones_as_onnx(tmp_path, backbone):
    model = make_model(backbone, backbone_kwargs={"image_size": 48}, **STREAMS)
    report = export_model(model, make_processor(model), tmp_path / "out")
    assert max(report["max_differences"].values()) < 1e-4


@pytest.mark.slow
def test_images_of_another_size_than_the_backbones(tmp_path):
    model = make_model(backbone_kwargs={"image_size": 48}, **STREAMS)
    export_model(model, make_processor(model, size={"height": 64, "width": 56}), tmp_path / "out")
    pixels = torch.randn(2, 3, 64, 56)
    got = example.load(tmp_path / "out")(pixels.numpy())
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True)
    np.testing.assert_allclose(got["logits"], expected.logits.numpy(), atol=1e-4)


@pytest.mark.slow
def test_example_needs_onnxruntime_pillow_and_numpy_only(model, exported, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "onnxruntime", "pillow", "numpy"], check=True)
    image = random_image(97, 61)
    image.save(tmp_path / "image.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    absent = "import importlib.util as u; assert not any(map(u.find_spec, ('torch', 'transformers', 'ascent_vit')))"
    subprocess.run([python, "-c", absent], check=True, env=environment, cwd=tmp_path)
    command = [python, exported[0] / "example.py", tmp_path / "image.png"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path).stdout
    inputs = make_processor(model)(image, return_tensors="pt")
    with torch.no_grad():
        check_shown(shown, model, model(**inputs, output_contributions=True))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export", "openvino", "aotinductor"])
def test_edits_are_exported(tmp_path, to):
    model = make_model(none_concept=True, **STREAMS)
    plain = float64_outputs(model, pixels := torch.randn(2, *SHAPE))
    removed = {"class": "LABEL_1", "concept": "SPATIAL_CONCEPT_2", "stream": "spatial", "factor": 0.0}
    scaled = {"class": None, "concept": "GLOBAL_CONCEPT_0", "stream": "global", "factor": 0.3}
    model.edit_concepts([removed, scaled])
    report = export_model(model, make_processor(model), tmp_path / "out", to)
    got = example.load(tmp_path / "out")(pixels.numpy())
    expected = float64_outputs(model, pixels)
    np.testing.assert_allclose(got["logits"], expected.logits, atol=1e-4)
    assert report["max_differences"]["additivity_error"] < 1e-4
    assert not np.any(got["concept_contributions"][:, 5, 1])
    factor = got["concept_contributions"][:, 0] / plain.concept_contributions[:, 0].numpy()
    np.testing.assert_allclose(factor, 0.3, rtol=1e-3)
    assert not np.any(np.load(tmp_path / "out" / "tables.npz")["spatial_contributions"][:, 2, 1])


def test_the_example_asks_what_would_settle_it(tmp_path):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    from ascent_vit import Safeguard

    model = make_model(none_concept=True, **STREAMS)
    processor = make_processor(model)
    images = [random_image(40, 48).rotate(6 * i) for i in range(20)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[f"LABEL_{i}" for i in range(5)])})
    rows = Dataset.from_dict({"image": images, "label": [i % 5 for i in range(20)]}, features=features)
    guard = Safeguard.fit(model, processor, rows, alpha=0.2)
    folder = tmp_path / "guarded"
    export_model(model, processor, folder, guard=guard)
    assert "doubt.py" in (folder / "README.md").read_text()
    images[3].save(tmp_path / "image.png")
    # In a process that has none of the packages of training.
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'safetensors', 'ascent_vit'))); "
        "import runpy; sys.argv = ['example.py', sys.argv[1]]; runpy.run_path('example.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "image.png")]
    # As `python example.py` does, the folder of the script is searched for modules.
    environment = os.environ | {"PYTHONPATH": str(folder)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.rstrip().endswith(str(guard(images[3])))
    with pytest.raises(ValueError, match="promises nothing of int8"):
        export_model(model, processor, tmp_path / "other", quantize="int8", guard=guard)
