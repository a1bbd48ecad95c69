# SPDX-License-Identifier: Apache-2.0
"""Patch geometry and concept targets against references that compute every patch or pixel by itself, exactly."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_ascent_vit.concept_targets_ascent_vit import (
    PatchAxis,
    check_annotations,
    global_concept_targets,
    spatial_concept_presence,
    spatial_concept_targets,
)


SHARES = [Fraction(1, 10), Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), Fraction(3, 4), Fraction(1)]
# The tolerance that the module documents, applied here without rounding.
TOLERANCE = Fraction(1, 10**6)


@st.composite
def patch_axes(draw, longest=24):
    original, resized = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    cropped = draw(st.one_of(st.just(resized), st.integers(1, longest)))
    start = draw(st.integers(min(0, resized - cropped), max(0, resized - cropped)))
    processed = cropped + draw(st.sampled_from([0, 0, 3, 8]))
    return PatchAxis(original, resized, start, cropped, processed, draw(st.integers(1, min(8, processed))))


def seen_by_patch(axis, index):
    """Interval of original positions that a patch sees of the image, computed backwards from the patch."""
    low, high = index * axis.patch, min((index + 1) * axis.patch, axis.cropped)
    scale = Fraction(axis.original, axis.resized)
    low, high = (low + axis.crop_start) * scale, (high + axis.crop_start) * scale
    return max(low, Fraction(0)), min(high, Fraction(axis.original))


def overlap(a, b):
    return max(Fraction(0), min(a[1], b[1]) - max(a[0], b[0]))


def box_coverage(axes, box):
    x, y, width, height = map(Fraction, box)
    grid = np.empty((axes[0].num_patches, axes[1].num_patches), dtype=object)
    for i, j in np.ndindex(grid.shape):
        covered = overlap((y, y + height), seen_by_patch(axes[0], i)) * overlap(
            (x, x + width), seen_by_patch(axes[1], j)
        )
        # A patch's area in original pixels: resize changes lengths by resized / original.
        grid[i, j] = (
            covered
            * Fraction(axes[0].resized * axes[1].resized)
            / (axes[0].original * axes[1].original * axes[0].patch * axes[1].patch)
        )
    return grid


def mask_coverage(axes, selected):
    grid = np.full((axes[0].num_patches, axes[1].num_patches), Fraction(0), dtype=object)
    for y, x in np.argwhere(selected).tolist():
        grid = grid + box_coverage(axes, (x, y, 1, 1))
    return grid


def marked(coverage, share):
    marks = np.array([[value >= share * (1 - TOLERANCE) for value in row] for row in coverage])
    if not marks.any() and coverage.max() > 0:
        ranked = sorted(np.ndindex(coverage.shape), key=lambda place: (-coverage[place], place))
        marks[ranked[0]] = True
    return marks


def as_grid(targets, axes):
    return targets.T.reshape(-1, axes[0].num_patches, axes[1].num_patches)


def assert_targets(targets, axes, marks, unknown):
    expected = marks.astype(np.float32)
    expected[:, unknown & ~marks.any(axis=0)] = np.nan
    np.testing.assert_array_equal(as_grid(targets, axes), expected)


@settings(max_examples=150, deadline=None)
@given(patch_axes(), patch_axes(), st.sampled_from(SHARES), st.sampled_from(["ignore", "none"]), st.data())
def test_boxes_match_exact_reference(y_axis, x_axis, share, unannotated, data):
    axes = (y_axis, x_axis)
    boxes, ids = [], []
    for _ in range(data.draw(st.integers(0, 3))):
        left = data.draw(st.integers(-20, 4 * x_axis.original - 1)) / 4
        top = data.draw(st.integers(-20, 4 * y_axis.original - 1)) / 4
        right = data.draw(st.integers(int(4 * max(left, 0)) + 1, 4 * x_axis.original + 20)) / 4
        bottom = data.draw(st.integers(int(4 * max(top, 0)) + 1, 4 * y_axis.original + 20)) / 4
        boxes.append([left, top, right - left, bottom - top])
        ids.append(data.draw(st.integers(0, 2)))
    marks = np.zeros((3, y_axis.num_patches, x_axis.num_patches), dtype=bool)
    for box, concept in zip(boxes, ids, strict=True):
        marks[concept] |= marked(box_coverage(axes, box), share)
    annotation = {"objects": {"bbox": boxes, "category": ids}}
    targets = spatial_concept_targets(annotation, axes, 3, float(share), unannotated)
    assert targets.dtype == np.float32 and targets.shape == (y_axis.num_patches * x_axis.num_patches, 3)
    assert_targets(targets, axes, marks, np.full(marks.shape[1:], unannotated == "ignore"))


@settings(max_examples=100, deadline=None)
@given(patch_axes(longest=9), patch_axes(longest=9), st.sampled_from(SHARES), st.booleans(), st.data())
def test_masks_match_exact_reference(y_axis, x_axis, share, none, data):
    axes = (y_axis, x_axis)
    count = y_axis.original * x_axis.original
    values = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 255]), min_size=count, max_size=count))
    mask = np.array(values, dtype=np.uint8).reshape(y_axis.original, x_axis.original)
    marks = np.zeros((2, y_axis.num_patches, x_axis.num_patches), dtype=bool)
    for concept in range(2):
        if (mask == concept + 1).any():
            marks[concept] = marked(mask_coverage(axes, mask == concept + 1), share)
    ignored = np.array(
        [[value >= share * (1 - TOLERANCE) for value in row] for row in mask_coverage(axes, mask == 255)]
    )
    targets = spatial_concept_targets({"mask": mask}, axes, 2, float(share), "none" if none else "ignore")
    assert_targets(targets, axes, marks, ignored if none else np.full(ignored.shape, True))


@settings(max_examples=200, deadline=None)
@given(patch_axes(), patch_axes(), st.data())
def test_points_match_exact_reference(y_axis, x_axis, data):
    axes = (y_axis, x_axis)
    point = [data.draw(st.integers(0, 4 * axis.original - 1)) / 4 for axis in (x_axis, y_axis)]
    marks = np.zeros((2, y_axis.num_patches, x_axis.num_patches), dtype=bool)
    for i, j in product(range(y_axis.num_patches), range(x_axis.num_patches)):
        (top, bottom), (left, right) = seen_by_patch(y_axis, i), seen_by_patch(x_axis, j)
        marks[1, i, j] = top <= Fraction(point[1]) < bottom and left <= Fraction(point[0]) < right
    targets = spatial_concept_targets({"points": {"xy": [point], "category": [1]}}, axes, 2)
    assert marks.sum() <= 1
    assert_targets(targets, axes, marks, np.full(marks.shape[1:], True))


@settings(max_examples=100, deadline=None)
@given(patch_axes(), st.integers(0, 2**32 - 1))
def test_interpolation_matches_per_pixel_reference(axis, seed):
    values = np.random.default_rng(seed).normal(size=axis.num_patches)
    drawn = axis.interpolation(axis.num_patches) @ values
    assert drawn.shape == (axis.original,)
    centres = [i * axis.patch + Fraction(axis.patch, 2) for i in range(axis.num_patches)]
    for pixel in range(axis.original):
        place = Fraction(2 * pixel + 1, 2) * Fraction(axis.resized, axis.original) - axis.crop_start
        if not 0 <= place < axis.cropped:
            assert drawn[pixel] == 0
        else:
            expected = np.interp(float(place), [float(centre) for centre in centres], values)
            assert drawn[pixel] == pytest.approx(expected, abs=1e-9)


def plain(height, width, patch):
    return PatchAxis.identity(height, patch), PatchAxis.identity(width, patch)


def marked_places(targets, axes, concept=0):
    return [tuple(place) for place in np.argwhere(as_grid(targets, axes)[concept] == 1).tolist()]


@pytest.mark.parametrize(("x", "column"), [(0.0, 0), (15.999, 0), (16.0, 1), (31.999999, 1), (32.0, 2)])
def test_patches_are_half_open(x, column):
    axes = plain(32, 48, 16)
    targets = spatial_concept_targets({"points": {"xy": [[x, 3.0]], "category": [0]}}, axes, 2)
    assert marked_places(targets, axes) == [(0, column)]


def test_half_open_edge_after_resize_is_exact():
    # 300 pixels to 224: patch 3 begins at 48 * 300 / 224, which no float holds, between two of float32.
    axis = PatchAxis(300, 224, 0, 224, 224, 16)
    below = float(np.nextafter(np.float32(48 * 300 / 224), np.float32(0)))
    above = float(np.nextafter(np.float32(48 * 300 / 224), np.float32(300)))
    assert (axis.patch_of(below), axis.patch_of(above)) == (2, 3)
    # Patch 7 begins at 112 * 300 / 224 = 150 exactly.
    assert (axis.patch_of(150.0), axis.patch_of(np.nextafter(150.0, 0))) == (7, 6)


def test_box_ending_on_a_patch_edge_does_not_reach_the_next():
    axes = plain(32, 32, 16)
    targets = spatial_concept_targets(
        {"objects": {"bbox": [[0, 0, 16, 16]], "category": [0]}}, axes, 2, annotation_coverage=1e-9
    )
    assert marked_places(targets, axes) == [(0, 0)]


@pytest.mark.parametrize("original", [32, 100, 333])
def test_coverage_of_exactly_the_share_counts(original):
    axes = (PatchAxis(original, 32, 0, 32, 32, 16), PatchAxis(32, 32, 0, 32, 32, 16))
    # Upper half of the first row of patches, in full width, and a whole patch so that no fallback can mark.
    boxes = [[0, 0, 32, original / 4], [0, original / 2, 16, original / 2]]
    annotation = {"objects": {"bbox": boxes, "category": [0, 0]}}
    assert marked_places(spatial_concept_targets(annotation, axes, 2), axes) == [(0, 0), (0, 1), (1, 0)]
    less = [[0, 0, 32, original / 4 * 0.999], boxes[1]]
    annotation = {"objects": {"bbox": less, "category": [0, 0]}}
    # Each box has its own fallback: the first, below the share everywhere, marks one patch only.
    assert marked_places(spatial_concept_targets(annotation, axes, 2), axes) == [(0, 0), (1, 0)]


def test_share_survives_coordinates_stored_as_float32():
    axes = (PatchAxis(301, 224, 0, 224, 224, 16), PatchAxis(499, 224, 0, 224, 224, 16))
    for start in range(13):
        left = float(np.float32(start * 16 * 499 / 224))
        right = float(np.float32((start * 16 + 24) * 499 / 224))
        box = [left, 0.0, float(np.float32(right - left)), 301.0]
        targets = spatial_concept_targets({"objects": {"bbox": [box], "category": [0]}}, axes, 2)
        assert {column for _, column in marked_places(targets, axes)} == {start, start + 1}


def test_tiny_box_between_patches_marks_the_one_it_overlaps_most():
    axes = plain(32, 32, 16)
    targets = spatial_concept_targets({"objects": {"bbox": [[15.5, 15.5, 2, 0.75]], "category": [0]}}, axes, 2)
    assert marked_places(targets, axes) == [(0, 1)]
    # A tie goes to the first in row-major order.
    targets = spatial_concept_targets({"objects": {"bbox": [[15, 15, 2, 2]], "category": [0]}}, axes, 2)
    assert marked_places(targets, axes) == [(0, 0)]


def test_box_leaving_the_image_is_clipped():
    axes = plain(32, 32, 16)
    targets = spatial_concept_targets({"objects": {"bbox": [[-100, -5, 110, 20]], "category": [1]}}, axes, 2)
    assert marked_places(targets, axes, concept=1) == [(0, 0)]


def test_annotated_patches_deny_the_other_concepts_and_add_up():
    axes = plain(32, 32, 16)
    annotation = {
        "objects": [{"bbox": [0, 0, 16, 16], "category": 0, "area": 256}],
        "points": [{"xy": [3, 3], "category": 2}, {"xy": [20, 20], "category": 1}],
        "mask": Image.fromarray(np.pad(np.full((16, 16), 2, np.uint8), [(0, 16), (16, 0)])),
    }
    expected = [[1, 0, 1], [0, 1, 0], [np.nan] * 3, [0, 1, 0]]
    np.testing.assert_array_equal(spatial_concept_targets(annotation, axes, 3), np.float32(expected))
    expected[2] = [0, 0, 0]
    np.testing.assert_array_equal(
        spatial_concept_targets(annotation, axes, 3, unannotated="none"), np.float32(expected)
    )


def test_ignored_patches_are_not_annotated_unless_marked():
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 255
    mask[:16, 16:] = 255
    mask[17, 0] = 255
    axes = plain(32, 32, 16)
    annotation = {"mask": mask, "points": {"xy": [[20.0, 4.0]], "category": [1]}}
    expected = np.float32([[np.nan, np.nan], [0, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(spatial_concept_targets(annotation, axes, 2, unannotated="none"), expected)


@pytest.mark.parametrize("unannotated", ["ignore", "none"])
@pytest.mark.parametrize(
    "annotation",
    [None, {}, {"objects": None, "mask": None}, {"objects": {"bbox": None, "category": None}}, {"concepts": [1]}],
)
def test_image_without_spatial_annotation_is_not_annotated(annotation, unannotated):
    assert np.isnan(spatial_concept_targets(annotation, plain(32, 32, 16), 2, unannotated=unannotated)).all()


@pytest.mark.parametrize("empty", [{"bbox": [], "category": []}, []])
def test_empty_annotation_shows_none_where_that_is_on(empty):
    axes = plain(32, 32, 16)
    assert (spatial_concept_targets({"objects": empty}, axes, 2, unannotated="none") == 0).all()
    assert np.isnan(spatial_concept_targets({"objects": empty}, axes, 2)).all()


def test_rim_belongs_to_no_patch():
    axes = plain(20, 37, 16)
    assert (axes[0].num_patches, axes[1].num_patches) == (1, 2)
    annotation = {"points": {"xy": [[36.0, 3.0], [3.0, 17.0]], "category": [0, 1]}}
    assert np.isnan(spatial_concept_targets(annotation, axes, 2)).all()
    with pytest.raises(ValueError, match="processed to 15 pixels has no patch of 16 pixels"):
        PatchAxis.identity(15, 16)


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(np.eye(16, dtype=bool)),
        Image.fromarray(np.eye(16, dtype=np.uint8)).convert("P"),
        Image.fromarray(np.eye(16, dtype=np.uint16)),
        np.eye(16, dtype=np.int64),
        np.eye(16, dtype=bool),
    ],
    ids=["1", "P", "I;16", "int64", "bool"],
)
def test_masks_of_every_integer_kind(mask):
    axes = plain(16, 16, 8)
    assert marked_places(spatial_concept_targets({"mask": mask}, axes, 2, 0.1), axes) == [(0, 0), (1, 1)]


def test_palette_mask_is_read_by_index():
    mask = Image.fromarray(np.full((16, 16), 2, np.uint8), mode="P")
    mask.putpalette([255, 0, 0] * 256)
    axes = plain(16, 16, 16)
    assert marked_places(spatial_concept_targets({"mask": mask}, axes, 2), axes, concept=1) == [(0, 0)]


def test_global_concepts():
    nan = np.nan
    for annotation, expected in (
        (None, [nan, nan, nan]),
        ({}, [nan, nan, nan]),
        ({"concepts": None}, [nan, nan, nan]),
        ({"concepts": []}, [0, 0, 0]),
        ({"concepts": [2, 0]}, [1, 0, 1]),
        ({"concepts": np.array([1])}, [0, 1, 0]),
        ({"concepts": [2], "unknown_concepts": [0]}, [nan, 0, 1]),
        ({"concepts": [2], "unknown_concepts": [2]}, [0, 0, nan]),
    ):
        targets = global_concept_targets(annotation, 3)
        assert targets.dtype == np.float32
        np.testing.assert_array_equal(targets, np.float32(expected), err_msg=str(annotation))


class TestPresence:
    WHOLE = PatchAxis.identity(16, 8), PatchAxis.identity(16, 8)
    # The middle 8 x 8 pixels, one patch.
    CUT = PatchAxis(16, 16, 4, 8, 8, 8), PatchAxis(16, 16, 4, 8, 8, 8)

    @staticmethod
    def of(annotation, axes, num_concepts=4):
        targets = spatial_concept_targets(annotation, axes, num_concepts)
        return spatial_concept_presence(annotation, targets, axes)

    @pytest.mark.parametrize(
        "annotation, expected",
        [
            (None, [np.nan] * 4),
            ({"present": None, "unknown_present": [1]}, [np.nan] * 4),
            ({"present": []}, [0] * 4),
            ({"present": [2, 0, 2]}, [1, 0, 1, 0]),
            ({"present": [2, 0], "unknown_present": [0, 3]}, [np.nan, 0, 1, np.nan]),
            ({"points": {"xy": [[1.0, 1.0]], "category": [1]}}, [np.nan] * 4),
            ({"points": {"xy": [[1.0, 1.0]], "category": [1]}, "present": [1, 2]}, [0, 1, 1, 0]),
            # A place says that the concept is there.
            ({"points": {"xy": [[1, 1]], "category": [1]}, "present": [2], "unknown_present": [1]}, [0, 1, 1, 0]),
        ],
    )
    def test_in_the_whole_image(self, annotation, expected):
        np.testing.assert_array_equal(self.of(annotation, self.WHOLE), np.float32(expected))

    @pytest.mark.parametrize("key", ["objects", "points", "mask"])
    def test_a_place_of_a_concept_that_the_list_leaves_out(self, key):
        mask = np.zeros((16, 16), np.uint8)
        mask[9, 9] = 4
        places = {
            "objects": {"bbox": [[9, 9, 1, 1]], "category": [3]},
            "points": {"xy": [[9, 9]], "category": [3]},
            "mask": mask,
        }
        annotation = {key: places[key], "present": [0, 1]}
        message = "annotation marks a place of spatial concept 3, but annotation.present .* list it there"
        with pytest.raises(ValueError, match=message):
            self.of(annotation, self.WHOLE)
        with pytest.raises(ValueError, match=message):
            self.of(annotation, self.CUT)

    @pytest.mark.parametrize("key", ["present", "unknown_present"])
    def test_ids(self, key):
        for ids, message in (([4], "must hold ids from 0 to 3"), ([0.5], "must be a list of concept ids")):
            with pytest.raises(ValueError, match=f"annotation.{key} {message}"):
                self.of({"present": [], key: ids}, self.WHOLE)

    @settings(deadline=None)
    @given(patch_axes(), patch_axes(), st.data())
    def test_a_crop_leaves_the_absent_and_what_is_marked_in_it(self, y_axis, x_axis, data):
        present = data.draw(st.sets(st.integers(0, 3)))
        places = st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
        points = data.draw(st.lists(places, max_size=3)) if present else []
        points = [[x * x_axis.original, y * y_axis.original] for x, y in points]
        points = [[x, y] for x, y in points if x < x_axis.original and y < y_axis.original]
        ids = [data.draw(st.sampled_from(sorted(present))) for _ in points]
        got = self.of({"present": sorted(present), "points": {"xy": points, "category": ids}}, (y_axis, x_axis))
        cut = y_axis.cropped < y_axis.resized or x_axis.cropped < x_axis.resized
        seen = {
            concept
            for (x, y), concept in zip(points, ids, strict=True)
            if y_axis.patch_of(y) is not None and x_axis.patch_of(x) is not None
        }
        for concept in range(4):
            if concept not in present:
                assert got[concept] == 0
            elif cut and concept not in seen:
                assert np.isnan(got[concept])
            else:
                assert got[concept] == 1


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            {"objects": {"bbox": [[0, 0, 5, 5], [48, 0, 5, 5]], "category": [0, 0]}},
            r"item\.objects\.bbox must overlap the image, width 48 and height 32; got .* = \[48\.0, 0\.0, 5\.0, 5",
        ),
        ({"objects": {"bbox": [[3, 3, 0, 5]], "category": [0]}}, "must overlap the image"),
        ({"objects": {"bbox": [[3, 3, -2, 5]], "category": [0]}}, "must overlap the image"),
        ({"objects": {"bbox": [[3, 3, float("nan"), 5]], "category": [0]}}, "must be finite numbers; got"),
        ({"objects": {"bbox": [[3, 3, None, 5]], "category": [0]}}, "must be finite numbers; got"),
        ({"objects": {"bbox": [[3, 3, 5]], "category": [0]}}, r"list of \[x, y, width, height\]; got \[\[3, 3, 5\]\]"),
        ({"objects": {"bbox": [3, 3, 5, 5], "category": [0]}}, r"list of \[x, y, width, height\]"),
        ({"objects": {"bbox": [[1, 1, 5, 5], [2]], "category": [0, 1]}}, r"list of \[x, y, width, height\]"),
        ({"objects": {"bbox": [[3, 3, 5, 5]], "category": [2]}}, "ids from 0 to 1, as there are 2 concepts; got 2"),
        ({"objects": {"bbox": [[3, 3, 5, 5]], "category": [-1]}}, "ids from 0 to 1, as there are 2 concepts; got -1"),
        ({"objects": {"bbox": [[3, 3, 5, 5]], "category": ["wing"]}}, "must be a list of concept ids"),
        ({"objects": {"bbox": [[3, 3, 5, 5]], "category": [0.5]}}, "must be a list of concept ids"),
        ({"objects": {"bbox": [[3, 3, 5, 5]], "category": 0}}, "must be a list of concept ids"),
        ({"objects": {"bbox": [[3, 3, 5, 5]], "category": [None]}}, "must be a list of concept ids"),
        ({"objects": {"bbox": [[3, 3, 5, 5]], "category": [0, 1]}}, "got 1 bbox and 2 category"),
        ({"objects": {"bbox": [[3, 3, 5, 5]]}}, 'must have "bbox" and "category"; got no category'),
        ({"objects": [{"category": 1}]}, 'must have "bbox" and "category"; got no bbox'),
        ({"objects": 7}, "or a list of"),
        (
            {"points": {"xy": [[48.0, 3.0]], "category": [0]}},
            r"0 <= x < 48 and 0 <= y < 32; got \[x, y\] = \[48\.0, 3",
        ),
        ({"points": {"xy": [[3.0, -0.25]], "category": [0]}}, "must lie in the image"),
        ({"points": {"xy": [[float("inf"), 3.0]], "category": [0]}}, "must be finite numbers"),
        ({"mask": np.zeros((48, 32), np.uint8)}, "height 32 and width 48; got height 48 and width 32"),
        ({"mask": np.full((32, 48), 3, np.uint8)}, "0, 255 or values from 1 to 2, as there are 2 concepts; got 3"),
        ({"mask": np.full((32, 48), -1)}, "values from 1 to 2, as there are 2 concepts; got -1"),
        ({"mask": np.zeros((32, 48), np.float32)}, r"array of integers; got shape \(32, 48\) of float32"),
        ({"mask": Image.new("RGB", (48, 32))}, r"single-channel image .* got shape \(32, 48, 3\) of uint8"),
    ],
)
def test_spatial_errors(annotation, message):
    with pytest.raises(ValueError, match=message):
        spatial_concept_targets(annotation, plain(32, 48, 16), 2, where="item")


def test_global_errors():
    with pytest.raises(ValueError, match=r"item\.concepts must hold ids from 0 to 2, as there are 3 concepts; got 3"):
        global_concept_targets({"concepts": [3]}, 3, "item")
    with pytest.raises(ValueError, match=r"item\.unknown_concepts must be a list of concept ids"):
        global_concept_targets({"unknown_concepts": "beak"}, 3, "item")


def test_annotations_are_checked_against_images_and_concepts():
    assert check_annotations({"concepts": [0]}, 1, 2, 0) == [{"concepts": [0]}]
    assert check_annotations((None, {}), 2, 2, 0) == [None, {}]
    assert check_annotations([{"concepts": [0], "mask": None}], 1, 2, 0)
    for annotations, counts, message in (
        ([{}], (2, 2), "expected 2, got 1"),
        ({}, (2, 2), "expected 2, got 1"),
        ("concepts", (2, 2), "must be a dict or a list of dicts; got str"),
        ([{}, 3], (2, 2), r"annotations\[1\] must be a dict or None; got int"),
        ([{}, {"boxes": []}], (2, 2), r"annotations\[1\] may have the keys concepts, .*_present; got 'boxes'"),
        ([{}, {}], (0, 0), "num_global_concepts and num_spatial_concepts are both 0"),
        ([{}, {"concepts": []}], (0, 2), r"annotations\[1\] has concepts, but num_global_concepts is 0"),
        ([{"points": {}}, {}], (2, 0), r"annotations\[0\] has points, but num_spatial_concepts is 0"),
        ([{}, {"present": []}], (2, 0), r"annotations\[1\] has present, but num_spatial_concepts is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_annotations(annotations, 2, *counts)
