# SPDX-License-Identifier: Apache-2.0
"""KiTS19: generated volumes in the archive's layout, slices with coloured masks, and the real ones."""

import json
import shutil
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ascent_vit.data import concepts_from_features
from ascent_vit.data.adapters import load_adapter
from ascent_vit.data.adapters.kits19 import SliceOptions, list_slices, read_mask, read_volume, split_patients
from ascent_vit.data.checks import validate_dataset


prepare = load_adapter("kits19")

SHAPE = (8, 40, 48)
SPACING = (3.0, 0.8, 0.7)
# As in the archive: slices from head to foot, rows from front to back, columns from right to left.
AFFINE = np.array([[0, 0, -SPACING[2], 0], [0, -SPACING[1], 0, 0], [-SPACING[0], 0, 0, 0], [0, 0, 0, 1.0]])


def make_case(number):
    """Densities in HU (fat -100, tissue 30, kidney 200, tumour 90); kidney in slices 2 to 6, tumour in 4 and 5."""
    density = np.full(SHAPE, -100, dtype=np.int16)
    density[:, 5:35, 5:43] = 30
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:7, 15 : 25 + number % 3, 8:16] = 1
    mask[2:7, 15:25, 32:40] = 1
    mask[4:6, 12:18, 10:20] = 2
    density[mask == 1] = 200
    density[mask == 2] = 90
    return density, mask


@pytest.fixture
def save_case():
    nibabel = pytest.importorskip("nibabel")

    def save(folder, density=None, mask=None, affine=AFFINE):
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in (("imaging", density), ("segmentation", mask)):
            if values is not None:
                nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"{name}.nii.gz")

    return save


@pytest.fixture
def archive(tmp_path, save_case):
    folder = tmp_path / "kits19"
    for number in range(5):
        save_case(folder / f"case_{number:05d}", *make_case(number))
    (folder / "kits.json").write_text(json.dumps([{"case_id": f"case_{i:05d}"} for i in range(7)]))
    return folder


