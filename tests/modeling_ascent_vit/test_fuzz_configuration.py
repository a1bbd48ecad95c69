# SPDX-License-Identifier: Apache-2.0
"""Every field of the configuration and of the image processor wrong once: refused, or it works."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedConfig

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.image_processing_ascent_vit import AscentViTImageProcessor


NAN, INF = float("nan"), float("inf")
WRONG = [
    *(
        None,
        "x",
        "",
        0,
        1,
        -1,
        3,
        4,
        5,
        1.5,
        NAN,
        INF,
        -INF,
        10**12,
        10**400,
        1e308,
        -1e-300,
        True,
        False,
        b"x",
        object(),
    ),
    *([], [1], [0, 0], [1, 2, 3], ["a"], ["a", "a"], ["a", 1], [""], [NAN] * 3, (1, 2), {}, {"a": 1}, {0: "a"}, {1}),
    *({"height": 0, "width": 5}, {"height": -1, "width": 5}, {"height": "a", "width": 5}, {"height": 5}),
    *({"height": 10**6, "width": 10**6}, {"shortest_edge": 0}, {"shortest_edge": 10}, {"longest_edge": 5}),
    *({"max_height": 10, "max_width": 10}, {"min_pixels": 1, "max_pixels": 9}, {"height": 1.5, "width": 2.5}),
    *(torch.tensor(3), np.float64(2.5), np.int64(2), np.array([1, 2])),
]
INHERITED = {field.name for field in dataclasses.fields(PreTrainedConfig)}
FIELDS = [field.name for field in dataclasses.fields(AscentViTConfig) if field.name not in INHERITED]
FIELDS += ["num_global_concepts", "num_spatial_concepts", "num_labels", "id2label", "problem_type"]

BACKBONE = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
BACKBONE |= {"intermediate_size": 64, "image_size": 48, "patch_size": 8}
WRONG_BACKBONES = [
    *(
        {},
        {"model_type": 3},
        {"model_type": "nope"},
        {"model_type": ["vit"]},
        {"model_type": None},
        PreTrainedConfig(),
    ),
    *({**BACKBONE, "model_type": name} for name in ("bert", "vit_mae", "clip", "gpt2")),
    *({**BACKBONE, name: value} for name in ("hidden_size", "image_size", "patch_size") for value in WRONG),
    *({**BACKBONE, "num_channels": value} for value in (0, -1, "x", None, NAN, 1.5)),
    *({**BACKBONE, "image_size": (48, 56), "patch_size": size} for size in ((8, 64), (64, 8), (49, 49))),
]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
ANNOTATION = {"concepts": [0], "points": {"xy": [[3, 3]], "category": [1]}}
# The device has a test of its own, and return_tensors an error of transformers'.
PARAMETERS = sorted(set(AscentViTImageProcessor.valid_kwargs.__annotations__) - {"device", "return_tensors"})


def small_enough(config) -> bool:
    sizes = (*config.image_size, config.hidden_size, config.num_labels, len(config.concepts), config.fusion_points)
    return max(sizes) < 10_000


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_wrong_once(fuzz, make_config, field):
    def check(value):
        fields = {"backbone_config": BACKBONE, "fusion_heads": 4, field: value}
        config = fuzz.outcome(lambda: AscentViTConfig(**fields))
        if isinstance(config, fuzz.Refused):
            return
        again = AscentViTConfig.from_dict(config.to_dict())
        assert again.concepts == config.concepts and again.num_labels == config.num_labels

    fuzz.each("configurations", WRONG, check)


def test_every_backbone_wrong_once(fuzz):
    fuzz.each(
        "configurations",
        WRONG_BACKBONES,
        lambda backbone: fuzz.outcome(lambda: AscentViTConfig(backbone_config=backbone, fusion_heads=4)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_what_is_accepted_works(fuzz, field):
    """The model of every accepted configuration has finite outputs and a finite loss."""

    def check(value):
        fields = {"backbone_config": BACKBONE, "fusion_heads": 4, "num_spatial_concepts": 3, "num_global_concepts": 3}
        if field in ("global_concepts", "spatial_concepts"):
            del fields[f"num_{field}"]
        config = fuzz.outcome(lambda: AscentViTConfig(**{**fields, field: value}))
        if isinstance(config, fuzz.Refused) or not small_enough(config):
            return
        model = fuzz.outcome(lambda: AscentViTForImageClassification(config))
        if isinstance(model, fuzz.Refused):
            return
        size = config.image_size
        labels = torch.zeros(2, config.num_labels) if config.problem_type == "multi_label_classification" else None
        outputs = model.eval()(torch.rand(2, 3, *size), labels=labels if labels is not None else torch.zeros(2).long())
        assert outputs.logits.isfinite().all() and outputs.loss.isfinite()

    fuzz.each("configurations", WRONG, check)


def check_processor(fuzz, processor_class, given_at, parameters):
    fixed = {"patch_size": 8, "size": {"height": 48, "width": 40}, "num_global_concepts": 2, "num_spatial_concepts": 2}
    at_start = {**fixed, **parameters} if given_at == "start" else fixed
    at_call = parameters if given_at == "call" else {}

    def process():
        return processor_class(**at_start)(IMAGE, ANNOTATION, **{"return_tensors": "pt", **at_call})

    got = fuzz.outcome(process)
    if isinstance(got, fuzz.Refused):
        return
    pixels = torch.as_tensor(np.asarray(got["pixel_values"]))
    assert pixels.ndim == 4 and pixels.numel() and pixels.isfinite().all()


def test_every_parameter_wrong_once(fuzz, processor_class):
    cases = [
        (given_at, {name: value, **switch})
        for name, value, given_at in itertools.product(PARAMETERS, WRONG, ("start", "call"))
        for switch in [{"do_center_crop": True}] * (name == "crop_size")
        + [{"do_pad": True}] * (name == "pad_size")
        + [{}]
    ]
    fuzz.each("processors", cases, lambda case: check_processor(fuzz, processor_class, *case))


@pytest.mark.slow
def test_several_parameters_wrong_at_once(fuzz, processor_class):
    parameters = st.dictionaries(st.sampled_from(PARAMETERS), st.sampled_from(WRONG), min_size=2, max_size=4)
    cases = st.tuples(st.sampled_from(["start", "call"]), parameters)
    fuzz.run("processors", 500, cases, lambda case: check_processor(fuzz, processor_class, *case))


@pytest.mark.parametrize("device", ["x", "", -1, [], {}, object(), "cuda:x"])
def test_devices_that_are_none(fuzz, processor_class, device):
    assert isinstance(fuzz.outcome(lambda: processor_class(device=device)), fuzz.Refused)
    assert isinstance(fuzz.outcome(lambda: processor_class()(IMAGE, device=device)), fuzz.Refused)


def test_many_concepts_take_little_time(fuzz):
    with fuzz.one_case("configurations"):
        config = AscentViTConfig(num_spatial_concepts=100_000, num_labels=100_000)
    assert config.num_spatial_concepts == 100_000
