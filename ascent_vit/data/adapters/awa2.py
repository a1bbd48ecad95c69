# SPDX-License-Identifier: Apache-2.0
"""
Animals with Attributes 2: 37,322 images of 50 classes, each class described by 85 attributes.

Xian, Lampert, Schiele, Akata: "Zero-Shot Learning: A Comprehensive Evaluation of the Good, the Bad and the Ugly", IEEE
TPAMI 2018. The archive's layout: classes.txt, predicates.txt, predicate-matrix-binary.txt, trainclasses.txt,
testclasses.txt and JPEGImages/CLASS/CLASS_NUMBER.jpg. The proposed split is in xlsa17.zip: data/AWA2/att_splits.mat
has the places of its images in res101.mat's image_files.
"""

import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from ..cells import read_image_file
from ..prepared import PreparedDataset
from ..schema import concept_features
from .archive import check_shares, dataset_from_splits, draw, find_file, read_lines, sizes_in_words


UNPACK = "Unpack the whole archive, AwA2-base.zip and AwA2-data.zip."

# The test classes of the two published zero-shot splits. Those of the standard split are among ImageNet's classes, on
# which backbones are pretrained; the proposed split avoids that.
PROPOSED_TEST_CLASSES = frozenset(
    ["bat", "blue+whale", "bobcat", "dolphin", "giraffe", "horse", "rat", "seal", "sheep", "walrus"]
)
STANDARD_TEST_CLASSES = frozenset(
    [
        "chimpanzee",
        "giant+panda",
        "hippopotamus",
        "humpback+whale",
        "leopard",
        "persian+cat",
        "pig",
        "raccoon",
        "rat",
        "seal",
    ]
)

CITATION = """```bibtex
@article{xian2018zero,
  title={Zero-Shot Learning: A Comprehensive Evaluation of the Good, the Bad and the Ugly},
  author={Xian, Yongqin and Lampert, Christoph H. and Schiele, Bernt and Akata, Zeynep},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2018}
}
```"""


def read_names(path: Path) -> list[str]:
    """
    Reads the names of classes.txt or predicates.txt, one per line, with or without a number before each.

    Raises:
        ValueError: for a file that is numbered in part or not from 1 on, or repeated names.
    """
    lines = read_lines(path)
    numbered = [re.fullmatch(r"(\d+)\s+(\S.*)", line) for _, line in lines]
    if any(numbered):
        for expected, ((number, line), match) in enumerate(zip(lines, numbered, strict=True), start=1):
            if match is None or int(match[1]) != expected:
                raise ValueError(f"{path}, line {number}: expected the number {expected} and a name; got {line!r}.")
    names = [match[2] if match else line for match, (_, line) in zip(numbered, lines, strict=True)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has {', '.join(repeated)} twice: every name may be there once.")
    return names


def read_predicates(path: Path, num_classes: int, num_predicates: int) -> list[list[int]]:
    """
    Reads the ids of each class's predicates from predicate-matrix-binary.txt.

    Raises:
        ValueError: for a matrix of another shape, or with values other than 0 and 1.
    """
    lines = read_lines(path)
    if len(lines) != num_classes:
        raise ValueError(f"{path} must have a row for each of the {num_classes} classes; got {len(lines)}. {UNPACK}")
    present = []
    for number, line in lines:
        values = line.split()
        if len(values) != num_predicates or not set(values) <= {"0", "1"}:
            raise ValueError(
                f"{path}, line {number}: expected a 0 or 1 for each of the {num_predicates} predicates; got "
                f"{len(values)} values, among them {', '.join(sorted(set(values))[:5])}."
            )
        present.append([i for i, value in enumerate(values) if value == "1"])
    return present


def list_images(folder: Path, classes: list[str]) -> list[list[Path]]:
    """
    Lists the image files of each class, by name.

    Raises:
        FileNotFoundError: for classes without images.
        ValueError: for a folder that is named after no class.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of images {folder} is missing. {UNPACK}")
    found = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    unknown = sorted(found - set(classes))
    if unknown:
        raise ValueError(f"{folder} has folders that are no class of classes.txt: {', '.join(unknown[:5])}.")
    images = [
        sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for name in classes
    ]
    empty = [name for name, paths in zip(classes, images, strict=True) if not paths]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise FileNotFoundError(f"{folder} has no images of {', '.join(empty[:5])}{more}. {UNPACK}")
    return images


def read_test_classes(folder: Path, classes: list[str]) -> set[str]:
    """
    Reads the unseen classes of a zero-shot split from testclasses.txt.

    Raises:
        FileNotFoundError: without testclasses.txt.
        ValueError: for unknown classes, or where trainvalclasses.txt, or else trainclasses.txt, does not name exactly
            the others.
    """
    hint = "It is part of AwA2-base.zip and of xlsa17.zip; give its folder as split_folder, or use split=instance."
    path = find_file([folder], "testclasses.txt", hint)
    test = set(read_names(path))
    unknown = sorted(test - set(classes))
    if unknown:
        raise ValueError(f"{path} names classes that classes.txt does not have: {', '.join(unknown)}.")
    for name in ("trainvalclasses.txt", "trainclasses.txt"):
        if (folder / name).is_file():
            wrong = sorted(set(read_names(folder / name)) ^ (set(classes) - test))
            if wrong:
                raise ValueError(
                    f"{folder / name} and testclasses.txt must together name every class once; "
                    f"they do not for {', '.join(wrong)}."
                )
            break
    return test


def read_mat(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """
    Reads variables of a MATLAB file as arrays with one axis.

    Raises:
        ValueError: for a file that cannot be read, or lacks one of them.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=names, simplify_cells=True)
    except (MatReadError, NotImplementedError, ValueError, TypeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a MATLAB file ({error}): unpack xlsa17.zip again.") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}: unpack xlsa17.zip again.")
    return {name: np.atleast_1d(content[name]).ravel() for name in names}


