# SPDX-License-Identifier: Apache-2.0
"""DICOM files made on the spot by pydicom's own writer: values, windows, order, patients, segments, and no names."""

import json
import logging

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTImageProcessorPil


pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)


pytestmark = pytest.mark.as_people_have_it

SIZE = (48, 32)
AXIAL = [1, 0, 0, 0, 1, 0]


def uid(text):
    return generate_uid(entropy_srcs=[text])


def dataset_of(patient="1", series="a", number=1, position=None, syntax=ExplicitVRLittleEndian, **elements):
    """A CT slice of a patient, without pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid(f"{patient}{series}{number}")
    dataset.PatientID, dataset.PatientName = f"ID-{patient}77", f"Doe^Jane{patient}"
    dataset.PatientBirthDate, dataset.StudyDate, dataset.AccessionNumber = "19500102", "20200304", f"ACC{patient}99"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(patient), uid(patient + series)
    dataset.FrameOfReferenceUID, dataset.InstanceNumber, dataset.Modality = uid(f"f{patient}"), number, "CT"
    if position is not None:
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, position], AXIAL
        dataset.PixelSpacing = [1, 1]
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def with_pixels(dataset, pixels, stored=None, photometric="MONOCHROME2"):
    """Adds pixels `(height, width)`, of several frames or of colours, with as many bits stored as given."""
    colours = pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colours else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colours else 1
    dataset.PhotometricInterpretation = "RGB" if colours else photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    if colours:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colours:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    return dataset


def save(dataset, path, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, **({"enforce_file_format": True} | kwargs))
    return path


RAMP = np.linspace(0, 4095, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16)


def greys(made, name):
    return np.asarray(made.rows[name]["image"])


@pytest.fixture
def one(tmp_path, make):
    """The picture that is made of a file; beside it lies one of another class and patient."""

    def read(dataset, **options):
        save(dataset, tmp_path / "a" / "file")
        save(with_pixels(dataset_of("other"), np.zeros(SIZE[::-1], np.uint8)), tmp_path / "b" / "file")
        made = make("dicom", tmp_path, class_from="folder", **options)
        return next(np.asarray(row["image"]) for row in made.rows.values() if row["label"] == "a"), made

    return read


class TestGreys:
    def test_a_window_of_the_file_after_rescale(self, one):
        """Signed numbers of 12 bits, slope 2 and intercept -1000: by the formula of PS3.3 C.11.2.1.2.1."""
        stored = np.round(RAMP / 2).astype(np.int16) - 500
        file = with_pixels(
            dataset_of(WindowCenter=40, WindowWidth=400, RescaleSlope=2, RescaleIntercept=-1000), stored, 12
        )
        values = stored * 2.0 - 1000
        expected = np.clip(((values - (40 - 0.5)) / (400 - 1) + 0.5) * 255, 0, 255)
        picture, made = one(file)
        assert picture.dtype == np.uint8 and picture.max() == 255 and picture.min() == 0
        np.testing.assert_allclose(picture, expected, atol=0.51)
        assert made.lines["pictures by their files' own window"] == "1"

    def test_a_window_that_is_given(self, one):
        file = with_pixels(
            dataset_of(WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-1024), RAMP, 12
        )
        picture, made = one(file, window=[-160, 240])
        np.testing.assert_allclose(picture, np.clip((RAMP - 1024.0 + 160) / 400, 0, 1) * 255, atol=0.51)
        assert made.lines["pictures by window=[-160, 240], centre 40 and width 400"] == "2"

    def test_a_window_that_is_centre_and_width(self, one):
        file = with_pixels(dataset_of(WindowCenter=[40, 50], WindowWidth=[400, 350]), RAMP, 12)
        with pytest.raises(ValueError, match=r"own centre and width, .* window=\[-160, 240\] is the same"):
            one(file, window=[40, 400])

    def test_none_gives_the_range_of_the_series_without_padding(self, tmp_path, make):
        for number, low in ((1, 0), (2, 1000)):
            pixels = np.full(SIZE[::-1], low, np.int16)
            pixels[0], pixels[1, 0] = -2000, low + 1000
            file = dataset_of(number=number, position=number)
            file.PixelPaddingValue = -2000
            save(with_pixels(file, pixels), tmp_path / "a" / str(number))
        save(with_pixels(dataset_of("other"), np.zeros(SIZE[::-1], np.uint8)), tmp_path / "b" / "x")
        made = make("dicom", tmp_path, class_from="folder")
        pictures = [greys(made, name) for name in sorted(made.rows) if made.rows[name]["label"] == "a"]
        assert [picture[5, 5] for picture in pictures] == [0, 128]
        assert [picture[1, 0] for picture in pictures] == [128, 255] and pictures[1][0, 0] == 0
        assert made.lines["pictures without a window, from the lowest to the highest value of their series"] == "2"

    def test_monochrome1_is_turned(self, one):
        file = with_pixels(dataset_of(WindowCenter=2048, WindowWidth=4096), RAMP, 12, "MONOCHROME1")
        np.testing.assert_allclose(one(file)[0], 255 - RAMP / 4095 * 255, atol=0.51)

    def test_a_sigmoid_and_a_table(self, one):
        file = with_pixels(dataset_of(WindowCenter=2048, WindowWidth=1024, VOILUTFunction="SIGMOID"), RAMP, 12)
        expected = 255 / (1 + np.exp(-4 * (RAMP.astype(float) - 2048) / 1024))
        np.testing.assert_allclose(one(file)[0], expected, atol=0.51)
        table = Dataset()
        table.LUTDescriptor, table.LUTData = [4096, 0, 12], list(range(4095, -1, -1))
        table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
        file = with_pixels(dataset_of(VOILUTSequence=Sequence([table])), RAMP, 12)
        np.testing.assert_allclose(one(file)[0], 255 - RAMP / 4095 * 255, atol=0.51)

    def test_eight_bits_stay(self, one):
        pixels = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint8) // 2
        np.testing.assert_array_equal(one(with_pixels(dataset_of(), pixels))[0], pixels)

    @pytest.mark.parametrize("kind", ["rgb", "palette", "rgb16"])
    def test_colours(self, kind, one):
        colours = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        if kind == "rgb":
            file, expected = with_pixels(dataset_of(), colours), colours
        elif kind == "rgb16":
            file, expected = with_pixels(dataset_of(), colours.astype(np.uint16) * 257), colours
        else:
            numbers = np.random.default_rng(1).integers(0, 4, SIZE[::-1], dtype=np.uint8)
            table = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0], [9, 8, 7]], np.uint8)
            file, expected = with_pixels(dataset_of(), numbers, photometric="PALETTE COLOR"), table[numbers]
            for i, name in enumerate(("Red", "Green", "Blue")):
                setattr(file, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
                data = (table[:, i].astype("<u2") * 257).tobytes()
                setattr(file, f"{name}PaletteColorLookupTableData", data)
        np.testing.assert_array_equal(one(file)[0], expected)

    def test_compressed(self, one):
        file = with_pixels(dataset_of(WindowCenter=2048, WindowWidth=4096), RAMP, 12)
        file.compress(RLELossless)
        np.testing.assert_allclose(one(file)[0], RAMP / 4095 * 255, atol=0.51)

    def test_what_pydicom_cannot_decode_names_the_package(self, one):
        from pydicom.encaps import encapsulate
        from pydicom.pixels import get_decoder

        if get_decoder(JPEGLosslessSV1).is_available:
            pytest.skip("a decoder of lossless JPEG is there")
        file = with_pixels(dataset_of(), RAMP, 12)
        file.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        file["PixelData"].VR, file["PixelData"].is_undefined_length = "OB", True
        file.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        with pytest.raises(
            ValueError, match="JPEG Lossless.*is not decoded here: pip install pylibjpeg pylibjpeg-libjpeg"
        ):
            one(file)

    def test_cut_off(self, tmp_path, one, make):
        file = with_pixels(dataset_of(), RAMP, 12)
        file.PixelData = file.PixelData[:100]
        with pytest.raises(ValueError, match="The pixels of .*a/file cannot be decoded .*get the file again"):
            one(file)
        content = (tmp_path / "a" / "file").read_bytes()
        (tmp_path / "a" / "file").write_bytes(content[:300])
        with pytest.raises(ValueError, match="a/file is a DICOM picture without rows and columns, so it is cut off"):
            make("dicom", tmp_path, class_from="folder")


def slices(folder, patient="1", series="a", places=(3, 1, 2), **elements):
    """A series of slices whose grey tells their place, saved in another order, under names that sort in a third."""
    for number, place in enumerate(places, start=1):
        file = dataset_of(patient, series, number, place, **elements)
        save(with_pixels(file, np.full(SIZE[::-1], 10 * place, np.uint8)), folder / f"IM{(7 * number) % 5}")


class TestFiles:
    def test_slices_are_in_order(self, tmp_path, make):
        slices(tmp_path / "a")
        slices(tmp_path / "b", "2")
        for path in (tmp_path / "b").iterdir():
            file = pydicom.dcmread(path)
            # Without a place, the number of the instance is the order.
            del file.ImagePositionPatient, file.ImageOrientationPatient
            file.save_as(path)
        made = make("dicom", tmp_path, class_from="folder")
        for kind, expected in (("a", [10, 20, 30]), ("b", [30, 10, 20])):
            names = sorted(name for name in made.rows if made.rows[name]["label"] == kind)
            assert [name[-8:] for name in names] == ["0001.png", "0002.png", "0003.png"]
            assert [greys(made, name)[0, 0] for name in names] == expected

    def test_frames_of_an_enhanced_file(self, tmp_path, make):
        """Each frame has a place, a window and a slope of its own."""
        frames = np.full((3, *SIZE[::-1]), 100, np.uint16)
        file = with_pixels(dataset_of(), frames, 12)
        groups = []
        for place, (slope, centre) in zip((3, 1, 2), ((1, 100), (1, 50), (2, 200)), strict=True):
            group, values, window, plane, turn = (Dataset() for _ in range(5))
            values.RescaleSlope, values.RescaleIntercept = slope, 0
            window.WindowCenter, window.WindowWidth = centre, 101
            plane.ImagePositionPatient, turn.ImageOrientationPatient = [0, 0, place], AXIAL
            group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [values], [window]
            group.PlanePositionSequence, group.PlaneOrientationSequence = [plane], [turn]
            groups.append(group)
        file.PerFrameFunctionalGroupsSequence = groups
        save(file, tmp_path / "a" / "file")
        slices(tmp_path / "b", "2")
        made = make("dicom", tmp_path, class_from="folder")
        names = sorted(name for name in made.rows if made.rows[name]["label"] == "a")
        assert [greys(made, name)[0, 0] for name in names] == [255, 129, 129]

    def test_what_is_found_and_what_is_not(self, tmp_path, make):
        """By content: without an ending or preamble, beside a DICOMDIR, other files, copies and localizers."""
        slices(tmp_path / "a")
        file = with_pixels(dataset_of("2", syntax=ImplicitVRLittleEndian), np.full(SIZE[::-1], 9, np.uint8))
        file.save_as(tmp_path / "a" / "bare.img", enforce_file_format=False, implicit_vr=True, little_endian=True)
        content = (tmp_path / "a" / "bare.img").read_bytes()
        at = content.index(b"\x08\x00\x16\x00")
        (tmp_path / "a" / "bare.img").write_bytes(content[at:])
        slices(tmp_path / "b" / "DICOM", "3", "c")
        slices(tmp_path / "b" / "copies", "3", "c")
        slices(tmp_path / "b" / "x", "3", "d", places=[1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        save(dataset_of("3", "report", Modality="SR"), tmp_path / "b" / "report.dcm")
        (tmp_path / "a" / "notes.dcm").write_text("no DICOM at all")
        (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
        directory = dataset_of("3", "dir")
        directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
        save(directory, tmp_path / "DICOMDIR")
        made = make("dicom", tmp_path, class_from="folder")
        assert made.lines["images"] == "7 of 2 classes (a, b)"
        assert made.lines["copies of a picture, left out"] == "3" and made.lines["localizers, left out"] == "1"
        assert made.lines["DICOM files that are no pictures, such as reports, doses and DICOMDIR"] == "2"
        assert (made.lines["patients"], made.lines["series"]) == ("3", "3")

    def test_no_picture(self, tmp_path, make):
        (tmp_path / "a.dcm").write_text("no DICOM")
        with pytest.raises(FileNotFoundError, match="There is no DICOM picture in"):
            make("dicom", tmp_path, class_from="folder")

    def test_patients_are_in_one_split(self, tmp_path, make):
        for patient in range(4):
            for series in "ab":
                slices(tmp_path / "ill" / str(patient) / series, str(patient), series)
                slices(tmp_path / "well" / str(patient + 10) / series, str(patient + 10), series)
        made = make("dicom", tmp_path, class_from="folder", test_share=0.25)
        homes = {}
        for name, split in made.splits.items():
            homes.setdefault(made.rows[name]["group_id"], set()).add(split)
        assert len(homes) == 8 and all(len(found) == 1 for found in homes.values())
        assert sorted(next(iter(found)) for found in homes.values()).count("test") == 2
        assert made.lines["splits"].startswith("drawn from 8 groups by seed 0")
        again = make("dicom", tmp_path, class_from="folder", test_share=0.25)
        assert again.splits == made.splits

    @pytest.mark.parametrize("key", ["PatientID", "SeriesInstanceUID", "SOPInstanceUID", "file_name"])
    def test_the_class_from_a_table(self, key, tmp_path, make):
        lines = [f"{key},class"]
        for patient in "12":
            slices(tmp_path / "files" / patient, patient)
            for path in sorted((tmp_path / "files" / patient).iterdir()):
                name = str(path.relative_to(tmp_path)) if key == "file_name" else str(pydicom.dcmread(path)[key].value)
                lines += [f"{name},{'ill' if patient == '1' else 'well'}"] * (f"{name}," not in "\n".join(lines))
        (tmp_path / "classes.csv").write_text("\n".join(lines))
        made = make("dicom", tmp_path / "files", class_from=f"csv:{tmp_path / 'classes.csv'}")
        assert sorted(row["label"] for row in made.rows.values()) == ["ill"] * 3 + ["well"] * 3


class TestNames:
    def patients(self, folder, **elements):
        for patient in "123456":
            slices(folder / ("ill" if patient < "4" else "well") / f"Doe_Jane{patient}", patient, **elements)

    @pytest.mark.parametrize("options", [{}, {"group": "series"}])
    def test_nothing_of_a_patient_is_written(self, options, tmp_path, capsys, caplog):
        self.patients(tmp_path / "source")
        # A value that is not as the standard wants it, which pydicom's own warning would show.
        path = next((tmp_path / "source").rglob("IM*"))
        file = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            file.StudyDate = "Doe 2020"
            file.save_as(path)
        arguments = ["prepare", "dicom", "--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]
        given = [word for k, v in options.items() for word in ("--option", f"{k}={v}")]
        with caplog.at_level(logging.DEBUG):
            assert run([*arguments, "--option", "class_from=folder", "--inspect", *given]) == 0
        shown = capsys.readouterr()
        written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        names = " ".join(str(path) for path in (tmp_path / "out").rglob("*"))
        dataset = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
        rows = " ".join(str({k: v for k, v in row.items() if k != "image"}) for s in dataset.values() for row in s)
        secrets = [f"{word}{patient}" for patient in "123456" for word in ("Jane", "ACC", "ID-")]
        secrets += ["Doe", "19500102", "20200304", *(str(uid(f"{p}{s}")) for p in "123456" for s in ("", "a", "a1"))]
        for secret in secrets:
            for text in (shown.out, shown.err, caplog.text, names, rows):
                assert secret not in text
            assert secret.encode() not in written
        assert {row["group_id"][0] for split in dataset.values() for row in split} == {"s" if options else "p"}
        assert all(row["image"].info == {} for row in dataset["train"])

    def test_classes_and_groups_that_are_patients(self, tmp_path, make):
        for patient in "123456":
            slices(tmp_path / "files" / f"Jane{patient}, DOE", patient)
        with pytest.raises(ValueError, match="6 names of classes or concepts are names or numbers of patients"):
            make("dicom", tmp_path / "files", class_from="folder")
        lines = ["patient,class,nurse", *(f"ID-{p}77,{'ill' if p < '4' else 'well'},ID {p}77" for p in "123456")]
        (tmp_path / "classes.csv").write_text("\n".join(lines))
        made = make("dicom", tmp_path / "files", class_from=f"csv:{tmp_path / 'classes.csv'}", group="nurse")
        assert sorted({row["group_id"] for row in made.rows.values()}) == [f"g000{i}" for i in range(1, 7)]
        with pytest.raises(ValueError, match="6 names of classes or concepts are names"):
            make("dicom", tmp_path / "files", class_from=f"csv:{tmp_path / 'classes.csv'}", concepts_from=["nurse"])

    def test_burnt_in_text(self, tmp_path, make):
        slices(tmp_path / "a", "1")
        slices(tmp_path / "b", "2", BurnedInAnnotation="YES")
        slices(tmp_path / "b" / "more", "3", Modality="US")
        with pytest.raises(
            ValueError, match="3 of 9 DICOM files say that text is burnt in.*burned_in=skip.*burned_in=take"
        ):
            make("dicom", tmp_path, class_from="folder")
        made = make("dicom", tmp_path, class_from="folder", burned_in="skip")
        assert len(made.rows) == 6 and made.lines["files with burnt-in text, left out"] == "3"
        assert made.lines["pictures in which names may be burnt in, as their kind often has them"] == "look at them: 3"
        made = make("dicom", tmp_path, class_from="folder", burned_in="take")
        assert len(made.rows) == 9 and made.lines["files with burnt-in text, taken"] == "3"

    def test_patients_without_an_id(self, tmp_path, make):
        slices(tmp_path / "a", "1", PatientID="", PatientName="")
        slices(tmp_path / "b", "2", PatientID="", PatientName="")
        made = make("dicom", tmp_path, class_from="folder")
        assert made.lines["patients"] == "2"
        assert made.lines["studies without a patient's id, each taken for a patient of its own"] == "2"


def segmentation(patient, segments, kind="BINARY", referring=True, **elements):
    """A SEG: for each (place, segment's number) a mask; `referring` names the pictures, else their place counts."""
    file = dataset_of(patient, "seg", **elements)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    file.Modality, file.SegmentationType = "SEG", kind
    file.SegmentSequence = []
    for number, name in ((1, "kidney"), (2, "tumour")):
        item = Dataset()
        item.SegmentNumber, item.SegmentLabel = number, name
        file.SegmentSequence.append(item)
    series, shared, turn = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = uid(f"{patient}a")
    file.ReferencedSeriesSequence, turn.ImageOrientationPatient = [series], AXIAL
    shared.PlaneOrientationSequence = [turn]
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [shared], []
    for place, number in segments:
        group, ident, plane, step, origin = (Dataset() for _ in range(5))
        ident.ReferencedSegmentNumber, plane.ImagePositionPatient = number, [0, 0, place]
        group.SegmentIdentificationSequence, group.PlanePositionSequence = [ident], [plane]
        if referring:
            # In `slices` the places 3, 1, 2 are the instances 1, 2, 3.
            origin.ReferencedSOPInstanceUID = uid(f"{patient}a{ {3: 1, 1: 2, 2: 3}[place] }")
            origin.ReferencedSOPClassUID, step.SourceImageSequence = CTImageStorage, [origin]
            group.DerivationImageSequence = [step]
        file.PerFrameFunctionalGroupsSequence.append(group)
    masks = np.array(list(segments.values()))
    if kind == "BINARY":
        file = with_pixels(file, masks.astype(np.uint8))
        file.BitsAllocated, file.BitsStored, file.HighBit = 1, 1, 0
        packed = np.packbits(masks.astype(bool).ravel(), bitorder="little").tobytes()
        file.PixelData = packed + bytes(len(packed) % 2)
    else:
        file = with_pixels(file, masks.astype(np.uint8))
        file.MaximumFractionalValue = 200
    return file


def region(left, top, right, bottom):
    mask = np.zeros(SIZE[::-1], dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


KIDNEY, TUMOUR = region(5, 4, 25, 14), region(10, 6, 13, 9)


class TestSegments:
    @pytest.fixture
    def folder(self, tmp_path):
        for patient in "12345":
            slices(tmp_path / patient, patient)
        return tmp_path

    @pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
    @pytest.mark.parametrize("referring", [True, False])
    def test_masks(self, kind, referring, folder, make):
        scale = 1 if kind == "BINARY" else 200
        masks = {(1, 1): KIDNEY * scale, (1, 2): TUMOUR * scale, (3, 1): KIDNEY * scale}
        if kind == "FRACTIONAL":
            masks[3, 2] = TUMOUR * 90
        save(segmentation("1", masks, kind, referring), folder / "1" / "seg")
        made = make("dicom", folder, class_from="category:tumour")
        rows = {greys(made, name)[0, 0]: row for name, row in made.rows.items()}
        assert set(rows) == {10, 20, 30}
        # Only the series that someone segmented is known; of the others the class is not.
        assert len(made.rows) == 3
        assert rows[10]["areas"] == {None: 32 * 48 - 200, "kidney": 200 - 9, "tumour": 9}
        assert rows[20]["areas"] == {None: 32 * 48} and rows[30]["areas"] == {None: 32 * 48 - 200, "kidney": 200}
        assert [rows[grey]["label"] for grey in (10, 20, 30)] == ["tumour", "no tumour", "no tumour"]
        y, x = np.nonzero(np.asarray(rows[10]["mask"]) == 2)
        assert (x.min(), y.min(), x.max(), y.max()) == (10, 6, 12, 8)

    def test_a_label_map(self, folder, make):
        values = KIDNEY.astype(np.uint8)
        values[TUMOUR] = 2
        save(segmentation("1", {(1, 0): values, (2, 0): 0 * values}, "LABELMAP"), folder / "1" / "seg")
        made = make("dicom", folder, class_from="category:tumour")
        rows = {greys(made, name)[0, 0]: row for name, row in made.rows.items()}
        assert rows[10]["areas"] == {None: 32 * 48 - 200, "kidney": 200 - 9, "tumour": 9}

    def test_boxes_and_series_without_segments(self, folder, make):
        save(segmentation("1", {(1, 1): KIDNEY}), folder / "1" / "seg")
        (folder / "classes.csv").write_text(
            "\n".join(["patientid,class", *(f"ID-{p}77,{int(p) % 2}" for p in "12345")])
        )
        made = make("dicom", folder, class_from=f"csv:{folder / 'classes.csv'}", places="objects")
        objects = [row["objects"] for row in made.rows.values()]
        assert (
            objects.count(None) == 12 and objects.count([]) == 2 and objects.count([("kidney", [5, 4, 20, 10])]) == 1
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda file: setattr(file, "Rows", 16), "48x16 pixels, its picture 48x32: resample it"),
            (lambda file: setattr(turn_of(file), "ImageOrientationPatient", [1, 0, 0, 0, 0, 1]), "in another plane"),
            (lambda file: setattr(plane_of(file), "ImagePositionPatient", [9, 0, 1]), "frame 1 lies elsewhere"),
            (lambda file: setattr(file, "PixelData", b"\0\0"), "cannot be decoded"),
            (lambda file: delattr(file, "SegmentSequence"), "is not as the tool writes it"),
        ],
    )
    def test_segments_that_do_not_fit(self, change, message, folder, make):
        file = segmentation("1", {(1, 1): KIDNEY})
        change(file)
        save(file, folder / "1" / "seg")
        with pytest.raises(ValueError, match=message):
            make("dicom", folder, class_from="category:kidney")


