# SPDX-License-Identifier: Apache-2.0
"""Writes the folder of an index: two tables of `datasets`, Faiss indexes of their vectors, and what they are of."""

import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ascent_vit.explanation.batch import check_explained, explain_items
from ascent_vit.explanation.sources import DatasetImages
from ascent_vit.inference.identity import model_digest, processor_settings
from ascent_vit.utils.files import write_json

from .vectors import attended_patches, attention_vector, contribution_vector, patch_vector


if TYPE_CHECKING:
    from ascent_vit.explanation import Explanation
    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

FORMAT = 1
FACTS, CASES, PATCHES = "index.json", "cases", "patches"

# Every entry is compared with, in half precision.
FACTORY = "SQfp16"

THUMBNAIL = 128  # pixels of the longer side
QUALITY = 80  # of its JPEG


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keeps `datasets` from showing progress bars of its own."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of an image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def said(explanation: "Explanation") -> str:
    """What the model says of an image, by names alone or in numbers, as a dataset's label is written."""
    if explanation.is_regression:
        return ", ".join(f"{value:.6g}" for value in explanation.logits)
    return ", ".join(explanation.labels[i] for i in explanation.predicted_ids) or "none"


def class_ids(label: Any, names: list[str] | None, explanation: "Explanation") -> list[int]:
    """Indices of the classes that an image has by the dataset, if the model has them; by the prediction otherwise."""
    if explanation.is_regression:
        return []
    if label is None or names is None:
        return explanation.predicted_ids
    known = {name: i for i, name in enumerate(explanation.labels)}
    given = [names[i] for i in (label if isinstance(label, list) else [label]) if 0 <= i < len(names)]
    return [known[name] for name in given if name in known]


def case_row(explanation: "Explanation", label: Any, names: list[str] | None, thumbnails: bool) -> dict[str, Any]:
    """The columns of an image that do not come from its place in the dataset."""
    row = {
        "prediction": said(explanation),
        "classes": class_ids(label, names, explanation),
        "contributions": contribution_vector(explanation),
        "attention": attention_vector(explanation),
    }
    return row | ({"thumbnail": {"bytes": thumbnail(explanation.image), "path": None}} if thumbnails else {})


def table_features(explanation: "Explanation", thumbnails: bool) -> tuple[Any, Any]:
    """Features of the two tables, whose vectors are as long as those of an explanation."""
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    def vector(values: np.ndarray) -> List:
        return List(Value("float16"), length=values.size)

    cases = {
        "row": Value("int64"),
        "label": Value("string"),
        "prediction": Value("string"),
        "classes": List(Value("int32")),
        "contributions": vector(contribution_vector(explanation)),
        "attention": vector(attention_vector(explanation)),
    }
    if thumbnails:
        cases["thumbnail"] = ImageFeature()
    patches = {
        "case": Value("int64"),
        "place": List(Value("int16"), length=2),
        "concepts": List(Value("int16")),
        "features": vector(patch_vector(explanation, (0, 0))),
        "order": Value("string"),
    }
    return Features(cases), Features(patches)


def write_tables(
    folder: Path,
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    source: DatasetImages,
    concepts_per_image: int,
    thumbnails: bool,
    batch_size: int,
    progress: bool,
) -> tuple[int, int, list[str]]:
    """
    Explains the images and writes what is kept of them to Arrow files, row by row, so that memory stays flat.

    Returns:
        The numbers of images and of patches, and one sentence for each image that could not be read.
    """
    from datasets.arrow_writer import ArrowWriter
    from tqdm import tqdm

    # Where an index is only searched, as in a Space, that room is not there.
    from ascent_vit.data.schema import innermost

    names, labels = getattr(innermost(source.label_feature), "names", None), source.split.select_columns(["label"])
    skipped: list[str] = []
    images = patches = 0
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(source), desc="Indexing", unit="image", disable=not progress))

        def skip(sentence: str) -> None:
            skipped.append(sentence)
            bar.update()

        writers: list[Any] = []
        items = explain_items(model, processor, source.items(), skip, batch_size=batch_size, features=True)
        for item, explanation in items:
            if not writers:
                for name, features in zip((CASES, PATCHES), table_features(explanation, thumbnails), strict=True):
                    writers.append(stack.enter_context(ArrowWriter(features=features, path=str(folder / name))))
            row = case_row(explanation, labels[item.index]["label"], names, thumbnails)
            writers[0].write({"row": item.index, "label": item.label} | row)
            for place, concepts in attended_patches(explanation, concepts_per_image).items():
                features = patch_vector(explanation, place)
                row = {"case": images, "place": place, "concepts": concepts, "features": features}
                writers[1].write(row | {"order": " ".join(f"{concept:06d}" for concept in concepts)})
                patches += 1
            images += 1
            bar.update()
        check_explained(images, skipped)
        for writer in writers:
            writer.finalize()
    return images, patches, skipped


def write_index(
    folder: Path,
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    source: DatasetImages,
    name: str | None,
    concepts_per_image: int,
    thumbnails: bool,
    batch_size: int,
    progress: bool,
) -> list[str]:
    """Writes all files of an index into an empty folder; the arguments are those of [`~ConceptIndex.build`]."""
    import faiss
    from datasets import Dataset

    arrow = folder / "arrow"
    arrow.mkdir()
    counts = write_tables(arrow, model, processor, source, concepts_per_image, thumbnails, batch_size, progress)
    with quiet_datasets():
        for table, columns in ((CASES, ["contributions", "attention"]), (PATCHES, ["features"])):
            dataset = Dataset.from_file(str(arrow / table))
            if table == PATCHES:
                # Patches of a concept lie together, which makes a search among them alone several times faster.
                dataset = dataset.sort("order").remove_columns("order")
            for column in columns if len(dataset) else ():
                dataset.add_faiss_index(column, string_factory=FACTORY, metric_type=faiss.METRIC_INNER_PRODUCT)
                dataset.save_faiss_index(column, folder / f"{column}.faiss")
                dataset.drop_index(column)
            # `datasets` does not load what it saves of a table without rows.
            if len(dataset):
                dataset.remove_columns(columns).save_to_disk(folder / table)
            del dataset
    shutil.rmtree(arrow)
    images, patches, skipped = counts
    facts = {
        "format": FORMAT,
        "model": model_digest(model),
        "processor": processor_settings(processor),
        "dataset": {"name": name, "split": source.split_name, "rows": len(source), "digest": source.digest()},
        "cases": images,
        "left_out": len(skipped),
        "patches": patches,
        "concepts_per_image": concepts_per_image,
    }
    write_json(folder / FACTS, facts)
    return skipped


__all__ = ["CASES", "FACTS", "FORMAT", "PATCHES", "write_index"]