def read_proposed_split(folder: Path, classes: list[str]) -> dict[str, list[tuple[int, str]]]:
    """
    Reads the images of the proposed split, as label and CLASS/FILE, from att_splits.mat and res101.mat.

    Returns:
        "train" (trainval_loc), "test" (test_unseen_loc, images of classes that train does not have) and "test_seen"
        (test_seen_loc, images of classes that it has), each in the order of the images in res101.mat.

    Raises:
        FileNotFoundError: without res101.mat, as nothing else tells the order of the images.
        ValueError: for files that cannot be read or contradict each other.
    """
    path = folder / "att_splits.mat"
    places = {"train": "trainval_loc", "test": "test_unseen_loc", "test_seen": "test_seen_loc"}
    split = read_mat(path, ["allclasses_names", *places.values()])
    hint = (
        "att_splits.mat numbers the images in the order of its image_files, which nothing else tells: unpack all of "
        "xlsa17.zip, or take att_splits.mat away, so that testclasses.txt alone tells the classes of test."
    )
    order = find_file([folder], "res101.mat", hint)
    files = ["/".join(re.split(r"[/\\]+", str(file))[-2:]) for file in read_mat(order, ["image_files"])["image_files"]]
    different = sorted({str(name) for name in split["allclasses_names"]} ^ set(classes))
    if different:
        raise ValueError(f"{path} and classes.txt must have the same classes; they differ in {', '.join(different)}.")
    labels = {name: label for label, name in enumerate(classes)}
    strange = sorted(file for file in files if file.split("/")[0] not in labels)
    if strange:
        raise ValueError(f"{order} has images of no class of classes.txt, as {strange[0]}.")
    numbers = np.concatenate([split[name] for name in places.values()]).astype(int)
    if sorted(numbers.tolist()) != list(range(1, len(files) + 1)) or len(set(files)) != len(files):
        raise ValueError(
            f"{path} must have each of the {len(files)} images of {order.name} once in {', '.join(places.values())}: "
            "unpack both from the same xlsa17.zip."
        )
    images = {}
    for name, variable in places.items():
        chosen = [files[number - 1] for number in sorted(split[variable].astype(int).tolist())]
        images[name] = [(labels[file.split("/")[0]], file) for file in chosen]
    shown = {name: {label for label, _ in rows} for name, rows in images.items()}
    wrong = sorted(
        classes[label] for label in (shown["train"] & shown["test"]) | (shown["test_seen"] - shown["train"])
    )
    if wrong:
        raise ValueError(
            f"{path}: test_unseen_loc must hold classes that trainval_loc does not have, test_seen_loc those that it "
            f"has; not so for {', '.join(wrong)}."
        )
    return images


def _image_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _rows(split: str, items: list[tuple[int, Path]], lists: dict[str, list[list[int]]]) -> Iterator[dict[str, Any]]:
    for label, path in tqdm(items, desc=f"Reading {split}", unit="image", leave=False):
        yield {
            # Attributes belong to the class, not to a place: an image that its EXIF tag turns is as good as any.
            "image": read_image_file(path, placed=False)[0],
            "label": label,
            **{column: of_class[label] for column, of_class in lists.items()},
            "image_name": _image_name(path),
        }


