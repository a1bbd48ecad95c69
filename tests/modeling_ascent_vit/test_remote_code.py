# SPDX-License-Identifier: Apache-2.0
"""A saved folder where this package is not installed, and weights that are not what they should be."""

import json
import os
import pickle
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
from transformers.utils import is_torchvision_available

from modeling_ascent_vit import (
    AscentViTConfig,
    AscentViTForImageClassification,
    AscentViTImageProcessor,
    AscentViTImageProcessorPil,
)


TASK = "concept-image-classification"
CODE = {
    "backbone_images_ascent_vit.py",
    "backbones_ascent_vit.py",
    "checks_ascent_vit.py",
    "class_scores_ascent_vit.py",
    "concept_pipeline_ascent_vit.py",
    "concept_targets_ascent_vit.py",
    "configuration_ascent_vit.py",
    "deformable_sampling_ascent_vit.py",
    "edits_ascent_vit.py",
    "fast_inference_ascent_vit.py",
    "image_inputs_ascent_vit.py",
    "image_processing_ascent_vit.py",
    "image_processing_pil_ascent_vit.py",
    "image_reading_ascent_vit.py",
    "image_settings_ascent_vit.py",
    "modeling_ascent_vit.py",
    "names_ascent_vit.py",
    "presence_ascent_vit.py",
    "suggestions_ascent_vit.py",
}
AUTO_MAP = {
    "AutoConfig": "configuration_ascent_vit.AscentViTConfig",
    "AutoModel": "modeling_ascent_vit.AscentViTModel",
    "AutoModelForImageClassification": "modeling_ascent_vit.AscentViTForImageClassification",
}

# What a user does with transformers alone, in a process where this package cannot be imported.
SCRIPT = """
import json, sys
for name in ("ascent_vit", "modeling_ascent_vit"):
    sys.modules[name] = None
import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline,
)
folder, picture, again = sys.argv[1:]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, **trust)
model = AutoModelForImageClassification.from_pretrained(folder, **trust)
processor = AutoImageProcessor.from_pretrained(folder, **trust)
pil = AutoImageProcessor.from_pretrained(folder, backend="pil", **trust)
image = Image.open(picture)
with torch.no_grad():
    inputs = processor(image, return_tensors="pt")
    outputs = model(**inputs, output_contributions=True)
    hidden = base(**inputs).last_hidden_state
    placed = model.contribution_maps(inputs["pixel_values"], [0])
    by_pil = model(**pil(image, return_tensors="pt")).logits
maps = processor.post_process_concepts(outputs, [(image.height, image.width)])[0]["spatial_concept_maps"]
annotation = {"concepts": [1], "points": {"xy": [[3.0, 4.0]], "category": [0]}, "present": [0, 2]}
annotated = processor(image, annotation, return_tensors="pt")
classifier = pipeline("image-classification", model=folder, **trust)
explainer = pipeline("concept-image-classification", model=folder, **trust)
explained = explainer(picture, top_k=None, maps=True)
for concept in (concept for each in explained for concept in each["concepts"]):
    concept |= {name: value.tolist() for name, value in concept.items() if name.endswith("_map")}
model.save_pretrained(again)
processor.save_pretrained(again)
twice = AutoModelForImageClassification.from_pretrained(again, **trust)
AutoImageProcessor.from_pretrained(again, backend="pil", **trust)
try:
    import torchvision
except ImportError:
    torchvision = None
print(json.dumps({
    "logits": outputs.logits[0].tolist(),
    "twice": twice(**inputs).logits[0].tolist(),
    "pil": by_pil[0].tolist(),
    "scores": classifier(picture),
    "explained": explained,
    "pipeline": type(explainer).__module__.split(".")[0],
    "hidden": list(hidden.shape),
    "maps": list(maps.shape),
    "placed": placed.sum((-2, -1))[0, 0].tolist(),
    "contributions": outputs.concept_contributions[0, 2:5, 0].tolist(),
    "targets": [list(annotated[name].shape) for name in ("concept_targets", "spatial_concept_targets")],
    "presence": annotated["spatial_concept_presence"].tolist(),
    "classes": [type(item).__name__ for item in (config, base, model, processor, pil)],
    "modules": sorted({type(item).__module__.split(".")[0] for item in (config, base, model, processor, pil)}),
    "torchvision": torchvision is not None,
}))
"""


@pytest.fixture
def folder(make_config, tmp_path):
    config = make_config(
        global_concepts=["small", "large"],
        spatial_concepts=["beak", "wing", "tail"],
        id2label={0: "wren", 1: "crow", 2: "tern"},
        num_labels=3,
    )
    folder = tmp_path / "model"
    model = AscentViTForImageClassification(config)
    model.edit_concepts([{"class": "wren", "concept": "wing", "stream": "spatial", "factor": 0.5}])
    model.save_pretrained(folder)
    AscentViTImageProcessor.from_model_config(config).save_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return folder


def check_explained(explained: list[dict], model, processor, image: Image.Image) -> None:
    """Compares what the pipeline of the folder says with the one of this package, number by number."""
    expected = pipeline(TASK, model=model, image_processor=processor)(image, top_k=None, maps=True)
    assert [each["label"] for each in explained] == [each["label"] for each in expected]
    for said, known in zip(explained, expected, strict=True):
        numbers = ("score", "logit", "class_bias")
        assert [said[name] for name in numbers] == pytest.approx([known[name] for name in numbers], abs=1e-5)
        concepts = [{each["name"]: each for each in entry["concepts"]} for entry in (said, known)]
        assert concepts[0].keys() == concepts[1].keys() and len(concepts[0]) == 5
        for name, concept in concepts[1].items():
            assert concepts[0][name].keys() == concept.keys() and concepts[0][name]["stream"] == concept["stream"]
            for key in concept.keys() - {"name", "stream"}:
                np.testing.assert_allclose(concepts[0][name][key], concept[key], atol=1e-5)


