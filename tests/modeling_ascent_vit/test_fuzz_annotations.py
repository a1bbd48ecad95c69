# SPDX-License-Identifier: Apache-2.0
"""Odd annotations through the image processor: the targets that a count of pixels gives, or one sentence."""

import time

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from modeling_ascent_vit import AscentViTImageProcessorPil


HEIGHT, WIDTH, PATCH, GLOBAL, SPATIAL = 24, 32, 8, 3, 4
IMAGE = Image.new("RGB", (WIDTH, HEIGHT))
EXAMPLES = [300, pytest.param(3000, marks=pytest.mark.nightly)]
NAN, INF = float("nan"), float("inf")

IDS = st.one_of(
    st.lists(st.integers(0, 2), max_size=4),
    st.lists(st.integers(-2, 6), max_size=4),
    st.sampled_from(
        [None, 3, "1", [1.0], ["a"], [True], [None], [[0]], [[0], [1, 2]], {0}, {}, {0: 1}, (0, 2), np.array([0, 2])]
    ),
    st.sampled_from(
        [np.array([0], np.uint8), np.array([0.5]), np.array(1), [10**30], [2**63], [NAN], range(2), b"\0", np.zeros(0)]
    ),
)
# Whole numbers, so that counting pixels is exact.
WHOLE = st.integers(-4, 40)
NUMBER = st.one_of(
    WHOLE, st.sampled_from([NAN, INF, -INF, 1e308, -1e308, 1e-300, -0.0, 10**400, None, "3", True, 2.5, [1]])
)


def placed(key, length):
    good = st.lists(st.tuples(st.lists(WHOLE, min_size=length, max_size=length), st.integers(0, 3)), max_size=4)
    columns = good.map(lambda items: {key: [p for p, _ in items], "category": [c for _, c in items]})
    rows = good.map(lambda items: [{key: p, "category": c, "area": 3} for p, c in items])
    wrong = st.fixed_dictionaries(
        {},
        optional={
            key: st.lists(st.lists(NUMBER, max_size=5), max_size=3),
            "category": IDS,
            "extra": st.none(),
        },
    )
    return st.one_of(columns, columns, rows, wrong, st.sampled_from([None, 3, "x", [], {}, [3], [[]], [{}], {key: 3}]))


def a_mask(kind, seed):
    """A mask as something that PIL or numpy gives, of values from 0 to 4 and 255 unless it says otherwise."""
    values = np.random.default_rng(seed).choice([0, 0, 1, 2, 3, 4, 255], (HEIGHT, WIDTH)).astype(np.uint8)
    return {
        "array": lambda: values,
        "image": lambda: Image.fromarray(values),
        "list": lambda: values.tolist(),
        "int64": lambda: values.astype(np.int64),
        "palette": lambda: Image.fromarray(values).convert("P"),
        "bool": lambda: values == 1,
        "1": lambda: Image.fromarray(values).convert("1"),
        "I;16": lambda: Image.fromarray(values.astype(np.uint16)),
        "flipped": lambda: values[::-1, ::-1],
        "float": lambda: values.astype(float),
        "F": lambda: Image.fromarray(values.astype(np.float32)),
        "RGB": lambda: Image.fromarray(values).convert("RGB"),
        "transposed": lambda: values.T,
        "too small": lambda: values[:-1],
        "value 5": lambda: np.where(values == 4, 5, values),
        "negative": lambda: values.astype(int) - 1,
        "huge": lambda: np.full((HEIGHT, WIDTH), 2**64 - 1, np.uint64),
        "three": lambda: values[None],
        "ragged": lambda: [[0], [1, 2]],
        "empty": lambda: [],
        "object": lambda: np.full((HEIGHT, WIDTH), None),
        "text": lambda: "mask.png",
        "number": lambda: 3,
    }[kind]()


MASKS = ["array", "image", "list", "int64", "bool", "1", "I;16", "flipped", "float", "F", "RGB", "transposed"]
MASKS += ["too small", "value 5", "negative", "huge", "three", "ragged", "empty", "object", "text", "number"]

ANNOTATIONS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "concepts": IDS,
            "unknown_concepts": IDS,
            "objects": placed("bbox", 4),
            "points": placed("xy", 2),
            "mask": st.one_of(st.none(), st.builds(a_mask, st.sampled_from(MASKS), st.integers(0, 9))),
            "present": st.one_of(st.just([0, 1, 2, 3]), IDS),
            "unknown_present": IDS,
        },
    ),
    st.sampled_from([None, {"boxes": []}, {1: 2}, 3, "x", [], [[]], {"objects": {"bbox": None, "category": None}}]),
)


def columns_of(value, key):
    if isinstance(value, dict):
        return value.get(key), value.get("category")
    return [item[key] for item in value], [item["category"] for item in value]


