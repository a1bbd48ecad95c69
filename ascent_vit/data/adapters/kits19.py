# SPDX-License-Identifier: Apache-2.0
"""
KiTS19: computed tomography of patients with kidney tumours, each voxel marked as kidney, tumour or neither.

Heller et al.: "The KiTS19 Challenge Data", arXiv 1904.00445. Two layouts are read: the archive's volumes,
case_XXXXX/imaging.nii.gz and segmentation.nii.gz with kits.json, whose first axis counts the axial slices; and slices
that were made of them, images/PATIENT_SLICE.png and masks/PATIENT_SLICE.png.
"""

import json
import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

from ..cells import image_cell, read_image_file
from ..prepared import PreparedDataset
from ..schema import concept_features
from .archive import check_shares, dataset_from_splits, draw, sizes_in_words


CLASSES = ["no tumour", "tumour"]

# In the order of their values in the label volumes.
CONCEPTS = ["kidney", "tumour"]
KIDNEY, TUMOUR = 1, 2

# Axis codes of the archive's volumes: slices from head to foot, rows from front to back, columns from the patient's
# right to left, which is how radiologists look at them.
ORIENTATION = ("I", "P", "L")

# The archive's largest volume has less than a third of it.
MOST_VOXELS = 2**30

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}

CITATION = """```bibtex
@article{heller2019kits19,
  title={The KiTS19 Challenge Data: 300 Kidney Tumor Cases with Clinical Context, CT Semantic Segmentations, and
         Surgical Outcomes},
  author={Heller, Nicholas and Sathianathen, Niranjan and Kalapara, Arveen and others},
  journal={arXiv preprint arXiv:1904.00445},
  year={2019}
}
```"""


