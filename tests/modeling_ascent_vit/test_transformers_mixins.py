# SPDX-License-Identifier: Apache-2.0
"""transformers' own test mixins, on both models, over every backbone, and on both image processors."""

import functools
import importlib.util
import json
import os
import sys
import tempfile
import unittest
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.utils import is_torchvision_available

import modeling_ascent_vit
from modeling_ascent_vit import (
    AscentViTConfig,
    AscentViTForImageClassification,
    AscentViTImageProcessor,
    AscentViTImageProcessorPil,
    AscentViTModel,
)


def load_helper():
    path = Path(__file__).with_name("transformers_tests.py")
    specification = importlib.util.spec_from_file_location("ascent_vit_transformers_tests", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


upstream = load_helper()
try:
    upstream.load()
except upstream.NotFetched as error:
    pytest.skip(f"the source distribution of transformers cannot be had: {error}", allow_module_level=True)

ConfigTester = sys.modules["transformers_tests.test_configuration_common"].ConfigTester
ModelTesterMixin = sys.modules["transformers_tests.test_modeling_common"].ModelTesterMixin
pipeline_mixin = sys.modules["transformers_tests.test_pipeline_mixin"]
image_processing_common = sys.modules["transformers_tests.test_image_processing_common"]

NUM_PREFIX_TOKENS = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 5, "siglip_vision_model": 0}
IMAGE_PROCESSORS = {"pil": AscentViTImageProcessorPil}
if is_torchvision_available():
    IMAGE_PROCESSORS["torchvision"] = AscentViTImageProcessor


