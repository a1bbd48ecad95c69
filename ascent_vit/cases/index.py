# SPDX-License-Identifier: Apache-2.0
"""`ConceptIndex`: finds images of a dataset that a model sees as it sees a given one."""

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from ascent_vit.explanation.sources import DatasetImages
from ascent_vit.inference.identity import processor_settings
from ascent_vit.utils.files import new_folder, read_json
from modeling_ascent_vit.names_ascent_vit import find_concept

from .build import CASES, FACTS, FORMAT, PATCHES, write_index
from .vectors import attended_patch, attention_vector, contribution_vector, patch_vector


if TYPE_CHECKING:
    from datasets import Dataset

    from ascent_vit.explanation import Explanation
    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

logger = logging.getLogger(__name__)

# Folder of an index beside its model, in a model's folder or repository.
FOLDER = "index"
By = Literal["contributions", "attention", "patch"]


@dataclass(frozen=True)
class Case:
    """
    An image of an index that is like another one.

    Args:
        row (`int`): Row of the image in the dataset that the index was built of.
        score (`float`): Cosine of what was compared, at most 1.
        label (`str`, *optional*): Name of the image's class by the dataset, or of all of them.
        prediction (`str`): What the model says of the image, written as `label` is.
        patch (`tuple[int, int]`, *optional*): Row and column of the patch that is alike, if patches were compared.
        thumbnail (`PIL.Image.Image`, *optional*): The image, small, if the index has it.
    """

    row: int
    score: float
    label: str | None
    prediction: str
    patch: tuple[int, int] | None = None
    thumbnail: Image.Image | None = None


def require_faiss() -> None:
    """Raises ImportError, with what to install, where Faiss is not there."""
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ImportError("An index of images needs Faiss: pip install 'ascent-vit[cases]'.") from error


class Members:
    """Which entries of a table hold a number, by a column of lists of numbers."""

    def __init__(self, table: "Dataset", column: str):
        lists = table.data.column(column).combine_chunks()
        self.number = len(table)
        self.values = lists.flatten().to_numpy(zero_copy_only=False)
        self.entries = np.repeat(np.arange(self.number), np.diff(lists.offsets.to_numpy()))

    def mask(self, value: int) -> np.ndarray:
        """Whether each entry holds a number, `(number of entries,)`."""
        mask = np.zeros(self.number, dtype=bool)
        mask[self.entries[self.values == value]] = True
        return mask


