# SPDX-License-Identifier: Apache-2.0
"""
DICOM's frames as pictures of 8 bits: values in the modality's unit, greys by a window, colours as RGB.

By the standard's parts PS3.3 C.7.6.3 (pixels), C.11.1 (modality) and C.11.2 (window), through pydicom.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from pydicom import Dataset

# Packages that decode what pydicom alone does not, by the beginning of a transfer syntax's name.
DECODERS = {
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "High-Throughput JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
}

WINDOW_KEYWORDS = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
VALUE_KEYWORDS = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
PLACE_KEYWORDS = ("ImagePositionPatient", "ImageOrientationPatient")

# Items of a frame in files of several frames.
FRAME_GROUPS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
)


def read_dicom(path: Path, **kwargs: Any) -> "Dataset | None":
    """
    Reads a DICOM file, also one without the preamble that files should have; None for a file of another kind.

    Args:
        path: file.
        kwargs: arguments of `pydicom.dcmread`.

    Raises:
        ValueError: for a DICOM file that is cut off or damaged.
    """
    import pydicom

    with path.open("rb") as file:
        start = file.read(132)
    # Without a preamble a file begins with an element of the groups 2 or 8.
    bare = start[128:] != b"DICM" and start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    if start[128:] != b"DICM" and not bare:
        return None
    try:
        dataset = pydicom.dcmread(path, force=bare, **kwargs)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit = dataset.original_encoding[0]
            dataset.file_meta.TransferSyntaxUID = (
                pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
            )
    except Exception as error:  # pydicom raises many kinds of errors on damaged files, with values of them.
        raise ValueError(f"{path} is a damaged DICOM file ({type(error).__name__}): get it again.") from error
    return dataset


def frame_settings(dataset: "Dataset", frame: int) -> "Dataset":
    """What a file says of the values, the window and the place of a frame: of this one, of all, or of the file."""
    from pydicom import Dataset

    found = Dataset()
    found.file_meta = dataset.file_meta
    found.update({dataset[key].tag: dataset[key] for key in WINDOW_KEYWORDS + VALUE_KEYWORDS if key in dataset})
    found.update({dataset[key].tag: dataset[key] for key in PLACE_KEYWORDS if key in dataset})
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*(dataset.get("SharedFunctionalGroupsSequence") or []), *own[frame : frame + 1]]:
        for item in (item for name in FRAME_GROUPS for item in group.get(name) or []):
            found.update({element.tag: element for element in item})
    return found


def own_window(settings: "Dataset") -> tuple[float, float] | None:
    """Centre and width of the first window that a frame has; None without one."""
    found = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = settings.get(keyword)
        value = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else value
        if value is None or value == "":
            return None
        found.append(float(value))
    # A width below 1 says nothing: the standard forbids it.
    return (found[0], found[1]) if found[1] >= 1 else None


def decode(dataset: "Dataset", path: Path) -> Iterator[np.ndarray]:
    """
    Decodes the frames of a file one by one, `(height, width)`, or `(height, width, 3)` in RGB.

    Raises:
        ValueError: for a file that is cut off, or whose transfer syntax needs a package; it names the package.
    """
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    package = next((names for start, names in DECODERS.items() if syntax.name.startswith(start)), None)
    advice = f"pip install {package}" if package else "convert it to an uncompressed one, as dcmtk's dcmconv does"
    if syntax.is_compressed and not syntax.is_deflated:
        try:
            known = get_decoder(syntax).is_available
        except NotImplementedError:
            known = False
        if not known:
            raise ValueError(f"{path} has pixels in {syntax.name}, which is not decoded here: {advice}.")
    for frame in range(number_of_frames(dataset)):
        try:
            yield pixel_array(dataset, index=frame)
        except Exception as error:  # As above; of decoders too.
            hint = advice if syntax.is_compressed and package else "get the file again"
            text = " ".join(str(error).split())
            raise ValueError(f"The pixels of {path} cannot be decoded ({text:.200}): {hint}.") from error


def number_of_frames(dataset: "Dataset") -> int:
    """The number of frames of a file, 1 where it does not say."""
    return int(dataset.get("NumberOfFrames") or 1)


def is_grey(dataset: "Dataset") -> bool:
    """Whether the pixels of a file are greys."""
    return str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")


def modality_values(pixels: np.ndarray, settings: "Dataset") -> np.ndarray:
    """Values in the modality's unit, such as Hounsfield's, of stored ones; whole numbers where they are."""
    from pydicom.pixels import apply_modality_lut

    values = apply_modality_lut(pixels, settings)
    return values.astype(np.int64) if (values == np.round(values)).all() else values


def value_range(values: np.ndarray, pixels: np.ndarray, dataset: "Dataset") -> tuple[float, float]:
    """The lowest and the highest value, without those of padding around the scan."""
    padding = dataset.get("PixelPaddingValue")
    kept = values if padding is None else values[pixels != padding]
    kept = kept if kept.size else values
    return float(kept.min()), float(kept.max())


def windowed(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Greys 0 to 255 (uint8), `low` becoming black and `high` white; black where the two are equal."""
    share = (values - low) / ((high - low) or 1)
    return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)


def by_own_window(values: np.ndarray, settings: "Dataset") -> np.ndarray:
    """Greys 0 to 255 (uint8) by a frame's own window or table, its first one."""
    from pydicom import Dataset
    from pydicom.pixels import apply_voi_lut

    # pydicom gives greys in the range of the stored pixels: so these are said to be of 8 bits.
    view = Dataset()
    view.file_meta = settings.file_meta
    view.update({settings[key].tag: settings[key] for key in WINDOW_KEYWORDS if key in settings})
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = "MONOCHROME2", 8, 0
    greys = apply_voi_lut(values, view)
    tables = settings.get("VOILUTSequence")
    top = 2 ** int(tables[0].LUTDescriptor[2]) - 1 if tables else 255
    return np.round(np.clip(greys / top, 0, 1) * 255).astype(np.uint8)


def colours(pixels: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """RGB of 8 bits `(height, width, 3)`, of colours or of numbers of a palette."""
    from pydicom.pixels import apply_color_lut

    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    return (pixels >> max(bits - 8, 0)).astype(np.uint8)[..., :3]


__all__ = [
    "by_own_window",
    "colours",
    "decode",
    "frame_settings",
    "is_grey",
    "modality_values",
    "number_of_frames",
    "own_window",
    "read_dicom",
    "value_range",
    "windowed",
]
