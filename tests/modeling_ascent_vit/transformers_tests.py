# SPDX-License-Identifier: Apache-2.0
"""
transformers' own test mixins, from the source distribution of the installed version.

The distribution has the mixins, and not all that they import: `substitutes` stands in for the rest.
"""

import fnmatch
import importlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import matplotlib.cbook
import torch
import transformers
from PIL import Image
from transformers.integrations.deepspeed import is_deepspeed_available
from transformers.pipelines import ImageClassificationPipeline, ImageFeatureExtractionPipeline
from transformers.testing_utils import torch_device
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
    is_peft_available,
    is_timm_available,
    is_torchvision_available,
)


VERSION = transformers.__version__
DOCUMENT = Path(__file__).parents[2] / "docs" / "transformers-tests.md"
PACKAGE = "transformers_tests"


class NotFetched(Exception):
    """The source distribution cannot be had."""


def fetch() -> Path:
    """The folder of the installed version's tests, downloaded once, outside of the tree."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascent-vit-tests"
    folder = cache / f"transformers-{VERSION}"
    if folder.is_dir():
        return folder / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--retries", "1", "--timeout", "15", "--no-binary", "transformers", "--dest", scratch]
        try:
            subprocess.run(
                [*command, f"transformers=={VERSION}"], check=True, capture_output=True, text=True, timeout=180
            )
        except subprocess.CalledProcessError as error:
            raise NotFetched(error.stderr.strip().splitlines()[-1] if error.stderr.strip() else str(error)) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotFetched(str(error)) from error
        unpacked = Path(scratch) / "unpacked"
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            wanted = re.compile(r"[^/]+/tests/\w+\.py")
            members = [member for member in archive.getmembers() if member.isfile() and wanted.fullmatch(member.name)]
            # Python 3.11 has it from 3.11.4 on.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(unpacked, members, **safely)
        root = next(unpacked.iterdir())
        # The mixins import "transformers" from these places, and get the installed one where there is nothing to run.
        for place in (root / "tests", root / "src" / "transformers"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "__init__.py").touch()
        (root / "tests" / "utils").mkdir()
        (root / "tests" / "utils" / "tiny_model_summary.json").write_text("{}")
        try:
            root.rename(folder)
        except OSError:
            # Another process was first.
            if not folder.is_dir():
                raise
    return folder / "tests"


def photograph(url: str | None = None) -> str:
    """A photograph of 512 x 600 pixels that matplotlib brings, in place of those on the Hub."""
    return str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


class ImageClassificationPipelineTests:
    """What a pipeline of this task must do, in place of transformers' own test of it."""

    pipeline_class = ImageClassificationPipeline
    arguments = {"top_k": 2}

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **components):
        # The dtype of a pipeline concerns models that it loads itself.
        model = model.to(getattr(torch, dtype))
        pipeline = self.pipeline_class(model=model, image_processor=image_processor, dtype=dtype, **self.arguments)
        return pipeline, [Image.open(photograph()), photograph()]

    def check(self, output, pipeline):
        assert len(output) == 2
        assert [set(answer) for answer in output] == [{"score", "label"}] * 2
        assert all(isinstance(answer["score"], float) and 0 <= answer["score"] <= 1 for answer in output)
        assert output[0]["score"] >= output[1]["score"]
        assert {answer["label"] for answer in output} <= set(pipeline.model.config.label2id)

    def run_pipeline_test(self, pipeline, examples):
        image, path = examples
        single = pipeline(path)
        self.check(single, pipeline)
        images = [image, path, *(image.convert(mode) for mode in ("L", "LA", "RGBA", "CMYK", "P"))]
        outputs = pipeline(images, batch_size=3)
        assert len(outputs) == len(images)
        for output in outputs:
            self.check(output, pipeline)