@dataclass(frozen=True)
class SliceOptions:
    """
    Slices to read, and the window of radiodensities that their pictures show.

    Args:
        centre: centre of the window in Hounsfield units (HU), shown as medium grey.
        width: width of the window in HU, above 0, from black to white.
        every: step between the slices of a patient that are read, 1 or more.
        only_annotated: whether slices without kidney and tumour are left out.

    Raises:
        ValueError: for values out of range.
    """

    centre: float
    width: float
    every: int
    only_annotated: bool

    def __post_init__(self):
        if not (math.isfinite(self.centre) and 0 < self.width < math.inf):
            raise ValueError(
                f"centre and width must be numbers of HU, width above 0; got {self.centre} and {self.width}."
            )
        if self.every < 1:
            raise ValueError(f"every must be 1 or more; got {self.every}.")

    def grey(self, density: np.ndarray) -> np.ndarray:
        """Turns densities in HU into greys 0 to 255 (uint8)."""
        low = self.centre - self.width / 2
        return np.round(np.clip((density - low) / self.width, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Slice:
    """A slice of a patient: a picture as a cell of an Image column, and a mask (height, width) uint8 of 0, 1, 2."""

    patient: str
    number: int
    image: dict[str, Any]
    mask: np.ndarray


SliceReader = Callable[[], Iterator[Slice]]


def _check_mask(values: np.ndarray, where: str) -> np.ndarray:
    found = np.unique(values)
    if not np.isin(found, (0, KIDNEY, TUMOUR)).all():
        raise ValueError(
            f"{where} must hold 0, 1 (kidney) and 2 (tumour) alone; got {', '.join(map(str, found[:6].tolist()))}."
        )
    return values.astype(np.uint8)


def read_volume(path: Path) -> np.ndarray:
    """
    Reads a volume as `(slices, height, width)`, in the orientation of the archive's volumes.

    Volumes that are stored otherwise are turned by their affine. The identity says nothing about how a patient lay:
    such a volume is taken as it is.

    Raises:
        FileNotFoundError: for a file that is missing.
        ImportError: without nibabel.
        ValueError: for a file that is cut off or no volume of three axes.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("KiTS19's volumes are read with nibabel: pip install nibabel.") from error
    if not path.is_file():
        raise FileNotFoundError(f"The volume {path} is missing.")
    try:
        volume: Any = nibabel.load(path)
        if len(volume.shape) != 3:
            raise ValueError(f"it must have three axes; it has the shape {volume.shape}")
        if math.prod(volume.shape) > MOST_VOXELS:
            raise ValueError(f"its header tells of {math.prod(volume.shape):,} voxels, above {MOST_VOXELS:,}")
        values = np.asanyarray(volume.dataobj)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"The volume {path} cannot be read ({error}): get it again.") from error
    if not np.array_equal(volume.affine, np.eye(4)):
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt(ORIENTATION)
        )
        values = nibabel.orientations.apply_orientation(values, turn)
    return values


def check_same_place(scan: Path, labels: Path) -> None:
    """
    Checks that the voxels of two volumes are at the same places of the patient, so that turned they still are.

    Raises:
        ValueError: for affines that differ, unless one is the identity, which tells no place, and the other's volume
            is not turned.
    """
    try:
        import nibabel
    except ImportError:
        # Reading them says what to install.
        return
    if not (scan.is_file() and labels.is_file()):
        return
    try:
        volumes: Any = [nibabel.load(path) for path in (scan, labels)]
        first, second = (volume.affine for volume in volumes)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error):
        # Reading it says what is wrong.
        return
    if np.allclose(first, second, atol=1e-3):
        return
    told = [affine for affine in (first, second) if not np.array_equal(affine, np.eye(4))]
    if len(told) == 1 and nibabel.orientations.aff2axcodes(told[0]) == tuple(ORIENTATION):
        return
    raise ValueError(
        f"{scan} and {labels} have different affines, so that a scan and its labels would be turned each by its own, "
        "as in a mirror: resample the labels to the scan, for example by nibabel.processing.resample_from_to with "
        "order 0."
    )


def read_case(folder: Path, options: SliceOptions, left_out: Counter) -> Iterator[Slice]:
    """
    Reads the slices of a case with imaging.nii.gz and segmentation.nii.gz; `left_out` counts those left out.

    Raises:
        FileNotFoundError: for one of the two that is missing.
        ValueError: for volumes that cannot be read, have different shapes, or impossible values.
    """
    check_same_place(folder / "imaging.nii.gz", folder / "segmentation.nii.gz")
    mask = _check_mask(read_volume(folder / "segmentation.nii.gz"), str(folder / "segmentation.nii.gz"))
    density = read_volume(folder / "imaging.nii.gz")
    if density.shape != mask.shape:
        raise ValueError(
            f"{folder}: imaging and segmentation must have the same shape; got {density.shape} and {mask.shape}."
        )
    for number in range(0, len(mask), options.every):
        if options.only_annotated and not mask[number].any():
            left_out["not annotated"] += 1
            continue
        if not np.isfinite(density[number]).all():
            raise ValueError(f"{folder / 'imaging.nii.gz'}, slice {number}: a density is not finite.")
        yield Slice(folder.name, number, image_cell(Image.fromarray(options.grey(density[number]))), mask[number])


def read_mask(path: Path, kidney_colour: str = "blue") -> np.ndarray:
    """
    Reads the mask of a slice as `(height, width)` uint8: 0 neither, 1 kidney, 2 tumour.

    Args:
        path: image of one channel with these values, or a coloured one: black, red and blue.
        kidney_colour: colour of the kidney, "blue" or "red"; the other one is tumour. Nothing in the file tells them
            apart: the organ on both sides of the spine is the kidney. (The challenge's own script draws kidneys red.)

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for a file that is no image, or has other values or colours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The mask {path} is missing: every image needs one.")
    with opened_image(path, f"The mask {path}") as image:
        pixels = np.asarray(image if image.mode in ("L", "I", "I;16") else image.convert("RGB"))
    if pixels.ndim == 2:
        return _check_mask(pixels, f"The mask {path}")
    values = np.full(pixels.shape[:2], 255, dtype=np.uint8)
    values[(pixels == 0).all(axis=-1)] = 0
    for name, colour in COLOURS.items():
        values[(pixels == colour).all(axis=-1)] = KIDNEY if name == kidney_colour else TUMOUR
    if (values == 255).any():
        row, column = np.argwhere(values == 255)[0]
        raise ValueError(
            f"The mask {path} must be black, red (255, 0, 0) and blue (0, 0, 255) alone; got "
            f"{tuple(pixels[row, column].tolist())} in row {row}, column {column}."
        )
    return values


def list_slices(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """
    Lists numbers and file names of each patient's slices, in order, in a folder with images/ and masks/.

    Raises:
        FileNotFoundError: for no images, or images without mask or the other way round.
        ValueError: for names other than PATIENT_SLICE.png, or a repeated slice.
    """
    images, masks = ({path.name for path in (folder / name).glob("*.png")} for name in ("images", "masks"))
    if not images:
        raise FileNotFoundError(f"{folder / 'images'} has no PNG files.")
    if images != masks:
        name = min(images ^ masks)
        lacking = "mask" if name in images else "image"
        raise FileNotFoundError(
            f"{name} has no {lacking} in {folder / lacking}s: images and masks must bear the same names."
        )
    slices: dict[str, dict[int, str]] = {}
    for name in sorted(images):
        match = re.fullmatch(r"(.+)_(\d+)\.png", name)
        if match is None:
            raise ValueError(f"{folder / 'images' / name} must be named PATIENT_SLICE.png.")
        numbers = slices.setdefault(match[1], {})
        if int(match[2]) in numbers:
            raise ValueError(f"{folder}: {numbers[int(match[2])]} and {name} are the same slice; remove one.")
        numbers[int(match[2])] = name
    return {patient: sorted(numbers.items()) for patient, numbers in sorted(slices.items())}


def read_patient(
    folder: Path,
    patient: str,
    slices: list[tuple[int, str]],
    options: SliceOptions,
    kidney_colour: str,
    left_out: Counter,
) -> Iterator[Slice]:
    """
    Reads the slices of a patient that are stored as PNG, greys as they are; `left_out` counts those left out.

    Raises:
        FileNotFoundError, ValueError: see [`read_mask`]; for a mask of another size than its image.
    """
    for number, name in slices[:: options.every]:
        image, size = read_image_file(folder / "images" / name)
        mask = read_mask(folder / "masks" / name, kidney_colour)
        if mask.shape != size:
            raise ValueError(
                f"{folder / 'masks' / name} must have the image's {size[1]}x{size[0]} pixels; got "
                f"{mask.shape[1]}x{mask.shape[0]}."
            )
        if options.only_annotated and not mask.any():
            left_out["not annotated"] += 1
            continue
        yield Slice(patient, number, image, mask)


def split_patients(patients: list[str], validation_share: float, test_share: float, seed: int) -> dict[str, list[str]]:
    """
    Draws patients into train, validation and test, each into one. Two make no validation, one makes train alone.

    Raises:
        ValueError: for shares that leave nobody to train on.
    """
    count = len(patients)
    counts = {}
    if validation_share and count > 2:
        counts["validation"] = max(1, round(validation_share * count))
    if test_share and count > 1:
        counts["test"] = max(1, round(test_share * count))
    if sum(counts.values()) >= count:
        raise ValueError(
            f"validation_share {validation_share} and test_share {test_share} leave none of {count} patients for "
            "train: make them smaller."
        )
    return draw(patients, counts, seed)


def _cases(root: Path) -> tuple[list[Path], int, int]:
    """Lists the cases with both volumes, and counts those without segmentation and those that kits.json names."""
    folders = sorted(path for path in root.glob("case_*") if path.is_dir())
    labelled = [folder for folder in folders if (folder / "segmentation.nii.gz").is_file()]
    for folder in labelled:
        if not (folder / "imaging.nii.gz").is_file():
            raise FileNotFoundError(
                f"{folder} has a segmentation, but no imaging.nii.gz, which the challenge's repository downloads "
                "apart: python -m starter_code.get_imaging."
            )
    if not labelled:
        raise FileNotFoundError(f"No case in {root} has a segmentation.nii.gz.")
    described = 0
    if (root / "kits.json").is_file():
        try:
            described = len(json.loads((root / "kits.json").read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{root / 'kits.json'} is no JSON file: {error}") from error
    return labelled, len(folders) - len(labelled), described


def _find(source: Path, layout: str) -> tuple[str, Path]:
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}.")
    volumes = [folder for folder in (source, source / "data") if any(folder.glob("case_*"))]
    slices = [folder for folder in (source, source / "slices") if (folder / "images").is_dir()]
    if layout == "auto":
        complete = any(any(folder.glob("case_*/imaging.nii.gz")) for folder in volumes)
        layout = "slices" if slices and not complete else "volumes"
    found = volumes if layout == "volumes" else slices
    if not found:
        expected = "case_XXXXX/imaging.nii.gz" if layout == "volumes" else "images/PATIENT_SLICE.png"
        raise FileNotFoundError(f"{source} does not hold KiTS19: expected {expected} in it.")
    return layout, found[0]


def _readers(
    source: Path, root: Path, layout: str, options: SliceOptions, kidney_colour: str, left_out: Counter
) -> tuple[dict[str, SliceReader], list[str]]:
    """Finds the reader of each patient's slices; notes on files that are left out come with them."""
    notes = []
    if layout == "volumes":
        cases, unlabelled, described = _cases(root)
        if described > len(cases):
            notes.append(
                f"{described - len(cases)} of the {described} cases of kits.json, which are not in the folder"
            )
        if unlabelled:
            notes.append(f"{unlabelled} cases without segmentation (the challenge's test cases)")
        readers: dict[str, SliceReader] = {
            folder.name: partial(read_case, folder, options, left_out) for folder in cases
        }
        return readers, notes
    ignored = sum(1 for folder in (source, source / "data") for _ in folder.glob("case_*/segmentation.nii.gz"))
    if ignored:
        notes.append(f"{ignored} label volumes without imaging")
    readers = {
        patient: partial(read_patient, root, patient, slices, options, kidney_colour, left_out)
        for patient, slices in list_slices(root).items()
    }
    return readers, notes


def _rows(split: str, patients: list[str], readers: dict[str, SliceReader], seen: Counter) -> Iterator[dict[str, Any]]:
    """Reads the slices of some patients as rows, whose classes are counted in `seen`."""
    for patient in tqdm(patients, desc=f"Reading {split}", unit="patient", leave=False):
        for item in readers[patient]():
            present = [i for i in range(len(CONCEPTS)) if (item.mask == i + 1).any()]
            label = int(TUMOUR - 1 in present)
            seen[CLASSES[label]] += 1
            yield {
                "image": item.image,
                "label": label,
                "concepts": present,
                "mask": image_cell(Image.fromarray(item.mask)),
                "group_id": item.patient,
                "slice": item.number,
            }


def _description(sizes: str, patients: int, seen: Counter, made: str, notes: list[str], seed: int) -> str:
    return (
        "[KiTS19](https://kits19.grand-challenge.org): "
        f"{sum(seen.values())} slices ({sizes}), patients: {patients}; {seen['tumour']} with tumour and "
        f"{seen['no tumour']} without.\n\n{made}\n\n"
        "Concepts: kidney and tumour, as masks by the annotators, and as global concepts where they are in the slice. "
        "The class is whether there is tumour in the slice, so the concept tumour decides it.\n\n"
        f"Split: by patient (`group_id`), none in two splits, by seed {seed}.\n\n"
        f"Left out: {'; '.join(notes) or 'nothing'}.\n\n{CITATION}"
    )


def prepare(
    source: Path,
    *,
    layout: Literal["auto", "volumes", "slices"] = "auto",
    centre: float = 40.0,
    width: float = 400.0,
    every: int = 1,
    only_annotated: bool = True,
    kidney_colour: Literal["blue", "red"] = "blue",
    validation_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
) -> PreparedDataset:
    """
    Prepares KiTS19 as axial slices with or without tumour, which are the classes, with kidney and tumour as masks.

    Args:
        source: folder of the cases, or of slices with their masks.
        layout: layout of the folder, "volumes", "slices", or "auto" for volumes where there are any with imaging, else
            slices.
        centre: centre of the window in Hounsfield units; for volumes alone.
        width: width of the window in Hounsfield units; for volumes alone. The default shows the abdomen's soft tissue.
        every: step between the slices of a patient that are read, 1 or more.
        only_annotated: whether slices without kidney and tumour are left out. Otherwise the part of the body, without
            a look at the kidney, would tell the class.
        kidney_colour: colour of the kidney in slices with coloured masks, see [`read_mask`].
        validation_share: share of the patients whose slices become the validation split, at least one of three or
            more.
        test_share: share of the patients whose slices become the test split, at least one of two or more.
        seed: random seed of the splits.

    Raises:
        FileNotFoundError: for files that are missing.
        ImportError: for volumes without nibabel.
        ValueError: for files that contradict each other, or options out of range.

    Warns:
        UserWarning: for a single patient, whose slices are all in train.
    """
    from datasets import Value

    if layout not in ("auto", "volumes", "slices"):
        raise ValueError(f'layout must be "auto", "volumes" or "slices"; got {layout!r}.')
    if kidney_colour not in COLOURS:
        raise ValueError(f"kidney_colour must be {' or '.join(COLOURS)}; got {kidney_colour!r}.")
    options = SliceOptions(centre, width, every, only_annotated)
    check_shares(validation_share, test_share)
    found, root = _find(source, layout)
    skipped: Counter = Counter()
    readers, notes = _readers(source, root, found, options, kidney_colour, skipped)
    splits = split_patients(list(readers), validation_share, test_share, seed)
    if len(readers) == 1:
        warnings.warn(
            f"There is one patient, {next(iter(readers))}: all slices are train, as no patient may be in two splits. "
            "A validation split cut from them would tell nothing about other patients.",
            stacklevel=2,
        )
    features = concept_features(
        CLASSES, CONCEPTS, CONCEPTS, columns=("mask",), extra={"group_id": Value("string"), "slice": Value("int32")}
    )
    seen: Counter = Counter()
    rows = {name: _rows(name, patients, readers, seen) for name, patients in splits.items()}
    dataset = dataset_from_splits(rows, features)
    if not dataset:
        raise ValueError(
            f"No slice in {root} is left: none has kidney or tumour. Use only_annotated=false or every=1."
        )
    if found == "volumes":
        made = f"Axial slices of the volumes, with a window of {width:g} HU around {centre:g} HU as 8-bit grey."
    else:
        made = f"Slices as they are; in coloured masks, {kidney_colour} is kidney."
    if every > 1:
        made += f" Every slice whose place is a multiple of {every}."
    if only_annotated:
        notes.append(f"{skipped['not annotated']} slices without kidney and tumour")
    return PreparedDataset(
        dataset=dataset,
        title="KiTS19 slices with kidney and tumour",
        license="cc-by-nc-sa-4.0",
        description=_description(sizes_in_words(dataset), len(readers), seen, made, notes, seed),
        settings={
            "layout": found,
            **asdict(options),
            "kidney_colour": kidney_colour,
            "validation_share": validation_share,
            "test_share": test_share,
            "seed": seed,
        },
    )


__all__ = [
    "Slice",
    "SliceOptions",
    "list_slices",
    "prepare",
    "read_case",
    "read_mask",
    "read_patient",
    "read_volume",
    "split_patients",
]