def check_elsewhere(python: str, folder: Path, tmp_path: Path, torchvision: bool) -> None:
    """Runs the script with a Python, without any network, and compares what it says with this package."""
    process = subprocess.run(
        [python, "-I", "-c", SCRIPT, str(folder), str(tmp_path / "image.png"), str(tmp_path / "again")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout.splitlines()[-1])
    assert said["torchvision"] == torchvision and said["modules"] == ["transformers_modules"]
    backend = "AscentViTImageProcessor" if torchvision else "AscentViTImageProcessorPil"
    model_classes = ["AscentViTConfig", "AscentViTModel", "AscentViTForImageClassification"]
    assert said["classes"] == [*model_classes, backend, "AscentViTImageProcessorPil"]
    model = AscentViTForImageClassification.from_pretrained(folder)
    processor_class = AscentViTImageProcessor if torchvision else AscentViTImageProcessorPil
    image = Image.open(tmp_path / "image.png")
    with torch.no_grad():
        logits = model(**processor_class.from_pretrained(folder)(image, return_tensors="pt")).logits[0]
        pil = model(**AscentViTImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")).logits[0]
    assert said["logits"] == pytest.approx(logits.tolist(), abs=1e-5)
    assert said["twice"] == pytest.approx(said["logits"], abs=1e-5)
    assert said["pil"] == pytest.approx(pil.tolist(), abs=1e-5)
    expected = {model.config.id2label[i]: score for i, score in enumerate(logits.softmax(-1).tolist())}
    assert {entry["label"]: entry["score"] for entry in said["scores"]} == pytest.approx(expected, abs=1e-4)
    check_explained(said["explained"], model, processor_class.from_pretrained(folder), image)
    assert said["pipeline"] == "transformers_modules"
    assert said["hidden"] == [1, 37, 32] and said["maps"] == [3, 50, 70]
    assert said["placed"] == pytest.approx(said["contributions"], abs=1e-5)
    assert said["targets"] == [[1, 2], [1, 36, 3]]
    assert said["presence"] == [[1, 0, 1]]
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == CODE
    assert all((tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes() for name in CODE)
    for name in ("config.json", "preprocessor_config.json"):
        saved = [json.loads((place / name).read_text()) for place in (folder, tmp_path / "again")]
        assert saved[0].get("custom_pipelines") == saved[1].get("custom_pipelines")
        maps = [config["auto_map"] for config in saved]
        assert maps[0] == maps[1]


def test_saving_copies_the_code_and_names_every_class(folder, tmp_path):
    assert {path.name for path in folder.glob("*.py")} == CODE
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert json.loads((folder / "preprocessor_config.json").read_text())["auto_map"] == {
        "AutoImageProcessor": {
            "torchvision": "image_processing_ascent_vit.AscentViTImageProcessor",
            "pil": "image_processing_pil_ascent_vit.AscentViTImageProcessorPil",
        }
    }
    # Where the package is imported its code is used, and nobody is asked whether to trust the folder's.
    (folder / "modeling_ascent_vit.py").write_text("raise RuntimeError('the code of the folder ran')")
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is AscentViTForImageClassification
    model.config.auto_map = {"AutoModel": "someone/else--their_file.Model"}
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_a_local_backbone_leaves_no_path(make_config, tmp_path):
    config = make_config()
    config.backbone_config.name_or_path = str(tmp_path)
    config.save_pretrained(tmp_path / "local")
    assert str(tmp_path) not in (tmp_path / "local" / "config.json").read_text()
    config.backbone_config.name_or_path = "facebook/dinov2-small"
    config.save_pretrained(tmp_path / "hub")
    assert AscentViTConfig.from_pretrained(tmp_path / "hub").backbone_config.name_or_path == "facebook/dinov2-small"


@pytest.mark.slow
def test_without_this_package(folder, tmp_path):
    check_elsewhere(sys.executable, folder, tmp_path, is_torchvision_available())


@pytest.mark.nightly
def test_in_a_fresh_environment_without_torchvision(folder, tmp_path):
    """Set ASCENT_VIT_BARE_PYTHON to a Python with torch, transformers and pillow alone, to save installing them."""
    python = os.environ.get("ASCENT_VIT_BARE_PYTHON")
    if not python:
        venv.create(tmp_path / "environment", with_pip=True)
        python = str(tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python")
        installed = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "torch", "transformers", "pillow"],
            capture_output=True,
            text=True,
        )
        if installed.returncode:
            pytest.skip(f"torch, transformers and pillow cannot be installed here: {installed.stderr[-200:]}")
    check_elsewhere(python, folder, tmp_path, torchvision=False)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("options", [{}, {"use_safetensors": False}, {"weights_only": False}])
@pytest.mark.parametrize("auto", [True, False])
def test_pickled_weights_are_never_read(folder, tmp_path, options, auto):
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Malicious(tmp_path / "ran"), file)
    cls = AutoModelForImageClassification if auto else AscentViTForImageClassification
    message = "reads weights as safetensors alone" if options else "has no model.safetensors"
    with pytest.raises(ValueError if options else OSError, match=message):
        cls.from_pretrained(folder, **options)
    assert not (tmp_path / "ran").exists()


def test_harmless_pickled_weights_are_not_read_either(folder):
    weights = AscentViTForImageClassification.from_pretrained(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="has no model.safetensors"):
        AscentViTForImageClassification.from_pretrained(folder)