class ModelTester:
    """What the mixins ask of a model: its configuration, its inputs, and their sizes."""

    batch_size = 3
    num_channels = 3
    image_size = 48
    patch_size = 8
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    is_training = True

    def __init__(self, backbone: str, make_config):
        self.backbone = backbone
        self.make_config = make_config
        self.seq_length = NUM_PREFIX_TOKENS[backbone] + (self.image_size // self.patch_size) ** 2

    def get_config(self) -> AscentViTConfig:
        # With the pyramid's third level the model would have more parameters than the mixins allow.
        return self.make_config(self.backbone, fusion_levels=2)

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": torch.rand(shape)}


def listed(method):
    """The test, failing where it is skipped and the table does not say so, or the other way round."""

    @functools.wraps(method)
    def run(self):
        row = upstream.find_row(method.__name__, self.subject, self.backbone)
        try:
            if getattr(method, "__unittest_skip__", False):
                raise unittest.SkipTest(method.__unittest_skip_why__)
            method(self)
        except unittest.SkipTest as skip:
            if row is None and upstream.IS_DOCUMENTED:
                self.fail(f"Skipped, and {upstream.DOCUMENT.name} does not list it: {skip}")
            raise
        if row is not None and row.must_skip and upstream.IS_DOCUMENTED:
            self.fail(f"Not skipped, and {upstream.DOCUMENT.name} lists it: {row.reason}")

    # Else a skip by decorator would be none of this function's business.
    vars(run).pop("__unittest_skip__", None)
    run.is_listed = True
    return run


class MixinTest(unittest.TestCase):
    """Tests of `subject` over one backbone; meanwhile, the models are among the names that transformers knows."""

    # The classes below that pytest shall collect say so.
    __test__ = False
    subject = ""
    backbone = "vit"

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            method = getattr(cls, name)
            if name.startswith("test_") and callable(method) and not hasattr(method, "is_listed"):
                setattr(cls, name, listed(method))

    @pytest.fixture(autouse=True)
    def take_make_config(self, make_config):
        self.make_config = make_config

    @contextmanager
    def subTest(self, *args, **kwargs):
        """A part that is skipped skips the test: pytest would count it beside a test that passed."""
        yield

    def setUp(self):
        for mapping, model_class in (
            (modeling_auto.MODEL_MAPPING_NAMES, AscentViTModel),
            (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, AscentViTForImageClassification),
        ):
            self.enterContext(mock.patch.dict(mapping, {"ascent_vit": model_class.__name__}))
        self.model_tester = ModelTester(self.backbone, self.make_config)


class ModelTest(MixinTest):
    # One model class for each class of tests: a skip for the one would hide the other.
    all_model_classes = ()
    _is_composite = True
    test_resize_embeddings = False

    def test_model_get_set_embeddings(self):
        """In place of upstream's, which expects the `nn.Embedding` of a text model."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            embeddings = model.get_input_embeddings()
            self.assertIn(embeddings, list(model.modules()))
            self.assertTrue(any(isinstance(module, torch.nn.Conv2d) for module in embeddings.modules()))
            self.assertIsNone(model.get_output_embeddings())


class ConfigTest(MixinTest):
    subject = "configuration"

    def test_config(self):
        backbone_config = json.loads(self.model_tester.get_config().to_json_string())["backbone_config"]
        properties = ["hidden_size", "image_size", "patch_size", "num_channels", "concepts"]
        tester = ConfigTester(
            self,
            config_class=AscentViTConfig,
            has_text_modality=False,
            common_properties=properties,
            backbone_config=backbone_config,
            global_concepts=["striped", "spotted"],
            spatial_concepts=["beak", "wing", "tail"],
            num_unsupervised_concepts=2,
            fusion_heads=4,
            fusion_levels=2,
            psi=0.5,
        )
        tester.run_common_tests()


class PipelineTest(MixinTest):
    subject = "pipelines"
    pipeline_model_mapping = {
        "image-classification": AscentViTForImageClassification,
        "image-feature-extraction": AscentViTModel,
    }

    def run_task_tests(self, task, dtype="float32"):
        """Runs upstream's on small models that are saved here, where it would take them from the Hub."""
        if task in self.pipeline_model_mapping:
            folder = self.enterContext(tempfile.TemporaryDirectory())
            model_class, config = self.pipeline_model_mapping[task], self.model_tester.get_config()
            place = os.path.join(folder, config.model_type, model_class.__name__)
            model_class(config).save_pretrained(place)
            AscentViTImageProcessor.from_model_config(config).save_pretrained(place)
            names = [processor.__name__ for processor in IMAGE_PROCESSORS.values()]
            summary = {model_class.__name__: {"tokenizer_classes": [], "processor_classes": names}}
            self.enterContext(mock.patch.object(pipeline_mixin, "TRANSFORMERS_TINY_MODEL_PATH", folder))
            self.enterContext(mock.patch.object(pipeline_mixin, "tiny_model_summary", summary))
            for processor in IMAGE_PROCESSORS.values():
                self.enterContext(mock.patch.object(transformers, processor.__name__, processor, create=True))
        super().run_task_tests(task, dtype)


class ImageProcessingTester(image_processing_common.ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(
            parent,
            size={"height": 18, "width": 18},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            do_resize=True,
            do_normalize=True,
            patch_size=6,
            num_global_concepts=2,
            num_spatial_concepts=3,
            unannotated="none",
        )

    def _get_image_processing_classes(self):
        return IMAGE_PROCESSORS


class ImageProcessorTest(MixinTest, image_processing_common.ImageProcessingTestMixin):
    __test__ = True
    subject = "image processors"
    image_processor_tester_class = ImageProcessingTester
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        image_processing_common.ImageProcessingTestMixin.setUp(self)

    def test_new_models_require_torchvision_backend(self):
        if not is_torchvision_available():
            self.skipTest("torchvision is not installed")
        super().test_new_models_require_torchvision_backend()

    @pytest.mark.slow
    def test_pil_can_run_without_torchvision(self):
        """Runs upstream's, whose script imports nothing but transformers, where Python itself imports this package."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / "sitecustomize.py").write_text(
            'import sys\nsys.modules["torchvision"] = None\nimport modeling_ascent_vit\n'
        )
        path = os.pathsep.join([str(folder), str(Path(modeling_ascent_vit.__file__).parents[1])])
        with mock.patch.dict(os.environ, PYTHONPATH=path):
            super().test_pil_can_run_without_torchvision()


def classes_of_tests():
    """One class of tests for each backbone and subject; all but ViT's are nightly."""
    for backbone in NUM_PREFIX_TOKENS:
        for name, bases, attributes in (
            ("Model", (ModelTest, ModelTesterMixin), {"all_model_classes": (AscentViTModel,)}),
            (
                "ForImageClassification",
                (ModelTest, ModelTesterMixin),
                {"all_model_classes": (AscentViTForImageClassification,)},
            ),
            ("Config", (ConfigTest,), {}),
            ("Pipeline", (PipelineTest, pipeline_mixin.PipelineTesterMixin), {}),
        ):
            for model_class in attributes.get("all_model_classes", ()):
                attributes["subject"] = model_class.__name__
            marks = [] if backbone == "vit" else [pytest.mark.nightly]
            attributes |= {"backbone": backbone, "pytestmark": marks, "__test__": True, "__module__": __name__}
            name = f"{backbone.title().replace('_', '')}{name}Test"
            yield type(name, bases, attributes)


CLASSES = {test_class.__name__: test_class for test_class in classes_of_tests()}
globals().update(CLASSES)


def skips(self):
    self.skipTest("not applicable")


@pytest.mark.parametrize(
    ("method", "without", "outcome"),
    [
        (skips, "nothing is listed", "failures"),
        (skips, None, "skipped"),
        (lambda self: None, None, "failures"),
        (lambda self: None, "torchvision", "failures" if not is_torchvision_available() else None),
        (unittest.skip("not applicable")(skips), "nothing is listed", "failures"),
    ],
)
def test_skips_are_held_against_the_table(monkeypatch, make_config, method, without, outcome):
    row = upstream.Row(("test_it",), ("it",), (), without, "not applicable")
    monkeypatch.setattr(upstream, "ROWS", () if without == "nothing is listed" else (row,))
    monkeypatch.setattr(upstream, "IS_DOCUMENTED", True)
    method.__name__ = "test_it"
    case = type("Case", (MixinTest,), {"subject": "it", "test_it": method, "make_config": make_config})("test_it")
    result = unittest.TestResult()
    case.run(result)
    assert {name for name in ("errors", "failures", "skipped") if getattr(result, name)} == ({outcome} - {None})


@pytest.mark.skipif(upstream.DOCUMENTED[0] != upstream.VERSION, reason="the table is of a newer transformers")
def test_every_row_of_the_table_is_of_a_test():
    test_classes = [ImageProcessorTest, *CLASSES.values()]
    unused = set(upstream.ROWS)
    for test_class in test_classes:
        for name in dir(test_class):
            unused -= {row for row in unused if row.matches(name, test_class.subject, test_class.backbone)}
    assert not unused
