# SPDX-License-Identifier: Apache-2.0
"""`summarize`: one pass over a split, and what the whole model does in it."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, List, Value
from torch.utils.data import DataLoader

from ascent_vit.data.schema import COLUMNS, label_text
from ascent_vit.evaluation.dataset import check_names
from ascent_vit.evaluation.probe import check_counts
from ascent_vit.explanation import explain
from ascent_vit.explanation.shards import begin_job
from ascent_vit.inference.identity import model_digest, processor_settings
from ascent_vit.inference.mode import evaluation_mode
from modeling_ascent_vit.class_scores_ascent_vit import score_function
from modeling_ascent_vit.concept_pipeline_ascent_vit import check_model_and_processor
from modeling_ascent_vit.names_ascent_vit import class_names, concept_names

from .findings import concept_findings, confusion_findings, typical_cases
from .observation import Collator, Observer, is_unlabelled
from .pictures import Pictures, read_pictures
from .rows import Rows
from .shards import cut_into_shards, join_shards, save_shard, split_digest, sums_path
from .slices import slice_findings
from .summary import Summary
from .tally import Tally


if TYPE_CHECKING:
    from datasets import Dataset

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

QUALITY = {"softmax": "accuracy", "sigmoid": "label_accuracy", "none": "mae"}
MOST_SIMILAR = 100
SIMILAR_CASES = 3


def label_feature(config: Any) -> Any:
    """The feature of labels that a model's classes would have, for a dataset without labels."""
    names, function = class_names(config), score_function(config)
    if function == "none":
        return Value("float32") if len(names) == 1 else List(Value("float32"), length=len(names))
    return ClassLabel(names=names) if function == "softmax" else List(ClassLabel(names=names))


def checked_split(config: Any, split: "Dataset", by: Sequence[str], spatial_concepts: list[str] | None) -> Any:
    """
    Checks that a split is one for the model, and gives it a feature of labels.

    Returns:
        The split with the columns that the pass reads, and the feature of labels.

    Raises:
        ValueError: for a stream, a split without images, classes or concepts that are not the model's, or a column
            that there is not.
    """
    if not hasattr(split, "__len__"):
        raise ValueError("A summary reads images again, and a stream is read once: load the dataset whole.")
    if len(split) == 0:
        raise ValueError("The split has no images: summarize one that has some.")
    for name in by:
        if name not in split.features:
            raise ValueError(f"The split has no column {name!r}; it has {', '.join(split.features)}.")
        if not isinstance(split.features[name], Value | ClassLabel):
            raise ValueError(f"The column {name!r} holds no texts, numbers or classes, by which images are judged.")
    feature = split.features.get("label", label_feature(config))
    check_names(config, {**split.features, "label": feature}, spatial_concepts)
    return split.select_columns([name for name in COLUMNS if name in split.features]), feature


def look_at(
    observer: Observer,
    processor: "ConceptImageProcessor",
    split: Any,
    feature: Any,
    rows: Rows,
    batch_size: int,
    share: range,
    advance: Callable[[int], Any],
) -> Tally:
    """Runs the model over a share of a split, writes the table of its images and returns the sums."""
    tally, first = Tally(), share.start
    collate = Collator(processor, observer.config, feature)
    batches: Any = DataLoader(split.select(share), batch_size, collate_fn=collate)
    with evaluation_mode(observer.model):
        for batch in batches:
            seen, columns = observer.observe(batch, first)
            tally.update(seen)
            rows.write(columns)
            first += len(seen.rows)
            advance(len(seen.rows))
    rows.close()
    return tally


def class_findings(tally: Tally, rows: Rows, labels: list[str], biases: np.ndarray, function: str) -> Any:
    """What a summary says of each class, and the distances of the images from what is typical."""
    images, predicted = tally.sums["own_images"].long().tolist(), rows.column("predicted_id")
    counts = np.bincount(predicted, minlength=len(labels)).tolist()
    found: list[dict[str, Any]] = [
        {"name": name, "bias": float(bias), "images": number}
        for name, bias, number in zip(labels, biases, images, strict=True)
    ]
    if function != "softmax":
        return found
    quality, label_ids = rows.column("quality"), rows.column("label_id")
    typical, atypical, distances = typical_cases(rows, len(labels))
    for k, item in enumerate(found):
        own = quality[label_ids == k]
        item |= {"predicted": counts[k], "accuracy": float(own.mean()) if len(own) else None}
        for name, chosen in (("typical", typical[k]), ("atypical", atypical[k])):
            item[name] = [{"row": row, "distance": float(distances[row])} for row in chosen]
    return found


def effect_tables(tally: Tally, observer: Observer) -> dict[str, list[list[float | None]]]:
    """Mean contributions and weights, of each concept to each class."""
    own_images = tally.sums["own_images"]
    own = tally.sums["own"] / own_images
    return {
        "all": (tally.sums["effect"] / tally.sums["images"]).tolist(),
        "class": [[None if value != value else value for value in row] for row in own.tolist()],
        "weights": observer.weights.tolist(),
    }