def divide_attributes(
    names: list[str], predicates: list[list[int]], spatial: list[str]
) -> tuple[list[str], dict[str, list[list[int]]]]:
    """
    Divides the attributes into global and spatial concepts.

    Args:
        names: names of all attributes.
        predicates: numbers of the attributes of each class.
        spatial: names of those that become spatial concepts, in their order.

    Returns:
        Names of the global concepts, and each class's ids of present concepts by column, which is there if it has any
        concepts: `concepts` and `present`.

    Raises:
        ValueError: for names that are no attributes, or repeated.
    """
    strange = [name for name in spatial if name not in names]
    if strange or len(set(spatial)) < len(spatial):
        raise ValueError(
            f"spatial must list attributes of predicates.txt, each once, as [horns, stripes]; got {spatial!r}."
        )
    others = [name for name in names if name not in spatial]
    lists = {}
    for column, chosen in (("concepts", others), ("present", spatial)):
        ids = {name: i for i, name in enumerate(chosen)}
        if ids:
            lists[column] = [sorted(ids[names[i]] for i in held if names[i] in ids) for held in predicates]
    return others, lists


@dataclass(frozen=True)
class ZeroShotSplit:
    """
    A split with classes that train does not have; without any, every class is in every split.

    Args:
        unseen: names of these classes.
        images: split of each image, by CLASS/FILE, where the images of the split are published.
    """

    unseen: frozenset[str] = frozenset()
    images: dict[str, str] = field(default_factory=dict)

    def home(self, name: str, path: Path) -> str:
        """The split that an image of a class is in already; train for images that splits are drawn from."""
        return "test" if name in self.unseen else self.images.get(_image_name(path), "train")


def read_zero_shot_split(folder: Path, classes: list[str]) -> ZeroShotSplit:
    """
    Reads the zero-shot split of a folder: that of att_splits.mat where there is one, else that of testclasses.txt.

    Raises:
        FileNotFoundError, ValueError: see [`read_proposed_split`] and [`read_test_classes`].

    Warns:
        UserWarning: for the standard split, which is older than the proposed one.
    """
    if (folder / "att_splits.mat").is_file():
        published = read_proposed_split(folder, classes)
        unseen = frozenset(classes[label] for label, _ in published["test"])
        return ZeroShotSplit(unseen, {file: name for name, rows in published.items() for _, file in rows})
    unseen = frozenset(read_test_classes(folder, classes))
    if unseen == STANDARD_TEST_CLASSES:
        warnings.warn(
            "testclasses.txt holds the standard split, whose test classes are among ImageNet's, not the proposed "
            "one: give the folder xlsa17/data/AWA2 as split_folder.",
            stacklevel=3,
        )
    return ZeroShotSplit(unseen)


def draw_splits(
    images: list[list[Path]], classes: list[str], zero_shot: ZeroShotSplit, shares: dict[str, float], seed: int
) -> dict[str, list[tuple[int, Path]]]:
    """
    Draws the images of each split that are not in one already; gives those of all splits with their labels.

    Args:
        images: files of each class.
        classes: names of the classes.
        zero_shot: the split in which images are already.
        shares: share of the other images of each class that is drawn into a split; what is left over is train.
        seed: random seed of the draw.
    """
    splits: dict[str, list[tuple[int, Path]]] = {"train": [], "validation": [], "test": []}
    if zero_shot.images:
        splits["test_seen"] = []
    for label, paths in enumerate(images):
        items: list[tuple[int, Path]] = []
        for path in paths:
            home = zero_shot.home(classes[label], path)
            (items if home == "train" else splits[home]).append((label, path))
        counts = {name: round(share * len(items)) for name, share in shares.items()}
        for name, drawn in draw(items, counts, [seed, label]).items():
            splits[name] += drawn
    return splits


def _split_in_words(zero_shot: ZeroShotSplit, validation_share: float, test_share: float, seed: int) -> str:
    if not zero_shot.unseen:
        return (
            f"Every class in every split: {validation_share:g} of its images are validation, {test_share:g} test, by "
            f"seed {seed}."
        )
    kind = {PROPOSED_TEST_CLASSES: "the proposed split", STANDARD_TEST_CLASSES: "the standard split"}.get(
        zero_shot.unseen, "a split of its own"
    )
    of_train = " that the split has for training (test_seen holds the others)" if zero_shot.images else ""
    return (
        f"Zero-shot, {kind}: test holds the classes {', '.join(sorted(zero_shot.unseen))}, which train does not have. "
        "A classifier cannot name them, so accuracy on test means nothing; the concept metrics do. Validation is "
        f"{validation_share:g} of each other class's images{of_train}, by seed {seed}."
    )


