# SPDX-License-Identifier: Apache-2.0
"""
DICOM files, found by their content: each frame a picture, the patients groups, and segmentations (SEG) masks.

Pictures bear numbers. Of what a file says of a patient nothing is taken along but the kind of the picture.
"""

import hashlib
import logging
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from modeling_ascent_vit.image_inputs_ascent_vit import check_window

from .annotated import CONTAINERS, AnnotatedImage, ImageFiles, Reading, Shape, private_form, reading
from .dicom_pixels import (
    by_own_window,
    colours,
    decode,
    frame_settings,
    is_grey,
    modality_values,
    number_of_frames,
    own_window,
    read_dicom,
    value_range,
    windowed,
)


if TYPE_CHECKING:
    from pydicom import Dataset

# Entries of a table that may name images, beside names of files: all slices of a series, study or patient at once.
IDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")

# What a picture shows, in coded words that name nobody.
FIELDS = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "laterality": "ImageLaterality",
}

# Files with pixels that are no pictures of a patient.
NO_PICTURES = ("RTDOSE", "RTSTRUCT", "PR", "SR", "KO", "REG")

# Kinds of pictures into which devices write names.
OFTEN_BURNT_IN = ("US", "SC", "OT", "XC", "ES", "GM")

HEADER = [
    *(*IDS, *FIELDS.values(), "PatientName", "IssuerOfPatientID", "OtherPatientIDs", "AccessionNumber", "ImageType"),
    *("BurnedInAnnotation", "InstanceNumber", "Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"),
    *("WindowCenter", "WindowWidth", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
]

# Millimetres within which two places are the same.
SAME_PLACE = 0.1


@dataclass
class Slice:
    """
    A frame of a file, and where it lies.

    Args:
        path: DICOM file.
        header: header of the file, without pixels.
        frame: number of the frame, from 0.
        position: left upper corner in the patient's coordinates, in millimetres; None where it is not told.
        axes: directions of the rows and of the columns, six numbers; None likewise.
        picture: file that the frame was written to, once it is.
    """

    path: Path
    header: "Dataset"
    frame: int
    position: np.ndarray | None
    axes: np.ndarray | None
    picture: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return int(self.header.Columns), int(self.header.Rows)


class SliceFiles(ImageFiles):
    """
    Pictures of slices, whose classes and splits are those of the DICOM files' folders.

    Args:
        root: folder of the pictures, which is removed with this object.
        found: DICOM files.
        slices: slices that were written.
    """

    key_columns = ("sopinstanceuid", "seriesinstanceuid", "studyinstanceuid", "patientid", "patient_id", "patient")

    def __init__(self, root: Path, found: ImageFiles, slices: list[Slice]):
        super().__init__(root)
        self.sources = {item.picture: item.path for item in slices if item.picture is not None}
        self.found = found
        self.ids: dict[str, list[Path]] = {}
        for item in slices:
            keys = {str(item.header.get(key) or "") for key in IDS}
            for key in (keys | {item.path.name, item.path.stem}) - {""}:
                self.ids.setdefault(key, []).extend([item.picture] if item.picture else [])

    def named(self, name: str) -> list[Path]:
        """The pictures of a DICOM file, or of an instance, series, study or patient by its id."""
        file = self.found.find(name)
        return [p for p, source in self.sources.items() if source == file] if file else self.ids.get(name, [])

    def split_of(self, path: Path) -> str | None:
        """The split of the innermost folder that is named as one."""
        return self.found.split_of(self.sources[path])

    def class_folder(self, path: Path) -> str | None:
        """The name of the outermost folder that is no split and no mere container: those of patients lie in it."""
        parents = list(self.sources[path].relative_to(self.found.root).parents)[:-1]
        for parent in reversed(parents):
            if parent.name.lower() not in CONTAINERS | {"dicom"} and not self.found.split_named(parent):
                return parent.name
        return None


@contextmanager
def silent() -> Iterator[None]:
    """Silences pydicom, whose warnings show values of the header."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _numbers(value: Any, count: int) -> np.ndarray | None:
    try:
        array = np.array([float(item) for item in value], dtype=float)
    except (TypeError, ValueError):
        return None
    return array if array.shape == (count,) and np.isfinite(array).all() else None


def _place(settings: "Dataset") -> tuple[np.ndarray | None, np.ndarray | None]:
    """Left upper corner of a frame, and the directions of its rows and columns."""
    position, axes = settings.get("ImagePositionPatient"), settings.get("ImageOrientationPatient")
    return _numbers(position, 3), _numbers(axes, 6)


def _patient(header: "Dataset") -> str:
    """What tells patients apart; the study where nothing does."""
    name = str(header.get("PatientID") or "").strip() or str(header.get("PatientName") or "").strip()
    study = str(header.get("StudyInstanceUID") or header.get("SOPInstanceUID") or "")
    return f"{header.get('IssuerOfPatientID') or ''}|{name}" if name else f"study|{study}"


def _numbered(keys: set[str], letter: str) -> dict[str, str]:
    """Numbers for keys, in an order that says nothing of the keys."""
    ordered = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    return {key: f"{letter}{number:04d}" for number, key in enumerate(ordered, start=1)}


def _is_picture(header: "Dataset") -> bool:
    """Whether a file has pixels, or is of a kind that should have some."""
    kind = header.file_meta.get("MediaStorageSOPClassUID")
    return bool(header.get("Rows")) or (kind is not None and "Image Storage" in kind.name)


def _find(source: Path, result: Reading) -> tuple[list[tuple[Path, "Dataset"]], list[Path]]:
    """Finds the pictures' headers and the files of segmentations."""
    pictures, segmentations, seen = [], [], set()
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for path in tqdm(paths, desc="Looking for DICOM files", unit="file", leave=False):
        header = read_dicom(path, stop_before_pixels=True, specific_tags=HEADER)
        if header is None:
            continue
        modality = header.get("Modality")
        if modality == "SEG":
            segmentations.append(path)
        elif modality in NO_PICTURES or not _is_picture(header):
            result.counts["DICOM files that are no pictures, such as reports, doses and DICOMDIR"] += 1
        elif not (header.get("Rows") and header.get("Columns")):
            raise ValueError(f"{path} is a DICOM picture without rows and columns, so it is cut off: get it again.")
        elif "LOCALIZER" in (header.get("ImageType") or ()):
            result.counts["localizers, left out"] += 1
        elif (uid := str(header.get("SOPInstanceUID") or path)) in seen:
            result.counts["copies of a picture, left out"] += 1
        else:
            seen.add(uid)
            pictures.append((path, header))
    if not pictures:
        raise FileNotFoundError(f"There is no DICOM picture in {source}.")
    return pictures, segmentations


def _without_burnt_in(
    pictures: list[tuple[Path, "Dataset"]], burned_in: str | None, result: Reading
) -> list[tuple[Path, "Dataset"]]:
    """Refuses, leaves out or takes pictures whose header says that text, such as a name, is burnt into them."""
    marked = [path for path, header in pictures if str(header.get("BurnedInAnnotation", "")).upper() == "YES"]
    if marked and burned_in in (None, "refuse"):
        raise ValueError(
            f"{len(marked)} of {len(pictures)} DICOM files say that text is burnt into their pixels, which may be a "
            f"patient's name, the first being {marked[0]}: leave them out with --option burned_in=skip, or take them "
            "knowingly with burned_in=take."
        )
    if marked:
        result.counts[f"files with burnt-in text, {'left out' if burned_in == 'skip' else 'taken'}"] = len(marked)
    left_out = set(marked if burned_in == "skip" else ())
    kept = [(path, header) for path, header in pictures if path not in left_out]
    if not kept:
        raise ValueError("All DICOM files say that text is burnt into their pixels: nothing is left.")
    silent_ones = sum(
        header.get("Modality") in OFTEN_BURNT_IN and not header.get("BurnedInAnnotation") for _, header in kept
    )
    result.counts["pictures in which names may be burnt in, as their kind often has them: look at them"] = silent_ones
    return kept


def _in_order(files: list[tuple[Path, "Dataset"]]) -> list[Slice]:
    """The slices of a series along the normal of its first one, else by their numbers."""
    slices = []
    for path, header in files:
        for frame in range(number_of_frames(header)):
            slices.append(Slice(path, header, frame, *_place(frame_settings(header, frame))))

    def number(item: Slice) -> tuple:
        return int(item.header.get("InstanceNumber") or 0), str(item.header.get("SOPInstanceUID") or ""), item.frame

    slices.sort(key=number)
    axes = slices[0].axes
    if axes is None or any(item.position is None for item in slices):
        return slices
    normal = np.cross(axes[:3], axes[3:])
    return sorted(slices, key=lambda item: (round(float(item.position @ normal), 3), number(item)))


def _pixels(slices: list[Slice]) -> Iterator[tuple[Slice, "Dataset", np.ndarray]]:
    """Decodes slices with the whole of their file, file by file; each file is in memory once."""
    by_file: dict[Path, list[Slice]] = {}
    for item in slices:
        by_file.setdefault(item.path, []).append(item)
    for path, items in by_file.items():
        dataset = read_dicom(path)
        assert dataset is not None
        frames = {item.frame: item for item in items}
        for frame, pixels in enumerate(decode(dataset, path)):
            yield frames[frame], dataset, pixels


def _series_range(slices: list[Slice]) -> tuple[float, float] | None:
    """The range of the values of a series' frames that have no window, None where all have one."""
    lows, highs = [], []
    if any(own_window(frame_settings(item.header, item.frame)) is None for item in slices):
        for item, dataset, pixels in _pixels(slices):
            settings = frame_settings(dataset, item.frame)
            if is_grey(dataset) and own_window(settings) is None and not settings.get("VOILUTSequence"):
                with reading(str(item.path)):
                    low, high = value_range(modality_values(pixels, settings), pixels, dataset)
                lows.append(low)
                highs.append(high)
    return (min(lows), max(highs)) if lows else None


def _picture(
    pixels: np.ndarray, dataset: "Dataset", frame: int, window: list[float] | None, whole: Any, counts: Any
) -> np.ndarray:
    """The picture of a frame (uint8), by `window`, else its own, else the whole range of its series."""
    if not is_grey(dataset):
        counts["pictures in colours"] += 1
        return colours(pixels, dataset)
    settings = frame_settings(dataset, frame)
    values, own = modality_values(pixels, settings), own_window(settings)
    if window is not None:
        greys = windowed(values, *window)
        if own is not None and list(own) == list(map(float, window)):
            raise ValueError(
                f"window={list(window)} is the file's own centre and width, but window is the low and the high value: "
                f"window=[{own[0] - own[1] / 2:g}, {own[0] + own[1] / 2:g}] is the same"
            )
        shown = f"window={list(window)}, centre {sum(window) / 2:g} and width {window[1] - window[0]:g}"
        counts[f"pictures by {shown}"] += 1
    elif own is not None or settings.get("VOILUTSequence"):
        greys = by_own_window(values, settings)
        counts["pictures by their files' own window"] += 1
    elif int(dataset.BitsStored) <= 8 and not settings.get("ModalityLUTSequence"):
        greys = windowed(pixels, 0, 2 ** int(dataset.BitsStored) - 1)
        counts["pictures of 8 bits without a window, as stored"] += 1
    else:
        greys = windowed(values, *whole)
        counts["pictures without a window, from the lowest to the highest value of their series"] += 1
    return 255 - greys if dataset.PhotometricInterpretation == "MONOCHROME1" else greys


def _segment_names(dataset: "Dataset") -> dict[int, str]:
    """The name of each segment by its number."""
    names = {}
    for item in dataset.SegmentSequence:
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or [{}]
        name = str(item.get("SegmentLabel") or kinds[0].get("CodeMeaning") or "").strip()
        names[int(item.SegmentNumber)] = name or f"segment {item.SegmentNumber}"
    return names


def _regions(dataset: "Dataset", path: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    """The frame's number, the segment's number and the pixels (bool) of each frame of a segmentation."""
    from pydicom.pixels import pixel_array

    names = _segment_names(dataset)
    kind = str(dataset.get("SegmentationType") or "BINARY")
    try:
        frames = pixel_array(dataset)
    except Exception as error:
        raise ValueError(f"The pixels of {path} cannot be decoded ({error}): get the file again.") from error
    frames = frames if frames.ndim == 3 else frames[None]
    for number, pixels in enumerate(frames):
        if kind == "LABELMAP":
            for segment in set(np.unique(pixels).tolist()) & names.keys():
                yield number, segment, pixels == segment
            continue
        half = float(dataset.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0.5
        for place in (dataset.PerFrameFunctionalGroupsSequence[number], *dataset.SharedFunctionalGroupsSequence):
            if items := place.get("SegmentIdentificationSequence"):
                if (pixels >= half).any():
                    yield number, int(items[0].ReferencedSegmentNumber), pixels >= half
                break
        else:
            raise ValueError(f"frame {number + 1} names no segment")


def _slice_of(
    dataset: "Dataset", frame: int, slices: list[Slice], by_uid: dict[tuple[str, int], Slice]
) -> Slice | None:
    """
    The slice that a frame of a segmentation is drawn on: the one it refers to, else the one at its place.

    Raises:
        ValueError: for more than one, or one of another size, plane or place.
    """
    group = dataset.PerFrameFunctionalGroupsSequence[frame]
    origin = [
        item for step in group.get("DerivationImageSequence") or [] for item in step.get("SourceImageSequence") or []
    ]
    position, axes = _place(frame_settings(dataset, frame))
    found = []
    if len(origin) == 1:
        number = origin[0].get("ReferencedFrameNumber") or 1
        number = int(number) if isinstance(number, int | str) else int(number[0])
        found = [by_uid[key]] if (key := (str(origin[0].ReferencedSOPInstanceUID), number - 1)) in by_uid else []
    elif position is not None:
        found = [s for s in slices if s.position is not None and np.linalg.norm(s.position - position) < SAME_PLACE]
    if len(found) > 1:
        raise ValueError(f"frame {frame + 1} refers to no picture, and {len(found)} lie at its place")
    if not found:
        return None
    item = found[0]
    if (int(dataset.Columns), int(dataset.Rows)) != item.size:
        raise ValueError(
            f"a segment has {dataset.Columns}x{dataset.Rows} pixels, its picture {item.size[0]}x{item.size[1]}: "
            "resample it on the pictures"
        )
    turned = axes is not None and item.axes is not None and not np.allclose(axes, item.axes, atol=1e-3)
    spacing = min(map(float, item.header.get("PixelSpacing") or [1.0]))
    away = position is not None and item.position is not None and np.linalg.norm(position - item.position) > spacing
    if turned or away:
        raise ValueError(
            f"frame {frame + 1} lies {'in another plane' if turned else 'elsewhere'} than its picture: resample the "
            "segments on the pictures"
        )
    return item


def _add_segments(path: Path, slices: list[Slice], by_uid: dict[tuple[str, int], Slice], result: Reading) -> None:
    """Adds the segments of a file to the slices of the series that they are drawn on, which someone has looked at."""
    dataset = read_dicom(path)
    assert dataset is not None
    with reading(str(path)):
        names, space = _segment_names(dataset), dataset.get("FrameOfReferenceUID")
        looked_at = {str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or []}
        near = [item for item in slices if item.header.get("SeriesInstanceUID") in looked_at]
        near = near or [item for item in slices if space and item.header.get("FrameOfReferenceUID") == space]
        for frame, segment, pixels in _regions(dataset, path):
            item = _slice_of(dataset, frame, near, by_uid)
            if item is None:
                result.counts["frames of segments whose picture is not there"] += 1
                continue
            looked_at.add(str(item.header.get("SeriesInstanceUID")))
            packed, shape = np.packbits(pixels), pixels.shape
            region = Shape(names[segment], mask=partial(_unpacked, packed, shape))
            result.images[item.picture].shapes.append(region)  # type: ignore[index]
        for item in slices:
            if item.header.get("SeriesInstanceUID") in looked_at:
                result.images[item.picture].looked_at = True  # type: ignore[index]
        result.counts["files of segments"] += 1


def _unpacked(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)


def _by_series(pictures: list[tuple[Path, "Dataset"]]) -> dict[tuple[str, str], list[Slice]]:
    """The slices of each patient's series in order; the same id with two patients is two series."""
    files: dict[tuple[str, str], list[tuple[Path, Dataset]]] = {}
    for path, header in pictures:
        key = _patient(header), str(header.get("SeriesInstanceUID") or header.get("SOPInstanceUID"))
        files.setdefault(key, []).append((path, header))
    return {key: _in_order(found) for key, found in files.items()}


def _write(slices: list[Slice], folder: Path, window: list[float] | None, series_range: Any, counts: Any) -> None:
    """Writes the pictures of a series, numbered in its order."""
    numbers = {id(item): number for number, item in enumerate(slices, start=1)}
    folder.mkdir(parents=True)
    for item, dataset, pixels in _pixels(slices):
        with reading(str(item.path)):
            picture = _picture(pixels, dataset, item.frame, window, series_range, counts)
        item.picture = folder / f"{numbers[id(item)]:04d}.png"
        Image.fromarray(picture).save(item.picture)


def read(source: Path, result: Reading, *, window: list[float] | None = None, burned_in: str | None = None) -> None:
    """
    Reads DICOM files. A series with segments has been looked at, others have not.

    Args:
        source: folder of the files, at any depth, or a file.
        result: reading to add to.
        window: low and high value, in the modality's unit, that become black and white.
        burned_in: "refuse" (by default), "skip" or "take" for files that say that text is burnt into their pixels.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ValueError("DICOM files are read with pydicom: pip install ascent-vit[dicom], or pydicom.") from error
    check_window(window)
    if result.files.root != (source if source.is_dir() else source.parent):
        raise ValueError("dicom has no use for the option images, as pictures are in the files: leave it out.")
    root = Path(tempfile.mkdtemp(prefix="ascent-vit-"))
    weakref.finalize(result, shutil.rmtree, root, ignore_errors=True)
    with silent():
        pictures, segmentations = _find(source, result)
        pictures = _without_burnt_in(pictures, burned_in, result)
        series = _by_series(pictures)
        patients = _numbered({patient for patient, _ in series}, "p")
        numbers = _numbered({uid for _, uid in series}, "s")
        for (patient, uid), slices in tqdm(series.items(), desc="Reading pictures", unit="series", leave=False):
            folder = root / patients[patient] / numbers[uid]
            whole = _series_range(slices) if window is None else None
            _write(slices, folder, window, whole, result.counts)
        found = ImageFiles(source if source.is_dir() else source.parent, [path for path, _ in pictures])
        every = [item for slices in series.values() for item in slices]
        files = result.files = SliceFiles(root, found, every)
        for (patient, uid), slices in series.items():
            for item in slices:
                _add_slice(item, patients[patient], numbers[uid], files, result)
        by_uid = {(str(item.header.get("SOPInstanceUID")), item.frame): item for item in every}
        for path in segmentations:
            _add_segments(path, every, by_uid, result)
    result.counts["patients"], result.counts["series"] = len(patients), len(series)
    anonymous = sum(key.startswith("study|") for key in patients)
    result.counts["studies without a patient's id, each taken for a patient of its own"] = anonymous


def _add_slice(item: Slice, patient: str, series: str, files: SliceFiles, result: Reading) -> None:
    header, picture = item.header, item.picture
    assert picture is not None
    fields = {name: str(header.get(keyword) or "") for name, keyword in FIELDS.items()}
    fields |= {"patient": patient, "series": series}
    where = f"{item.path}, frame {item.frame + 1}" if number_of_frames(header) > 1 else str(item.path)
    split = files.split_of(picture)
    result.images[picture] = AnnotatedImage(picture, where, item.size, split, looked_at=False, fields=fields)
    keywords = ("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyInstanceUID")
    texts = {str(header.get(keyword) or "") for keyword in keywords}
    result.private |= {private_form(text) for text in texts if len(re.sub(r"\W", "", text)) > 2}


__all__ = ["read"]