def overall(
    slices: list[dict[str, Any]], tally: Tally, concepts: list[dict[str, Any]], errors: dict[str, Any], name: str
) -> dict[str, Any]:
    """Figures of the whole split."""
    sums = tally.sums
    figures: dict[str, Any] = {"images": int(sums["images"]), "labelled": 0}
    if slices and slices[0]["by"] == "all":
        whole = slices[0]
        figures |= {"labelled": whole["images"], name: whole["mean"], "low": whole["low"], "high": whole["high"]}
    known = [item["average_precision"] for item in concepts if item["stream"] == "global"]
    known = [value for value in known if value is not None]
    if known:
        figures["concept_map"] = float(np.mean(known))
    if sums["judged"].sum():
        judged = sums["judged"].sum()
        figures["pointing_game"] = float(sums["pointing"].sum() / judged)
        figures["relevance_mass"] = float(sums["relevance"].sum() / judged)
    return figures | errors


def said_by_index(
    index: Any, model: Any, processor: Any, split: Any, wanted: Sequence[int], pictures: Pictures, batch_size: int
) -> dict[int, list[dict[str, Any]]]:
    """The most similar cases of images, by row; their thumbnails are put to the pictures."""
    found: dict[int, list[dict[str, Any]]] = {}
    explanations = explain(model, processor, (split[row]["image"] for row in wanted), batch_size=batch_size)
    for row, explanation in zip(wanted, explanations, strict=True):
        cases = []
        for number, case in enumerate(index.similar(explanation, k=SIMILAR_CASES)):
            key = f"similar {row} {number}"
            if case.thumbnail is not None:
                pictures.add(key, case.thumbnail)
            cases.append(
                {
                    "row": int(case.row),
                    "score": float(case.score),
                    "label": case.label,
                    "prediction": case.prediction,
                    "picture": key,
                }
            )
        found[row] = cases
    return found


def shown_rows(
    classes: list[dict[str, Any]], concepts: list[dict[str, Any]], confusions: list[dict[str, Any]]
) -> Iterator[int]:
    """Rows that a page shows, in turn of every class, concept and pair, so that each has some if not all can have."""
    lists = [list(pair["rows"]) for pair in confusions]
    lists += [[exemplar["row"] for exemplar in concept["exemplars"]] for concept in concepts]
    lists += [[case["row"] for case in item.get(name, ())] for item in classes for name in ("typical", "atypical")]
    for place in range(max(map(len, lists), default=0)):
        yield from (rows[place] for rows in lists if place < len(rows))


def look_at_all(
    observer: Observer,
    processor: "ConceptImageProcessor",
    split: Any,
    feature: Any,
    whole: Rows,
    batch_size: int,
    work: Path,
    spatial_concepts: list[str] | None,
    accelerator: Any,
    progress: bool,
) -> Tally:
    """
    Runs the model over the shards of a split that are this process' turn and not in the folder `work` yet, and joins
    those of all processes.

    Raises:
        FileExistsError: for a folder of another pass.
    """
    from tqdm.auto import tqdm

    shards = cut_into_shards(len(split), batch_size)
    facts = {
        "model": model_digest(observer.model),
        "processor": processor_settings(processor),
        "data": split_digest(split),
        "names": spatial_concepts,
        "shards": [[shard.start, shard.stop] for shard in shards],
    }
    begin_job(work, facts)
    rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    waiting = [i for i in range(rank, len(shards), processes) if not sums_path(work, i).is_file()]
    total = sum(len(shards[index]) for index in waiting)
    with tqdm(total=total, desc="Looking at images", unit="image", disable=not progress) as bar:
        for index in waiting:
            rows = Rows(whole.path.with_name("shard.parquet"), whole.names)
            tally = look_at(observer, processor, split, feature, rows, batch_size, shards[index], bar.update)
            save_shard(work, index, tally, rows)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return join_shards(work, len(shards), whole)