class ImageFeatureExtractionPipelineTests(ImageClassificationPipelineTests):
    pipeline_class = ImageFeatureExtractionPipeline
    arguments = {}

    def check(self, output, pipeline):
        config = pipeline.model.config
        (tokens,) = output
        height, width = (size // patch for size, patch in zip(config.image_size, config.patch_size, strict=True))
        assert len(tokens) >= height * width
        assert {len(token) for token in tokens} == {config.hidden_size}
        assert all(isinstance(value, float) for value in tokens[0])


def substitutes() -> dict[str, ModuleType]:
    """
    Modules that the mixins import, and that the source distribution lacks.

    The export and generation mixins are empty: `tests/ascent_vit/export` has exports, and the model generates nothing.
    The common arguments of configurations are read for configurations without sub-configurations alone.
    """
    contents = {
        f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
        f"{PACKAGE}.pipelines": {
            "ImageClassificationPipelineTests": ImageClassificationPipelineTests,
            "ImageFeatureExtractionPipelineTests": ImageFeatureExtractionPipelineTests,
        },
        "fetch_hub_objects_for_ci": {"url_to_local_path": photograph},
    }
    modules = {}
    for name, content in contents.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(content)
    return modules


def load() -> ModuleType:
    """
    The package of transformers' tests, under a name of its own, as a folder "tests" is on everybody's path.

    Raises:
        NotFetched: where the source distribution cannot be had.
    """
    if PACKAGE not in sys.modules:
        folder = fetch()
        specification = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
        specification.submodule_search_locations = [str(folder)]
        sys.modules[PACKAGE] = importlib.util.module_from_spec(specification)
        sys.modules.update(substitutes())
        for name in ("configuration_common", "image_processing_common", "modeling_common", "pipeline_mixin"):
            # The mixins append to the path, which other tests shall not see.
            with mock.patch.object(sys, "path", list(sys.path)):
                importlib.import_module(f"{PACKAGE}.test_{name}")
        mapping = sys.modules[f"{PACKAGE}.test_pipeline_mixin"].pipeline_test_mapping
        mapping["image-classification"]["test"] = f"{PACKAGE}.pipelines.ImageClassificationPipelineTests"
        mapping["image-feature-extraction"]["test"] = f"{PACKAGE}.pipelines.ImageFeatureExtractionPipelineTests"
    return sys.modules[PACKAGE]


def is_missing(thing: str) -> bool:
    """Whether a test that needs it must be skipped here."""
    available = {
        "an accelerator": torch_device not in (None, "cpu"),
        "two accelerators": torch.cuda.device_count() > 1,
        "DeepSpeed": is_deepspeed_available(),
        "Flash Attention": is_flash_attn_2_available(),
        "Flash Attention 3": is_flash_attn_3_available(),
        "Flash Attention 4": is_flash_attn_4_available(),
        "kernels": is_kernels_available(),
        "MPS": torch.backends.mps.is_available(),
        "PEFT": is_peft_available(),
        "timm": is_timm_available(),
        "torchvision": is_torchvision_available(),
    }
    return not available[thing]


@dataclass(frozen=True)
class Row:
    """A row of the table of skipped tests: which tests, of what, without what, and why."""

    patterns: tuple[str, ...]
    subjects: tuple[str, ...]
    backbones: tuple[str, ...]
    without: str | None
    reason: str

    @property
    def must_skip(self) -> bool:
        return self.without is None or is_missing(self.without)

    def matches(self, test: str, subject: str, backbone: str) -> bool:
        in_place = subject in self.subjects and (not self.backbones or backbone in self.backbones)
        return in_place and any(fnmatch.fnmatchcase(test, pattern) for pattern in self.patterns)


def read_rows() -> tuple[Row, ...]:
    """The table of skipped tests."""
    _, _, table = DOCUMENT.read_text().partition("| test | of | skipped | why |\n")
    rows = []
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        tests, of, skipped, reason = (cell.strip() for cell in line.strip("|").split("|"))
        subjects, _, backbones = of.partition(" over ")
        subjects = subjects.replace("both models", "AscentViTModel, AscentViTForImageClassification")
        rows.append(
            Row(
                patterns=tuple(re.findall("`(.+?)`", tests)),
                subjects=tuple(subjects.split(", ")),
                backbones=tuple(backbones.split(", ")) if backbones else (),
                without=None if skipped == "always" else skipped.removeprefix("without "),
                reason=reason,
            )
        )
    return tuple(rows)


def find_row(test: str, subject: str, backbone: str) -> Row | None:
    return next((row for row in ROWS if row.matches(test, subject, backbone)), None)


ROWS = read_rows()
# The versions that the table is for; of others, tests are skipped as their mixins say.
DOCUMENTED = re.search(r"table is for\s+transformers (.+?)[.]\s", DOCUMENT.read_text())[1].split(" and ")
IS_DOCUMENTED = VERSION in DOCUMENTED
