# SPDX-License-Identifier: Apache-2.0
"""Odd pixels, labels, targets and overrides to the model: finite outputs, or one sentence."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from modeling_ascent_vit import AscentViTForImageClassification


BATCH, GLOBAL, SPATIAL, PATCHES, CLASSES = 2, 3, 4, 36, 5
EXAMPLES = [120, pytest.param(1000, marks=pytest.mark.nightly)]
NAN, INF = float("nan"), float("inf")
SHAPES = {
    "concept_targets": (BATCH, GLOBAL),
    "global_concept_override": (BATCH, GLOBAL),
    "spatial_concept_targets": (BATCH, PATCHES, SPATIAL),
    "spatial_concept_override": (BATCH, PATCHES, SPATIAL),
    "labels": (BATCH,),
    "pixel_values": (BATCH, 3, 48, 48),
}
DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.int8),
    *(torch.bool, torch.complex64),
]
VALUES = [0.0, 0.5, 1.0, 1.0, 4.0, 5.0, 2.0, -1.0, -100.0, NAN, INF, -INF, 1e30, 1e-40, 1e6, 1e7]


@pytest.fixture
def model(make_config):
    return AscentViTForImageClassification(make_config(fusion_levels=1)).eval()


@st.composite
def values(draw, name):
    """A tensor of right or wrong shape, dtype and values, or no tensor at all."""
    shape = list(SHAPES[name])
    how = draw(
        st.sampled_from(["right", "right", "right", "right", "grown", "cut", "squeezed", "more", "empty", "junk"])
    )
    axis = draw(st.integers(0, len(shape) - 1))
    if how == "junk":
        junk = [
            3,
            "x",
            [1, 2],
            (),
            {},
            np.zeros(shape),
            [torch.zeros(shape)],
            object(),
            torch.zeros(shape).to_sparse(),
        ]
        return draw(st.sampled_from(junk))
    if how in ("grown", "cut"):
        shape[axis] += 1 if how == "grown" else -1
    elif how == "squeezed":
        del shape[axis]
    elif how == "more":
        shape.insert(axis, draw(st.sampled_from([1, 2, 5])))
    elif how == "empty":
        shape[axis] = 0
    if name == "pixel_values":
        # Of these the model does not promise anything else but what follows from finite pixels.
        array = np.random.default_rng(draw(st.integers(0, 9))).normal(size=shape)
    else:
        some = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=3))
        array = np.random.default_rng(draw(st.integers(0, 9))).choice(some, shape)
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(array)).to(
            draw(st.sampled_from(DTYPES + [torch.float32] * 6 + [torch.int64]))
        )


@pytest.mark.parametrize("examples", EXAMPLES)
def test_odd_arguments(fuzz, model, examples):
    pixels = torch.rand(SHAPES["pixel_values"])

    def check(arguments):
        # transformers remembers the kind of labels that it saw first.
        model.config.problem_type = None
        also = (TypeError,) if not isinstance(arguments.get("pixel_values", pixels), torch.Tensor) else ()
        got = fuzz.outcome(lambda: model(**{"pixel_values": pixels, **arguments}, output_contributions=True), *also)
        if isinstance(got, fuzz.Refused):
            return
        assert got.logits.shape == (len(arguments.get("pixel_values", pixels)), CLASSES)
        for name, value in got.items():
            assert value.isfinite().all(), f"{name} is not finite for {arguments}"

    strategy = st.fixed_dictionaries({}, optional={name: values(name) for name in SHAPES})
    one = st.one_of(*(values(name).map(lambda value, name=name: {name: value}) for name in SHAPES))
    fuzz.run("arguments of forward", examples, st.one_of(one, one, strategy), check)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([0, 5]), "classes from 0 to 4, or -100 for some that are ignored; got .0, 5."),
        (torch.tensor([-1, 0]), "classes from 0 to 4"),
        (torch.tensor([-100, -100]), "classes from 0 to 4"),
        ([0, 1], "must be a tensor with one entry per image, .2,.; got list"),
        (torch.tensor([[0.0, NAN, 0, 0, 0]] * 2), "labels must be finite"),
    ],
)
def test_labels_that_are_no_classes(model, labels, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(SHAPES["pixel_values"]), labels=labels)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_whole_numbers_of_any_dtype_are_classes(model, dtype):
    pixels, labels = torch.rand(SHAPES["pixel_values"]), torch.tensor([0, 4])
    torch.testing.assert_close(model(pixels, labels=labels.to(dtype)).loss, model(pixels, labels=labels).loss)


def test_classes_to_map(fuzz, model):
    pixels = torch.rand(SHAPES["pixel_values"])
    good = ([0], [4, 0], [[0], [1]], np.array([3]), torch.tensor([1]), (2, 3))
    wrong = (
        [],
        [5],
        [-1],
        [0.5],
        "a",
        None,
        [NAN],
        torch.tensor(0),
        [10**30],
        ["a"],
        {},
        [[0], [1, 2]],
        [True],
        [[0]],
    )

    def check(class_ids):
        got = fuzz.outcome(lambda: model.contribution_maps(pixels, class_ids))
        assert isinstance(got, fuzz.Refused) == any(class_ids is case for case in wrong)

    fuzz.each("arguments of forward", [*good, *wrong], check)


def test_pixels_that_are_not_finite_are_the_image_processors_business(model):
    """As the docstring says: the model does not look at them, and its outputs show them."""
    assert model(torch.full(SHAPES["pixel_values"], NAN)).logits.isnan().all()