class ConceptIndex:
    """
    Images of a dataset, to be searched for those that a model sees as it sees a given one.

    An index belongs to the model, and the image processor, that it was built with, and takes explanations of no other.
    Every image, or every patch with the concept in question, is compared, in half precision.

    Example:

    ```python
    >>> index = ConceptIndex.build(model, processor, dataset["train"], thumbnails=True)
    >>> index.save("runs/birds/model/index")
    >>> explanation = explain(model, processor, "bird.jpg", features=True)
    >>> [case.label for case in explanation.similar(index, k=3)]
    ['Painted Bunting', 'Painted Bunting', 'Vermilion Flycatcher']
    >>> explanation.similar(index, concept="red crown")[0].patch
    (3, 7)
    ```
    """

    def __init__(self, folder: Path):
        require_faiss()
        from datasets import load_from_disk

        self.folder = folder
        self.left_out: list[str] = []
        self._temporary: Any = None
        if not (folder / FACTS).is_file():
            raise FileNotFoundError(
                f"The folder {folder} holds no {FACTS}: give one that ascent-vit index has written."
            )
        self.facts: dict[str, Any] = read_json(folder / FACTS)
        if not isinstance(self.facts, dict) or self.facts.get("format") != FORMAT:
            raise ValueError(f"{folder / FACTS} is not of the form that this version reads: build the index again.")
        try:
            self.cases: Any = load_from_disk(str(folder / CASES))
            self.patches: Any = load_from_disk(str(folder / PATCHES)) if self.facts["patches"] else []
            tables = {"contributions": self.cases, "attention": self.cases, "features": self.patches}
            for name, table in tables.items():
                if len(table):
                    table.load_faiss_index(name, folder / f"{name}.faiss")
                    if table.get_index(name).faiss_index.ntotal != len(table):
                        raise ValueError(f"{name}.faiss has another number of entries than its table")
            if (len(self.cases), len(self.patches)) != (self.facts["cases"], self.facts["patches"]):
                raise ValueError(f"a table has another number of rows than {FACTS} says")
        # Readers of damaged files raise errors of many kinds.
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"The index in {folder} is damaged, build it again: {reason}.") from error

    def __len__(self) -> int:
        return len(self.cases)

    def __repr__(self) -> str:
        names = [self.facts["dataset"][name] for name in ("name", "split")]
        origin = ", ".join(name for name in names if name) or "a dataset without a name"
        return f"ConceptIndex({len(self)} images of {origin}; {len(self.patches)} patches)"

    @classmethod
    def build(
        cls,
        model: "ConceptClassifier",
        processor: "ConceptImageProcessor",
        dataset: "Dataset",
        thumbnails: bool = False,
        concepts_per_image: int = 16,
        batch_size: int = 8,
        dataset_name: str | None = None,
        split_name: str | None = None,
        progress: bool = False,
    ) -> "ConceptIndex":
        """
        Explains all images of a dataset and keeps what is compared.

        Memory stays flat while images are explained; the index itself takes 4 bytes a concept and image, and 2 bytes a
        number of each patch that is kept.

        Args:
            model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
            processor (`AscentViTImageProcessor`): The model's image processor.
            dataset (`datasets.Dataset`): Split of a concept dataset, with the columns `image` and `label`.
            thumbnails (`bool`, *optional*, defaults to `False`):
                Whether to keep the images too, at 128 pixels. Publish them only where their licence allows it.
            concepts_per_image (`int`, *optional*, defaults to 16):
                Number of spatial concepts of an image, those attended most, whose patches are kept; 0 for no patches.
            batch_size (`int`, *optional*, defaults to 8): Number of images to run at a time.
            dataset_name, split_name (`str`, *optional*, defaults to what the dataset says):
                Names of the dataset and its split, for the record.
            progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

        Returns:
            [`ConceptIndex`]: its `left_out` has one sentence for each image that could not be read.

        Raises:
            ImportError: where Faiss is not installed.
            ValueError: for a stream, for another kind of model, or where no image can be read.
        """
        require_faiss()
        source = DatasetImages(dataset, split_name)
        if source.streams:
            raise ValueError("An index is built of a dataset whose rows are at hand: leave the streaming out.")
        if concepts_per_image < 0:
            raise ValueError(f"concepts_per_image must be 0 or more; got {concepts_per_image}.")
        source.window = getattr(processor, "window", None)
        name = dataset_name or getattr(dataset.info, "dataset_name", None)
        temporary = tempfile.TemporaryDirectory(prefix="ascent-vit-index-")
        options = (name, concepts_per_image, thumbnails, batch_size, progress)
        skipped = write_index(Path(temporary.name), model, processor, source, *options)
        index = cls(Path(temporary.name))
        index._temporary, index.left_out = temporary, skipped
        if skipped:
            logger.warning("%d images could not be read and are left out. The first: %s", len(skipped), skipped[0])
        return index

    @classmethod
    def load(cls, name_or_path: str | os.PathLike, revision: str | None = None) -> "ConceptIndex":
        """
        Loads an index that was saved or pushed.

        Args:
            name_or_path (`str` or `os.PathLike`):
                The index's folder, that of a model with `index/`, or the Hub id of one.
            revision (`str`, *optional*): Branch, tag or commit of the Hub's repository.

        Raises:
            FileNotFoundError: where there is no index.
            ValueError: for one that is damaged or of another version.
        """
        folder = Path(name_or_path).expanduser()
        if not folder.is_dir():
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

            try:
                folder = Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=f"{FOLDER}/*"))
            except (HFValidationError, RepositoryNotFoundError) as error:
                raise FileNotFoundError(
                    f"There is no index {name_or_path}, neither a folder nor on the Hub."
                ) from error
            if not (folder / FOLDER).is_dir():
                raise FileNotFoundError(f"{name_or_path} on the Hub has no folder {FOLDER}/, where an index would be.")
        return cls(folder if (folder / FACTS).is_file() else folder / FOLDER)

    def save(self, folder: str | os.PathLike) -> None:
        """
        Writes the index to a folder, whole or not at all.

        Args:
            folder (`str` or `os.PathLike`): Folder to write, new or empty; `index` in a model's folder is found there.

        Raises:
            FileExistsError: for a folder that is not empty.
        """
        with new_folder(folder) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True)

    def write_without_thumbnails(self, folder: Path) -> None:
        """Writes the index to a new folder, without the images, whether or not it has them."""
        from datasets import load_from_disk

        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(CASES))
        plain: Any = load_from_disk(str(self.folder / CASES))
        plain.select_columns([name for name in plain.column_names if name != "thumbnail"]).save_to_disk(folder / CASES)

    def push_to_hub(
        self, repo_id: str, thumbnails: bool = False, private: bool | None = None, token: str | None = None
    ) -> str:
        """
        Sends the index to the Hub, as `index/` of the model's repository, in one commit.

        Args:
            repo_id (`str`): `USER/NAME` of the model's repository, which is created if it does not exist.
            thumbnails (`bool`, *optional*, defaults to `False`):
                Whether to send the images too, if the index has them.
            private (`bool`, *optional*): Whether a repository that is created is private.
            token (`str`, *optional*): Token of the Hub; by default that of the user who is logged in.

        Returns:
            `str`: address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token, library_name="ascent-vit")
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, FOLDER)
            if thumbnails:
                self.save(folder)
            else:
                self.write_without_thumbnails(folder)
            message = "Add an index of similar images, by ascent-vit"
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, path_in_repo=FOLDER, commit_message=message, delete_patterns="*"
            )
        return str(commit)

    @cached_property
    def _classes(self) -> Members:
        return Members(self.cases, "classes")

    @cached_property
    def _concepts(self) -> Members:
        return Members(self.patches, "concepts")

    @cached_property
    def _case_of_patch(self) -> np.ndarray:
        return self.patches.data.column("case").to_numpy()

    def check(self, explanation: "Explanation") -> None:
        """Raises ValueError for an explanation that the index cannot be asked about."""
        if len(explanation.class_ids) > 1:
            raise ValueError("Similar images are those of one class' explanation: take for_class of this contrast.")
        if explanation.identity is None or explanation.identity.digest != self.facts["model"]:
            raise ValueError(
                "This explanation is of another model than the index was built with, or of the same model with other "
                "weights, names or edits: build an index with this model."
            )
        if processor_settings(explanation.processor) != self.facts["processor"]:
            raise ValueError(
                "This explanation was made with other settings of the image processor than the index: load the image "
                "processor that was saved with the model, or build the index again."
            )

    def similar(
        self,
        explanation: "Explanation",
        k: int = 5,
        by: By = "contributions",
        same_class: bool | None = None,
        concept: str | None = None,
    ) -> list[Case]:
        """
        Finds images that the model sees as it sees a given one.

        Args:
            explanation ([`Explanation`]): Explanation of the image, made with the model of the index.
            k (`int`, *optional*, defaults to 5): Number of images; fewer where the index has no more.
            by (`str`, *optional*, defaults to `"contributions"`):
                What is compared: `"contributions"` of the concepts to the explained class, and of an image of the
                index to its predicted one; `"attention"` to the concepts in the whole image; `"patch"`, the token of
                the patch where a concept is attended most, for which the explanation needs `features=True`.
            same_class (`bool`, *optional*):
                True for images of the explained class alone, False for those of other classes alone. The class of an
                image is the dataset's; where it is not known, the predicted one.
            concept (`str`, *optional*):
                Name of a spatial concept, to compare patches: those of images that attend to it most of all concepts.
                With `by="patch"` alone it is the spatial concept of the largest contribution.

        Returns:
            `list[Case]`: the most similar first; of patches, one for each image.

        Raises:
            ValueError: for an explanation of another model, or without the tokens that are to be compared, a concept
                that the model does not have, another `by`, `k` below 1, or `same_class` of a regression.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more; got {k}.")
        if by not in ("contributions", "attention", "patch"):
            raise ValueError(f'by must be "contributions", "attention" or "patch"; got {by!r}.')
        self.check(explanation)
        mask = None
        if same_class is not None:
            if explanation.is_regression:
                raise ValueError("This model predicts values, which have no classes: leave same_class out.")
            mask = self._classes.mask(explanation.label_id) == same_class
        if concept is not None or by == "patch":
            return self._similar_patches(explanation, k, mask, concept)
        vector = contribution_vector if by == "contributions" else attention_vector
        scores, rows = self._search(self.cases, by, vector(explanation), k, mask)
        return [self._case(values, score) for values, score in zip(rows, scores, strict=True)]

    def _similar_patches(
        self, explanation: "Explanation", k: int, mask: np.ndarray | None, concept: str | None
    ) -> list[Case]:
        if not len(self.patches):
            raise ValueError("The index holds no patches: the model has no spatial concepts, or it was built without.")
        if concept is None:
            concept = explanation.top(1, stream="spatial")[0].name
        _, number = find_concept(concept, explanation.concept_names, "spatial")
        wanted = self._concepts.mask(number)
        if mask is not None:
            wanted &= mask[self._case_of_patch]
        query = patch_vector(explanation, attended_patch(explanation, number))
        scores, found = self._search(self.patches, "features", query, k, wanted)
        cases = self.cases[[patch["case"] for patch in found]] if found else {}
        rows = [dict(zip(cases, values, strict=True)) for values in zip(*cases.values(), strict=True)]
        return [
            self._case(row, score, tuple(patch["place"]))
            for row, patch, score in zip(rows, found, scores, strict=True)
        ]

    def _search(
        self, table: Any, name: str, query: np.ndarray, k: int, mask: np.ndarray | None
    ) -> tuple[list[float], list[dict[str, Any]]]:
        """Scores and rows of the k most similar entries of a table, of those that a mask lets through."""
        import faiss

        options: dict[str, Any] = {}
        if mask is not None:
            if not mask.any():
                return [], []
            selector: Any = faiss.IDSelectorBitmap
            parameters: Any = faiss.SearchParameters
            options["params"] = parameters(sel=selector(np.packbits(mask, bitorder="little")))
        scores, columns = table.get_nearest_examples(name, query, k=min(k, len(table)), **options)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return scores.tolist(), rows

    def _case(self, row: dict[str, Any], score: float, patch: tuple[int, int] | None = None) -> Case:
        return Case(row["row"], score, row["label"], row["prediction"], patch, row.get("thumbnail"))


__all__ = ["By", "Case", "ConceptIndex"]