def conclude(
    observer: Observer,
    processor: "ConceptImageProcessor",
    dataset: Any,
    tally: Tally,
    rows: Rows,
    by: Sequence[str],
    index: Any,
    batch_size: int,
    seed: int,
    progress: bool,
) -> Summary:
    """Draws from sums and table what a summary says, and reads the images again that it shows."""
    from tqdm.auto import tqdm

    config = observer.config
    biases, function = observer.class_bias.numpy(), observer.function
    concepts = concept_findings(tally, rows, concept_names(config))
    confusions: list[dict[str, Any]] = []
    errors: dict[str, Any] = {}
    left_out = []
    if function != "softmax":
        left_out.append("Typical cases and confused pairs: the model does not predict one class of an image.")
    elif np.isnan(rows.column("quality")).all():
        left_out.append("Accuracy, errors and slices: the split has no labels. Classes are those predicted.")
    else:
        confusions, errors = confusion_findings(rows, biases)
    classes = class_findings(tally, rows, observer.labels, biases, function)
    names = [f"{item['name']} ({item['stream']})" for item in concepts]
    columns = {
        name: [None if value is None else label_text(dataset.features[name], value) for value in dataset[name]]
        for name in by
    }
    slices = slice_findings(rows, names, columns, seed)
    only_images = dataset.select_columns(["image"])
    pictures, similar = Pictures(), {}
    if index is not None:
        wrong = list(dict.fromkeys(row for pair in confusions for row in pair["rows"]))[:MOST_SIMILAR]
        similar = said_by_index(index, observer.model, processor, only_images, wrong, pictures, batch_size)
    patches: dict[int, set[int]] = {}
    for exemplar in (exemplar for concept in concepts for exemplar in concept["exemplars"]):
        if exemplar["patch"] is not None:
            patches.setdefault(exemplar["row"], set()).add(exemplar["patch"])
    grid = next(iter(tally.grids)) if len(tally.grids) == 1 else None
    bar = partial(tqdm, desc="Reading images", unit="image", disable=not progress)
    shown = shown_rows(classes, concepts, confusions)
    return Summary(
        figures=overall(slices, tally, concepts, errors, QUALITY[function]),
        classes=classes,
        concepts=concepts,
        effects=effect_tables(tally, observer),
        confusions=confusions,
        slices=slices,
        similar=similar,
        left_out=left_out,
        facts={"quality": QUALITY[function], "seed": seed, "grid": grid},
        rows=rows.path,
        pictures=pictures,
        boxes=read_pictures(only_images, processor, shown, pictures, patches, grid, bar),
    )


def summarize(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    dataset: "Dataset",
    by: Sequence[str] = (),
    index: Any = None,
    batch_size: int = 32,
    seed: int = 0,
    spatial_concepts: list[str] | None = None,
    accelerator: Any = None,
    progress: bool = False,
    work: str | os.PathLike | None = None,
) -> Summary:
    """
    Summarizes what a model does with all images of a split.

    The model runs once per batch. Sums are kept of what concepts contribute, and one row per image goes to a parquet
    file, so that memory does not grow with images x concepts x classes.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        processor (`AscentViTImageProcessor`): The model's image processor.
        dataset (`datasets.Dataset`):
            Split of a concept dataset. Rows without label, null or -1, and splits without such a column count in what
            is said of concepts; images without any label are taken for the class that is predicted.
        by (`Sequence[str]`, *optional*): Further columns by whose values the predictions are judged.
        index (`ConceptIndex`, *optional*): Index of cases, of which the most similar are found for errors.
        batch_size (`int`, *optional*, defaults to 32): Number of images per forward pass.
        seed (`int`, *optional*, defaults to 0): Random seed of the bootstrap intervals.
        spatial_concepts (`list[str]`, *optional*): Names of a mask's values, as in
            [`~ascent_vit.data.concepts_from_features`].
        accelerator (`Accelerator`, *optional*): Shares the images out among its processes.
        progress (`bool`, *optional*, defaults to `False`): Whether to show progress bars.
        work (`str` or `os.PathLike`, *optional*):
            Folder, new or of an earlier attempt, in which what has been seen is kept, so that a pass that was cut off
            goes on there, with as many processes or others. Several processes need one that all of them share. It is
            left to be removed.

    Returns:
        [`Summary`]

    Raises:
        ValueError: for classes or concepts that are not the model's, a stream, an empty split, a column of `by`
            that there is not, or several processes without a folder in common.
        FileExistsError: for a folder `work` of another pass, or of something else.

    Example:

    ```python
    >>> summary = summarize(model, processor, load_concept_dataset("digits")["test"])
    >>> summary.figures["accuracy"], summary.confusions[0]["images"]
    >>> summary.save("report")
    ```
    """
    check_counts(batch_size=batch_size)
    check_model_and_processor(model, processor)
    split, feature = checked_split(model.config, dataset, by, spatial_concepts)
    if index is not None:
        # An index of another model is refused before the pass, not after it.
        index.similar(explain(model, processor, dataset[0]["image"]), k=1)
    main = accelerator is None or accelerator.is_main_process
    folder = tempfile.TemporaryDirectory(prefix="ascent-vit-summary-")
    names = {"labels": class_names(model.config), "concepts": concept_names(model.config)}
    rows = Rows(Path(folder.name) / "images.parquet", names)
    has_labels = "label" in split.features and not all(is_unlabelled({"label": label}) for label in split["label"])
    observer = Observer(model, has_labels, any(column in split.features for column in ("objects", "mask")))
    if work is None and accelerator is not None and accelerator.num_processes > 1:
        raise ValueError("Several processes join what they have seen in a folder: give one that all share as work.")
    kept = Path(folder.name, "work") if work is None else Path(work)
    options = (batch_size, kept, spatial_concepts, accelerator, progress and main)
    tally = look_at_all(observer, processor, split, feature, rows, *options)
    summary = conclude(observer, processor, dataset, tally, rows, by, index, batch_size, seed, progress and main)
    return dataclasses.replace(summary, folder=folder)


__all__ = ["summarize"]