def prepare(
    source: Path,
    *,
    split: Literal["instance", "proposed"] = "instance",
    split_folder: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    spatial: list[str] | None = None,
    seed: int = 0,
) -> PreparedDataset:
    """
    Prepares Animals with Attributes 2 with its 85 attributes as global concepts, or some of them as spatial ones.

    The attributes describe a class, so every image of a class has the same, whether they are to be seen in it or not.

    Args:
        source: the unpacked archive, or the folder around Animals_with_Attributes2.
        split: "instance" draws validation and test from every class. "proposed" is the zero-shot split: test holds the
            images of the classes that train does not have. With att_splits.mat and res101.mat its images are the
            published ones, and test_seen holds those of train's classes; else the classes are those of
            testclasses.txt.
        split_folder: folder with the zero-shot split's att_splits.mat and res101.mat, or testclasses.txt and
            trainvalclasses.txt, such as xlsa17/data/AWA2; by default the archive itself.
        validation_share: share of each class's images (of each seen class that are for training, for "proposed") that
            becomes the validation split.
        test_share: share of each class's images that becomes the test split; for "instance" alone.
        spatial: names of attributes that have a place, such as [horns, stripes]. They become spatial concepts, listed
            in `present`, as their place is not known.
        seed: random seed of the splits.

    Raises:
        FileNotFoundError: for files or images that are missing.
        ValueError: for files that contradict each other, images that cannot be read, or options out of range.
    """
    from datasets import Value

    if split not in ("instance", "proposed"):
        raise ValueError(f'split must be "instance" or "proposed"; got {split!r}.')
    check_shares(validation_share, test_share if split == "instance" else 0.0)
    inner = source / "Animals_with_Attributes2"
    root = inner if inner.is_dir() else source
    classes = read_names(find_file([root], "classes.txt", UNPACK))
    names = read_names(find_file([root], "predicates.txt", UNPACK))
    matrix = find_file([root], "predicate-matrix-binary.txt", UNPACK)
    predicates = read_predicates(matrix, len(classes), len(names))
    shares, zero_shot = {"validation": validation_share, "test": test_share}, ZeroShotSplit()
    if split == "proposed":
        zero_shot = read_zero_shot_split(Path(split_folder).expanduser() if split_folder else root, classes)
        del shares["test"]
    images = list_images(root / "JPEGImages", classes)
    different = sorted({_image_name(path) for paths in images for path in paths} ^ set(zero_shot.images))
    if zero_shot.images and different:
        raise ValueError(
            f"The images of {root / 'JPEGImages'} and of res101.mat must be the same; they differ in "
            f"{len(different)}, as {different[0]}. {UNPACK}"
        )
    splits = draw_splits(images, classes, zero_shot, shares, seed)
    others, lists = divide_attributes(names, predicates, spatial or [])
    features = concept_features(classes, others, spatial, lists.keys() & {"present"}, {"image_name": Value("string")})
    dataset = dataset_from_splits({name: _rows(name, rows, lists) for name, rows in splits.items()}, features)
    placed = f", but for {', '.join(spatial)}, which are spatial ones (`present`), without a place" if spatial else ""
    description = (
        f"[Animals with Attributes 2](https://cvml.ista.ac.at/AwA2/): {sum(map(len, images))} images "
        f"({sizes_in_words(dataset)}) of {len(classes)} classes.\n\n"
        f"Concepts: the {len(names)} attributes of the binary predicate matrix, as global concepts{placed}. They "
        "describe the class, so every image of a class has the same, whether they are to be seen in it or not.\n\n"
        f"Split: {_split_in_words(zero_shot, validation_share, test_share, seed)}\n\nNothing was left out. Each image "
        f"has its own licence, named in the archive.\n\n{CITATION}"
    )
    settings = {
        "split": split,
        "split_folder": Path(split_folder).name if split_folder else None,
        "validation_share": validation_share,
        "test_share": test_share,
        "spatial": ", ".join(spatial) if spatial else None,
        "seed": seed,
    }
    title = f"Animals with Attributes 2 with {len(names)} attributes"
    return PreparedDataset(dataset, title, "other", description, settings)


__all__ = [
    "divide_attributes",
    "list_images",
    "prepare",
    "read_mat",
    "read_names",
    "read_predicates",
    "read_proposed_split",
    "read_test_classes",
]
