# SPDX-License-Identifier: Apache-2.0
"""What several test files need: small configurations over every backbone, and where the real data lies."""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType


# Before anything of Hugging Face is imported: tests know nothing of the user's Hub, token, caches and switches, and
# the processes of one run share caches that go with it. (Code that was compiled for another CPU crashes on this one.)
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))]:
        del os.environ[name]
    caches = tempfile.mkdtemp(prefix="ascent-vit-tests-")
    os.environ |= {"HF_HOME": f"{caches}/huggingface", "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
    atexit.register(shutil.rmtree, caches, ignore_errors=True)

# The models here are so small that a second thread costs more than it gives; for processes that tests start too.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

from modeling_ascent_vit import AscentViTConfig  # noqa: E402


torch.set_num_threads(1)

BACKBONES = ["vit", "deit", "dinov2", "dinov2_with_registers", "siglip_vision_model"]


def make_config(backbone: str = "vit", **kwargs) -> AscentViTConfig:
    """A configuration of every stream over a backbone of two layers: 48x48 pixels, 6x6 patches, 5 classes."""
    backbone_config = {
        "model_type": backbone,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 48,
        "patch_size": 8,
        **kwargs.pop("backbone_kwargs", {}),
    }
    streams = {"num_global_concepts": 3, "num_spatial_concepts": 4, "num_unsupervised_concepts": 2}
    if not {"global_concepts", "spatial_concepts", *streams}.isdisjoint(kwargs):
        streams = {}
    return AscentViTConfig(
        backbone_config=backbone_config, **{"fusion_heads": 4, "num_labels": 5, **streams, **kwargs}
    )


@pytest.fixture(name="make_config")
def make_config_fixture():
    return make_config


@pytest.fixture(params=BACKBONES)
def backbone(request) -> str:
    return request.param


@pytest.fixture
def shared_folder() -> Path:
    """Real data beside the project; set ASCENT_VIT_SHARED where it lies elsewhere."""
    folder = Path(os.environ.get("ASCENT_VIT_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set ASCENT_VIT_SHARED")
    return folder


def load_beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def fuzz():
    """The module of what the fuzz tests share."""
    return load_beside("fuzzing")


@pytest.fixture(scope="session")
def write_cub():
    """Writes a small archive in the layout of CUB-200-2011."""
    return load_beside("cub_archive").write_cub


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Gives slow and nightly tests a longer limit."""
    for item in items:
        if item.get_closest_marker("nightly"):
            # transformers marks some of its tests as slow, also where they run over a nightly backbone.
            item.own_markers = [marker for marker in item.own_markers if marker.name != "slow"]
        if item.get_closest_marker("slow") or item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.timeout(900))


# Fuzzed cases by what they fuzz, of all processes of the run.
CASES: Counter[str] = Counter()


def pytest_sessionfinish(session):
    if "fuzzing" in sys.modules:
        CASES.update(sys.modules["fuzzing"].CASES)
    if IS_WORKER:
        session.config.workeroutput["fuzzed"] = dict(CASES)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    CASES.update(getattr(node, "workeroutput", {}).get("fuzzed", {}))


def pytest_terminal_summary(terminalreporter):
    if CASES:
        counts = ", ".join(f"{number} of {name}" for name, number in sorted(CASES.items()))
        terminalreporter.write_line(f"fuzz: {CASES.total()} cases, {counts}")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