def counted_targets(annotation):
    """Targets of a good annotation by counting pixels, patch by patch: the image is not resized."""
    rows, columns = HEIGHT // PATCH, WIDTH // PATCH
    marks, ignored, known = np.zeros((rows, columns, SPATIAL), bool), np.zeros((rows, columns), bool), False

    def mark(pixels, concept):
        counts = pixels.reshape(rows, PATCH, columns, PATCH).sum((1, 3))
        chosen = counts >= PATCH * PATCH / 2
        if not chosen.any() and counts.any():
            chosen[np.unravel_index(counts.argmax(), counts.shape)] = True
        marks[chosen, concept] = True

    boxes = columns_of(annotation["objects"], "bbox") if annotation.get("objects") is not None else (None, None)
    if boxes[0] is not None:
        known = True
        for (x, y, width, height), concept in zip(*boxes, strict=True):
            pixels = np.zeros((HEIGHT, WIDTH), bool)
            pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
            mark(pixels, concept)
    points = columns_of(annotation["points"], "xy") if annotation.get("points") is not None else (None, None)
    if points[0] is not None:
        known = True
        for (x, y), concept in zip(*points, strict=True):
            marks[int(y) // PATCH, int(x) // PATCH, int(concept)] = True
    if annotation.get("mask") is not None:
        known = True
        mask = np.asarray(annotation["mask"]).astype(int)
        for concept in range(SPATIAL):
            mark(mask == concept + 1, concept)
        share = (mask == 255).reshape(rows, PATCH, columns, PATCH).mean((1, 3))
        ignored = share >= 0.5
    targets = marks.astype(np.float32)
    targets[(ignored | (not known)) & ~marks.any(-1)] = np.nan
    return targets.reshape(-1, SPATIAL)


@pytest.fixture
def processor():
    return AscentViTImageProcessorPil(
        do_resize=False,
        patch_size=PATCH,
        num_global_concepts=GLOBAL,
        num_spatial_concepts=SPATIAL,
        unannotated="none",
    )


def is_whole(annotation):
    """Whether its coordinates are whole numbers, which counting pixels needs."""
    for name, key in (("objects", "bbox"), ("points", "xy")):
        value = annotation.get(name)
        places = columns_of(value, key)[0] if value is not None else None
        if places is not None and not all(type(number) is int for place in places for number in place):
            return False
    return True


@pytest.mark.parametrize("examples", EXAMPLES)
def test_odd_annotations(fuzz, processor, examples):
    taken = []

    def check(annotation):
        got = fuzz.outcome(lambda: processor(IMAGE, annotation, return_tensors="np"))
        if isinstance(got, fuzz.Refused):
            return
        if annotation is None:
            assert set(got) == {"pixel_values"}
            return
        taken.append(annotation)
        concepts, spatial = got["concept_targets"][0], got["spatial_concept_targets"][0]
        expected = np.full(GLOBAL, 0.0 if annotation.get("concepts") is not None else np.nan)
        for name, value in (("concepts", 1), ("unknown_concepts", np.nan)):
            if annotation.get(name) is not None:
                expected[[int(i) for i in annotation[name]]] = value
        np.testing.assert_array_equal(concepts, expected)
        assert np.isin(spatial[~np.isnan(spatial)], (0, 1)).all()
        if is_whole(annotation):
            np.testing.assert_array_equal(spatial, counted_targets(annotation))
        assert ("spatial_concept_presence" in got) == (annotation.get("present") is not None)
        if "spatial_concept_presence" in got:
            expected = np.zeros(SPATIAL)
            for name, value in (("present", 1), ("unknown_present", np.nan)):
                if annotation.get(name) is not None:
                    expected[[int(i) for i in annotation[name]]] = value
            marked = (spatial == 1).any(axis=0)
            assert not (marked & (expected == 0)).any()
            np.testing.assert_array_equal(got["spatial_concept_presence"][0], np.where(marked, 1, expected))

    fuzz.run("annotations", examples, ANNOTATIONS, check)
    assert len(taken) > examples / 20


@pytest.mark.parametrize("kind", MASKS)
def test_masks(fuzz, processor, kind):
    good = kind in ("array", "image", "list", "int64", "bool", "1", "I;16", "flipped")
    mask = a_mask(kind, 0)
    got = fuzz.outcome(lambda: processor(IMAGE, {"mask": mask}, return_tensors="np"))
    assert isinstance(got, fuzz.Refused) != good
    if good:
        np.testing.assert_array_equal(got["spatial_concept_targets"][0], counted_targets({"mask": mask}))


def test_thousands_of_annotations_take_little_time(processor):
    processor = AscentViTImageProcessorPil.from_dict(processor.to_dict() | {"num_spatial_concepts": 200})
    rng = np.random.default_rng(0)
    number = 5000
    boxes = np.stack([rng.uniform(0, 20, number) for _ in range(4)], axis=1) + [0, 0, 1, 1]
    ids = rng.integers(0, 200, number)
    annotation = {
        "objects": {"bbox": boxes.tolist(), "category": ids.tolist()},
        "points": [{"xy": box[:2].tolist(), "category": int(i)} for box, i in zip(boxes, ids, strict=True)],
        "concepts": [0, 1] * number,
    }
    start = time.process_time()
    got = processor(IMAGE, annotation, return_tensors="np")
    assert time.process_time() - start < 5
    assert (got["spatial_concept_targets"] == 1).any(axis=(0, 1)).all()


@pytest.mark.parametrize("annotations", [[], [None], [None] * 3, ({},), {}, [{}, 3], [{}, {}, {}], "ab", 3, [[]] * 2])
def test_another_number_of_annotations(fuzz, processor, annotations):
    got = fuzz.outcome(lambda: processor([IMAGE, IMAGE], annotations))
    assert isinstance(got, fuzz.Refused)