def write_slices(folder, patients=("1",), numbers=(3, 20, 100)):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for patient in patients:
        for number in numbers:
            mask = np.zeros((20, 24, 3), dtype=np.uint8)
            mask[5:10, 5:10] = (0, 0, 255)
            if number > 3:
                mask[8:12, 8:14] = (255, 0, 0)
            Image.fromarray(mask).save(folder / "masks" / f"{patient}_{number}.png")
            Image.fromarray(mask.max(axis=-1) // 2).save(folder / "images" / f"{patient}_{number}.png")
    return folder


def rows_of(prepared):
    return {
        name: [
            (row["group_id"], row["slice"], row["label"], np.asarray(row["image"]), np.asarray(row["mask"]))
            for row in split
        ]
        for name, split in prepared.dataset.items()
    }


def assert_same_rows(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert [row[:3] for row in first[name]] == [row[:3] for row in second[name]]
        for one, other in zip(first[name], second[name], strict=True):
            np.testing.assert_array_equal(one[3], other[3])
            np.testing.assert_array_equal(one[4], other[4])


def test_slices_of_volumes_are_the_labels_and_the_window(archive):
    prepared = prepare(archive, centre=50, width=300)
    validate_dataset(prepared.dataset)
    features = prepared.dataset["train"].features
    assert concepts_from_features(features) == (["no tumour", "tumour"], ["kidney", "tumour"], ["kidney", "tumour"])
    assert {name: len(split) for name, split in prepared.dataset.items()} == {"train": 15, "validation": 5, "test": 5}
    patients = [set(split["group_id"]) for split in prepared.dataset.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 5
    for split in prepared.dataset.values():
        for row in split:
            _, mask = make_case(int(row["group_id"][-5:]))
            mask = mask[row["slice"]]
            np.testing.assert_array_equal(np.asarray(row["mask"]), mask)
            assert row["label"] == (row["slice"] in (4, 5))
            assert row["concepts"] == ([0, 1] if row["label"] else [0])
            image = np.asarray(row["image"])
            # Black is -100 HU, white 200 HU.
            assert (image[mask == 1] == 255).all() and (image[mask == 2] == round(190 / 300 * 255)).all()
            assert image[0, 0] == 0 and image[30, 30] == round(130 / 300 * 255) and image.dtype == np.uint8
    assert "2 of the 7 cases of kits.json" in prepared.description
    assert "15 slices without kidney and tumour" in prepared.description


def test_reading_twice_gives_the_same_rows_and_the_seed_decides(archive):
    assert_same_rows(rows_of(prepare(archive, seed=1)), rows_of(prepare(archive, seed=1)))
    tests = {tuple(sorted(set(prepare(archive, seed=seed).dataset["test"]["group_id"]))) for seed in range(5)}
    assert len(tests) > 1


def test_every_and_only_annotated(archive):
    prepared = prepare(archive, every=3, only_annotated=False)
    assert sorted(set(prepared.dataset["train"]["slice"])) == [0, 3, 6]
    empty = [row for row in prepared.dataset["train"] if row["slice"] == 0]
    assert all(row["concepts"] == [] and row["label"] == 0 and not np.any(row["mask"]) for row in empty) and empty
    validate_dataset(prepared.dataset)
    with pytest.raises(ValueError, match="No slice.*only_annotated=false"):
        prepare(archive, every=8)


def test_volumes_stored_otherwise_are_turned_by_their_affine(archive, tmp_path, save_case):
    import nibabel

    expected = rows_of(prepare(archive))
    for case in archive.glob("case_*"):
        for path in case.glob("*.nii.gz"):
            turned = nibabel.as_closest_canonical(nibabel.load(path))
            assert turned.shape == SHAPE[::-1]
            copy = tmp_path / "turned" / case.name
            copy.mkdir(parents=True, exist_ok=True)
            nibabel.save(turned, copy / path.name)
    assert_same_rows(expected, rows_of(prepare(tmp_path / "turned")))
    # The identity is no statement about the patient: the first axis counts the slices.
    for number in range(5):
        save_case(tmp_path / "plain" / "data" / f"case_{number:05d}", *make_case(number), affine=np.eye(4))
    assert_same_rows(expected, rows_of(prepare(tmp_path / "plain")))


def test_cases_without_labels_are_left_out_and_counted(archive, save_case):
    save_case(archive / "case_00210", density=make_case(0)[0])
    prepared = prepare(archive)
    assert "1 cases without segmentation" in prepared.description
    assert all("case_00210" not in split["group_id"] for split in prepared.dataset.values())


def test_bad_volumes_are_one_clear_error(archive, save_case):
    case = archive / "case_00002"
    density, mask = make_case(2)
    content = (case / "segmentation.nii.gz").read_bytes()

    save_case(case, mask=mask * 2)
    with pytest.raises(ValueError, match="segmentation.nii.gz must hold 0, 1 .* alone; got 0, 2, 4"):
        prepare(archive)
    save_case(case, mask=mask[:-1])
    with pytest.raises(ValueError, match="same shape; got \\(8, 40, 48\\) and \\(7, 40, 48\\)"):
        prepare(archive)
    for broken in (content[: len(content) // 2], b"no volume", b""):
        (case / "segmentation.nii.gz").write_bytes(broken)
        with pytest.raises(ValueError, match="case_00002/segmentation.nii.gz cannot be read"):
            prepare(archive)
    (case / "segmentation.nii.gz").write_bytes(content)
    holes = density.astype(np.float32)
    holes[4, 0, 0] = np.nan
    save_case(case, density=holes)
    with pytest.raises(ValueError, match="slice 4: a density is not finite"):
        prepare(archive)
    save_case(case, density=density[..., None])
    with pytest.raises(ValueError, match="three axes"):
        prepare(archive)
    (case / "imaging.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no imaging.nii.gz.*get_imaging"):
        prepare(archive)
    shutil.rmtree(case)
    (archive / "kits.json").write_text("[{")
    with pytest.raises(ValueError, match="kits.json is no JSON"):
        prepare(archive)


def test_volumes_without_nibabel_say_what_to_install(tmp_path, monkeypatch):
    for name in ("imaging", "segmentation"):
        path = tmp_path / "case_00000" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match="pip install nibabel"), pytest.warns(UserWarning, match="one patient"):
        prepare(tmp_path)


def test_slices_with_coloured_masks(tmp_path):
    folder = write_slices(tmp_path / "slices", patients=("1", "2", "3"))
    prepared = prepare(folder)
    validate_dataset(prepared.dataset)
    assert {name: len(split) for name, split in prepared.dataset.items()} == {"train": 3, "validation": 3, "test": 3}
    for split in prepared.dataset.values():
        assert len(set(split["group_id"])) == 1 and split["slice"][:] == [3, 20, 100]
        assert split["label"][:] == [0, 1, 1] and split["concepts"][:] == [[0], [0, 1], [0, 1]]
        mask = np.asarray(split[1]["mask"])
        assert mask[9, 9] == 2 and mask[5, 5] == 1 and mask[0, 0] == 0
    swapped = prepare(folder, kidney_colour="red").dataset["train"]
    assert np.asarray(swapped[1]["mask"])[9, 9] == 1 and swapped["label"][:] == [1, 1, 1]


def test_one_patient_is_one_split_with_a_warning(tmp_path):
    write_slices(tmp_path / "slices")
    with pytest.warns(UserWarning, match="one patient, 1: all slices are train"):
        prepared = prepare(tmp_path)
    assert {name: len(split) for name, split in prepared.dataset.items()} == {"train": 3}


@pytest.mark.parametrize(
    "count, sizes", [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (10, (7, 1, 2)), (210, (147, 21, 42))]
)
def test_no_patient_is_in_two_splits(count, sizes):
    patients = [f"case_{i:05d}" for i in range(count)]
    splits = split_patients(patients, 0.1, 0.2, seed=0)
    assert tuple(len(splits.get(name, [])) for name in ("train", "validation", "test")) == sizes
    assert sorted(sum(splits.values(), [])) == patients


def test_bad_slices_are_one_clear_error(tmp_path):
    folder = write_slices(tmp_path / "slices", patients=("1", "2"))
    image, mask = folder / "images" / "1_20.png", folder / "masks" / "1_20.png"

    content = mask.read_bytes()
    Image.new("RGB", (24, 19)).save(mask)
    with pytest.raises(ValueError, match="1_20.png must have the image's 24x20 pixels; got 24x19"):
        prepare(folder)
    Image.new("RGB", (24, 20), (0, 255, 0)).save(mask)
    with pytest.raises(ValueError, match="got \\(0, 255, 0\\) in row 0, column 0"):
        prepare(folder)
    Image.new("L", (24, 20), 3).save(mask)
    with pytest.raises(ValueError, match="alone; got 3"):
        prepare(folder)
    mask.write_bytes(b"no image")
    with pytest.raises(ValueError, match="1_20.png cannot be read"):
        prepare(folder)
    mask.unlink()
    with pytest.raises(FileNotFoundError, match="1_20.png has no mask"):
        prepare(folder)
    mask.write_bytes(content)
    pixels = image.read_bytes()
    image.write_bytes(pixels[:60])
    with pytest.raises(ValueError, match="1_20.png cannot be read"):
        prepare(folder)
    image.write_bytes(pixels)
    for kind in ("images", "masks"):
        shutil.copy(folder / kind / "1_20.png", folder / kind / "1_020.png")
    with pytest.raises(ValueError, match="1_020.png and 1_20.png are the same slice"):
        prepare(folder)
    for kind in ("images", "masks"):
        (folder / kind / "1_020.png").rename(folder / kind / "first.png")
    with pytest.raises(ValueError, match="first.png must be named PATIENT_SLICE.png"):
        prepare(folder)


def test_missing_folders_are_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        prepare(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="does not hold KiTS19"):
        prepare(tmp_path)
    (tmp_path / "case_00000").mkdir()
    with pytest.raises(FileNotFoundError, match="No case in"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "other"},
        {"kidney_colour": "green"},
        {"width": 0},
        {"centre": float("nan")},
        {"every": 0},
        {"test_share": 0.95},
    ],
)
def test_bad_options_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="must be"):
        prepare(write_slices(tmp_path / "slices"), **options)


def test_shares_that_leave_no_train_are_refused():
    with pytest.raises(ValueError, match="leave none of 3 patients"):
        split_patients(["1", "2", "3"], 0.45, 0.5, seed=0)


def test_window_clips_and_is_linear():
    options = SliceOptions(centre=40, width=400, every=1, only_annotated=True)
    greys = options.grey(np.array([-1000, -160, 40, 140, 240, 3000]))
    assert greys.tolist() == [0, 0, 128, 191, 255, 255]


@pytest.mark.parametrize("case, slices", [("case_00015", 75), ("case_00038", 32), ("case_00061", 29)])
def test_the_real_label_volumes(shared_folder, case, slices):
    pytest.importorskip("nibabel")
    path = shared_folder / "data" / "kits19" / case / "segmentation.nii.gz"
    if not path.is_file():
        pytest.skip("no KiTS19 volumes")
    mask = read_volume(path)
    assert mask.shape == (slices, 512, 512) and set(np.unique(mask)) == {0, 1, 2}
    # Kidneys lie in the back half, on both sides of the spine.
    rows, columns = np.nonzero((mask == 1).any(axis=0))
    assert rows.min() > 150 and columns.min() < 256 < columns.max()


def test_the_real_slices(shared_folder):
    folder = shared_folder / "data" / "kits19"
    if not (folder / "slices").is_dir():
        pytest.skip("no KiTS19 slices")
    with pytest.warns(UserWarning, match="one patient, 10036"):
        prepared = prepare(folder)
    validate_dataset(prepared.dataset)
    train = prepared.dataset["train"]
    assert list(prepared.dataset) == ["train"] and Counter(train["label"]) == {1: 11, 0: 1}
    assert train["slice"][:] == [number for number, _ in list_slices(folder / "slices")["10036"]]
    # Contrast agent lights up kidneys, which lie on both sides; the tumour is one dark mass.
    for row in train:
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"])
        assert mask.shape == (512, 512) and (mask == 1)[:, :256].any()
        assert row["label"] == (mask == 2).any()
        if row["label"]:
            assert image[mask == 1].mean() > 1.5 * image[mask == 2].mean() and not (mask == 2)[:, :256].any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_rows(rows_of(prepared), rows_of(prepare(folder)))
    assert read_mask(folder / "slices" / "masks" / "10036_103.png").max() == 1