def turn_of(file):
    return file.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]


def plane_of(file):
    return file.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]


def test_without_pydicom(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    command = ["prepare", "dicom", "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    assert run([*command, "--option", "class_from=folder"]) == 2
    assert "pip install ascent-vit[dicom]" in capsys.readouterr().err
    monkeypatch.undo()
    assert run([*command, "--images", str(tmp_path.parent)]) == 2
    assert "dicom has no use for the option images" in capsys.readouterr().err
    assert run([*command, "--option", "window=[3]"]) == 2
    assert "window must be a low and a high value" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_dicom_is_a_model_after_two_commands(tiny_recipe, tmp_path):
    for patient in "123456":
        slices(tmp_path / "source" / patient, patient)
        save(
            segmentation(patient, {(1, 1): KIDNEY, (1, 2): TUMOUR, (2, 1): KIDNEY}),
            tmp_path / "source" / f"seg{patient}",
        )
    dataset, output = tmp_path / "dataset", tmp_path / "run"
    command = ["prepare", "dicom", "--source", str(tmp_path / "source"), "--output", str(dataset)]
    assert run([*command, "--option", "class_from=category:tumour"]) == 0
    assert run(["train", "--recipe", str(tiny_recipe), "--dataset", str(dataset), "--output", str(output)]) == 0
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["spatial_concepts"] == ["kidney", "tumour"] and set(config["id2label"].values()) == {
        "tumour",
        "no tumour",
    }
    processor = AscentViTImageProcessorPil.from_pretrained(output / "model")
    assert processor(Image.new("L", SIZE), return_tensors="np")["pixel_values"].shape == (1, 3, 32, 32)
