# SPDX-License-Identifier: Apache-2.0
"""Spatial concepts from an open-vocabulary detector: boxes for concepts that are named in words."""

import hashlib
import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ascent_vit.utils.files import replace_folder, write_json
from ascent_vit.utils.markdown import code_span, escape_markdown

from .card import write_dataset
from .loading import load_concept_dataset
from .prepared import PreparedDataset
from .schema import GLOBAL_COLUMNS, SPATIAL_COLUMNS, concept_features


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from transformers import ZeroShotObjectDetectionPipeline

# Detectors that were trained on lower-case phrases, each ended by a full stop.
PHRASE_DETECTORS = ("grounding-dino", "mm-grounding-dino")

# Pictures of a review sheet: at least and, with many concepts, at most.
REVIEW_PICTURES = (24, 96)
REVIEW_COLUMNS = 6
BOX_COLOR, CHOSEN_COLOR = "#fdb863", "#e66101"


@dataclass(frozen=True)
class DetectedConcept:
    """
    A concept to look for.

    Args:
        name: as it will stand in the dataset.
        prompt: what the detector is asked for.
        threshold: boxes are kept whose score is above it, 0 to 1.
    """

    name: str
    prompt: str
    threshold: float


@dataclass(frozen=True)
class Annotations:
    """
    What a detector found in a dataset.

    Args:
        dataset: with the column objects.
        concepts: that were looked for, in the order of their ids.
        images: images per split.
        empty: images without any box, per split.
        boxes: boxes per concept.
        images_with: images that show the concept, per concept.
    """

    dataset: "DatasetDict"
    concepts: list[DetectedConcept]
    images: dict[str, int]
    empty: dict[str, int]
    boxes: dict[str, int]
    images_with: dict[str, int]


def _concept(name: str, entry: Any, threshold: float, path: Path) -> DetectedConcept:
    if entry is None:
        entry = {}
    if not isinstance(entry, Mapping) or set(entry) - {"prompt", "threshold"}:
        raise ValueError(
            f"{path}: the concept {name!r} may have prompt and threshold, as in beak: {{prompt: a bird's beak, "
            f"threshold: 0.3}}; got {entry!r}."
        )
    prompt, own = entry.get("prompt", name), entry.get("threshold", threshold)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{path}: the prompt of {name!r} must be text; got {prompt!r}.")
    if isinstance(own, bool) or not isinstance(own, int | float) or not 0 <= own <= 1:
        raise ValueError(f"{path}: the threshold of {name!r} must be a number from 0 to 1; got {own!r}.")
    return DetectedConcept(name, " ".join(prompt.split()), float(own))


def _yaml_entries(text: str, path: Path) -> list[tuple[str, Any]]:
    """Names and entries of a YAML file. Names stay as they are typed, such as `no` and `1`, also those there twice."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
            return [(item.value, None) for item in node.value]
        if isinstance(node, yaml.MappingNode) and all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            return [(key.value, loader.construct_object(value, deep=True)) for key, value in node.value]
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    raise ValueError(f"{path} must map each concept to its prompt and threshold, or list the concepts.")


def read_concepts(path: str | Path, threshold: float = 0.2) -> list[DetectedConcept]:
    """
    Concepts of a file.

    Args:
        path: text with one concept per line, or YAML (.yaml, .yml) that maps each concept to nothing or to its
            `prompt` (by default its name) and `threshold`, as in `beak: {prompt: a bird's beak, threshold: 0.3}`.
        threshold: of the concepts without their own, 0 to 1.

    Returns:
        The concepts in the order of the file.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for a file without concepts or in another encoding than UTF-8, a concept or prompt that is there
            twice, or a threshold outside 0 to 1.
    """
    path = Path(path)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a number from 0 to 1; got {threshold}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected concepts, one per line, or YAML.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        entries = _yaml_entries(text, path)
    else:
        entries = [(line, None) for line in text.splitlines()]
    entries = [(" ".join(name.split()), entry) for name, entry in entries if name.strip()]
    if not entries:
        raise ValueError(f"{path} names no concept; expected one per line, or YAML.")
    concepts = [_concept(name, entry, threshold, path) for name, entry in entries]
    for what, values in (("concept", [c.name for c in concepts]), ("prompt", [c.prompt.lower() for c in concepts])):
        repeated = [value for value, number in Counter(values).items() if number > 1]
        if repeated:
            raise ValueError(f"{path}: the {what} {repeated[0]!r} is there twice; give each concept its own {what}.")
    return concepts


def load_detector(name_or_path: str, concepts: Sequence[DetectedConcept]) -> "ZeroShotObjectDetectionPipeline":
    """
    The pipeline of an open-vocabulary detector, on the first GPU where there is one.

    Args:
        name_or_path: a Hub id or folder, of OWL-ViT, OWLv2 or Grounding DINO.
        concepts: whose prompts it must be able to read.

    Raises:
        FileNotFoundError: for a detector that cannot be read.
        ValueError: for a model of another kind, a detector without tokenizer or image processor, or a prompt that is
            too long or without any word that its tokenizer knows.
    """
    from transformers import AutoConfig, pipeline
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES as DETECTORS

    folder = Path(name_or_path).expanduser()
    local = folder.is_dir()
    if not local and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise FileNotFoundError(f"There is no detector folder {folder}.")
    source = str(folder) if local else name_or_path
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"The detector {name_or_path} cannot be read: {error}") from error
    if config.model_type not in DETECTORS:
        raise ValueError(
            f"{name_or_path} is a model of type {config.model_type}; expected an open-vocabulary detector, of type "
            f"{', '.join(DETECTORS)}."
        )
    try:
        detector = pipeline("zero-shot-object-detection", model=source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"The detector {name_or_path} cannot be read: {error}") from error
    tokenizer = detector.tokenizer
    if tokenizer is None or detector.image_processor is None:
        raise ValueError(f"{name_or_path} lacks its tokenizer or image processor: save its whole processor there.")
    text_config = getattr(config, "text_config", None)
    longest = min(tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", math.inf))
    for concept in concepts:
        ids = tokenizer(_detector_prompt(concept, config.model_type))["input_ids"]
        if len(ids) > longest:
            raise ValueError(
                f"The prompt {concept.prompt!r} has {len(ids)} tokens; {name_or_path} reads at most {longest}. "
                "Shorten it."
            )
        if not set(ids) - set(tokenizer.all_special_ids):
            raise ValueError(f"The tokenizer of {name_or_path} knows no word of the prompt {concept.prompt!r}.")
    return detector


def _detector_prompt(concept: DetectedConcept, model_type: str) -> str:
    if model_type in PHRASE_DETECTORS:
        return concept.prompt.lower().rstrip(" .") + "."
    return concept.prompt


def _has_one_size(image_processor: Any) -> bool:
    size = image_processor.size
    height = size.get("height") if isinstance(size, Mapping) else getattr(size, "height", None)
    return bool(height) and getattr(image_processor, "do_resize", True)


def _detect(
    detector: "ZeroShotObjectDetectionPipeline",
    images: Iterable["Image"],
    prompts: list[str],
    threshold: float,
    batch_size: int,
) -> Iterator[list[dict[str, Any]]]:
    """The pipeline's detections per image. A batch holds pairs of image and prompt."""
    # The pipeline takes generators, which its annotations leave out.
    run: Any = detector
    inputs = ({"image": image, "candidate_labels": prompts} for image in images)
    if _has_one_size(detector.image_processor):
        yield from run(inputs, threshold=threshold, batch_size=batch_size)
        return
    # Images of several sizes fit into no batch: each has its own, of one pair per prompt.
    for one in inputs:
        yield from run((item for item in [one]), threshold=threshold, batch_size=batch_size)


def keep_boxes(
    detections: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    prompts: Sequence[str],
    thresholds: Sequence[float],
    iou: float = 0.5,
) -> dict[str, list]:
    """
    The annotation that an image's detections make.

    Args:
        detections: of the pipeline: `score`, `label` (one of the prompts), `box` (`xmin`, `ymin`, `xmax`, `ymax`).
        size: height and width of the image in pixels; boxes are clipped to it.
        prompts: one per concept.
        thresholds: one per concept; a box stays whose score is above it.
        iou: of two boxes of a concept that overlap by more than this intersection over union, the one of the lower
            score is dropped.

    Returns:
        `bbox` (x, y, width, height in pixels), `category` (the concept's number) and `score`, highest score first.
    """
    from torchvision.ops import batched_nms

    height, width = size
    ids = {prompt: i for i, prompt in enumerate(prompts)}
    kept = []
    for detection in detections:
        box, category = detection["box"], ids[detection["label"]]
        left, right = max(box["xmin"], 0), min(box["xmax"], width)
        top, bottom = max(box["ymin"], 0), min(box["ymax"], height)
        if detection["score"] > thresholds[category] and left < right and top < bottom:
            kept.append(([left, top, right, bottom], category, detection["score"]))
    if not kept:
        return {"bbox": [], "category": [], "score": []}
    boxes, categories, scores = zip(*kept, strict=True)
    chosen = batched_nms(
        torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(categories), iou
    ).tolist()
    return {
        "bbox": [[x, y, right - x, bottom - y] for x, y, right, bottom in (boxes[i] for i in chosen)],
        "category": [categories[i] for i in chosen],
        "score": [scores[i] for i in chosen],
    }


def _file_digest(cells: Iterable[Mapping[str, Any]]) -> str:
    """Digest of the stored images, by which an interrupted run knows that they are still the same."""
    digest = hashlib.sha256()
    for cell in cells:
        content = Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _detector_version(name_or_path: str, detector: "ZeroShotObjectDetectionPipeline") -> str:
    """The Hub's commit, or a digest of a folder's files."""
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        return str(getattr(detector.model.config, "_commit_hash", None) or "main")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_images(split: "Dataset", start: int, stop: int, name: str) -> Iterator["Image"]:
    for i in range(start, stop):
        try:
            image = split[i]["image"]
            if image is None:
                raise ValueError("there is none.")
            image = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"The image of row {i} of the split {name} cannot be read: {error}") from error
        yield image


def _annotate_rows(
    split: "Dataset",
    start: int,
    stop: int,
    name: str,
    detector: "ZeroShotObjectDetectionPipeline",
    concepts: Sequence[DetectedConcept],
    iou: float,
    batch_size: int,
    bar: tqdm,
) -> list[dict[str, list]]:
    prompts = [_detector_prompt(concept, detector.model.config.model_type) for concept in concepts]
    thresholds = [concept.threshold for concept in concepts]
    sizes: list[tuple[int, int]] = []

    def measured() -> Iterator["Image"]:
        for image in _read_images(split, start, stop, name):
            sizes.append((image.height, image.width))
            yield image

    found: list[dict[str, list]] = []
    for detections in _detect(detector, measured(), prompts, min(thresholds), batch_size):
        found.append(keep_boxes(detections, sizes[len(found)], prompts, thresholds, iou))
        bar.update()
    return found


def _open_work(work: Path, settings: dict[str, Any], resume: bool) -> None:
    """Makes the folder of finished shards, or checks that the one that is there belongs to the same settings."""
    path = work / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        if not resume:
            raise FileExistsError(f"{work} holds an unfinished run: go on with --resume, or remove it to start anew.")
        earlier = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in settings if earlier.get(key) != settings[key]]
        if different:
            raise ValueError(
                f"The unfinished run in {work} had another {' and another '.join(different)}: repeat it with the "
                "same, or remove that folder to start anew."
            )
        return
    write_json(path, settings)


def _objects(
    split: "Dataset", name: str, work: Path, rows_per_shard: int, detect: Any, bar: tqdm
) -> list[dict[str, list]]:
    """Annotations of a split, shard by shard, those that are finished from their files."""
    from datasets import Image as ImageFeature

    stored = split.cast_column("image", ImageFeature(decode=False))
    objects: list[dict[str, list]] = []
    for start in range(0, len(split), rows_per_shard):
        stop = min(start + rows_per_shard, len(split))
        path = work / f"{name}-{start:08d}.json"
        cells = stored[start:stop]["image"]
        empty = [start + i for i, cell in enumerate(cells) if cell is None]
        if empty:
            raise ValueError(f"Row {empty[0]} of the split {name} has no image: leave it out.")
        digest = _file_digest(cells)
        if path.is_file():
            shard = json.loads(path.read_text(encoding="utf-8"))
            if shard["images"] != digest:
                raise ValueError(
                    f"The images of rows {start} to {stop - 1} of the split {name} have changed since {path} was "
                    f"written: remove the folder {work} to start anew."
                )
            bar.update(stop - start)
        else:
            shard = {"images": digest, "objects": detect(split, start, stop, name)}
            write_json(path, shard)
        objects += shard["objects"]
    return objects


def _without_spatial(dataset: "DatasetDict", name: str, replace: bool) -> "DatasetDict":
    features = next(iter(dataset.values())).features
    present = [column for column in SPATIAL_COLUMNS if column in features]
    if present and not replace:
        raise ValueError(
            f"{name} already has {' and '.join(present)}: --replace drops them in favour of the detector's boxes."
        )
    return dataset.remove_columns(present)


def _with_objects(split: "Dataset", objects: list[dict[str, list]], concepts: Sequence[DetectedConcept]) -> "Dataset":
    """The split with the column, after those of the schema that come before it."""
    from datasets import List, Value

    names = [concept.name for concept in concepts]
    score = {"objects": {"score": List(Value("float32"))}}
    feature = concept_features(split.features["label"].names, None, names, extra=score)["objects"]
    first = [column for column in ("image", "label", *GLOBAL_COLUMNS) if column in split.features]
    rest = [column for column in split.features if column not in first]
    return split.add_column("objects", objects, feature=feature).select_columns([*first, "objects", *rest])


def _count(dataset: "DatasetDict", concepts: list[DetectedConcept]) -> Annotations:
    boxes, images_with, empty = Counter[int](), Counter[int](), {}
    for name, split in dataset.items():
        categories = [row["category"] for row in split.select_columns(["objects"])["objects"]]
        empty[name] = sum(not row for row in categories)
        for row in categories:
            boxes.update(row)
            images_with.update(set(row))
    return Annotations(
        dataset=dataset,
        concepts=concepts,
        images={name: len(split) for name, split in dataset.items()},
        empty=empty,
        boxes={concept.name: boxes[i] for i, concept in enumerate(concepts)},
        images_with={concept.name: images_with[i] for i, concept in enumerate(concepts)},
    )


def describe(annotations: Annotations, dataset: str, detector: str, version: str, iou: float) -> str:
    """Markdown for the card: that a model made the annotations, which one, thresholds, and what it found."""
    lines = [
        f"Images and classes are those of {code_span(dataset)}, whose licence holds for them.",
        "",
        "**A model made the annotations, nobody has checked them.** The boxes in `objects` are those that the "
        f"open-vocabulary detector {code_span(detector)} (version {code_span(version)}) gave for the prompts below, "
        "with scores above the concept's threshold. Boxes are in whole pixels, clipped to their image; of two boxes "
        f"of a concept with an intersection over union above {iou:g} the one of the higher score was kept. `score` is "
        "the detector's own, and no probability. A concept without a box in an image may still be there. `review.png` "
        "shows boxes of each concept from the lowest kept score to the highest.",
        "",
        "| concept | prompt | threshold | boxes | images |",
        "|---|---|---|---|---|",
    ]
    for concept in annotations.concepts:
        cells = (escape_markdown(concept.name), escape_markdown(concept.prompt), f"{concept.threshold:g}")
        counts = (str(annotations.boxes[concept.name]), str(annotations.images_with[concept.name]))
        lines.append(f"| {' | '.join((*cells, *counts))} |")
    lines += ["", "| split | images | without any box |", "|---|---|---|"]
    for name, number in annotations.images.items():
        lines.append(f"| {name} | {number} | {annotations.empty[name]} |")
    return "\n".join(lines)


def choose_review(dataset: "DatasetDict", num_concepts: int) -> list[tuple[str, int, int]]:
    """
    Boxes for a review sheet: of each concept the lowest kept score first, then evenly up to the highest.

    Returns:
        Split, row and place in the row's objects, concept by concept.
    """
    found: dict[int, list[tuple[float, str, int, int]]] = {}
    for name, split in dataset.items():
        for row, objects in enumerate(split.select_columns(["objects"])["objects"]):
            for place, (category, score) in enumerate(zip(objects["category"], objects["score"], strict=True)):
                found.setdefault(category, []).append((score, name, row, place))
    least, most = REVIEW_PICTURES
    shown = [found[category] for category in range(num_concepts) if category in found]
    if len(shown) > most:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, most).astype(int)]
    chosen: list[tuple[str, int, int]] = []
    for candidates in shown:
        candidates.sort()
        ranks = np.linspace(0, len(candidates) - 1, max(1, least // len(shown))).round().astype(int)
        chosen += [candidates[rank][1:] for rank in sorted(set(ranks.tolist()))]
    return chosen


def draw_review(dataset: "DatasetDict", concepts: Sequence[DetectedConcept]) -> "Figure":
    """A sheet of pictures: the box that a picture is there for, thick, named above with its score; the others thin."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    chosen = choose_review(dataset, len(concepts))
    columns = min(REVIEW_COLUMNS, max(len(chosen), 1))
    rows = max(1, math.ceil(len(chosen) / columns))
    figure = Figure(figsize=(max(2.2 * columns, 6), 2.4 * rows + 0.4), layout="constrained")
    figure.suptitle("Boxes of a detector, unchecked" if chosen else "No box above its threshold", fontsize=10)
    for i, (split, row, place) in enumerate(chosen):
        ax = figure.add_subplot(rows, columns, i + 1)
        example = dataset[split][row]
        objects = example["objects"]
        ax.imshow(example["image"].convert("RGB"))
        for j in sorted(range(len(objects["bbox"])), key=lambda j: j == place):
            x, y, width, height = objects["bbox"][j]
            # The white rim shows the chosen box on any ground.
            edges = [("white", 3.2), (CHOSEN_COLOR, 1.8)] if j == place else [(BOX_COLOR, 0.6)]
            # Pixel centres have whole coordinates in the figure, pixel edges in the box.
            corner = (x - 0.5, y - 0.5)
            for color, line in edges:
                box = Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=line, clip_on=False)
                ax.add_patch(box)
        name = textwrap.shorten(concepts[objects["category"][place]].name, 26, placeholder=" ...")
        others = len(objects["bbox"]) - 1
        title = f"{name} {objects['score'][place]:.3f}\n{split}[{row}], other boxes: {others}"
        ax.set_title(title, fontsize=8, parse_math=False)
        ax.set_axis_off()
    return figure


def _check_output(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already and not empty: name another folder.")


def _shown_name(name_or_path: str) -> str:
    """A Hub id as it is, a folder by its last part: where it lay says nothing to others."""
    folder = Path(name_or_path).expanduser()
    return folder.resolve().name if folder.is_dir() else name_or_path


def annotate_dataset(
    name_or_path: str,
    concepts: Sequence[DetectedConcept],
    detector: str,
    output: str | Path,
    iou: float = 0.5,
    batch_size: int = 8,
    resume: bool = False,
    replace: bool = False,
    rows_per_shard: int = 256,
    dataset_options: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Annotations:
    """
    Writes a dataset with the boxes that an open-vocabulary detector finds for concepts that are named in words.

    While it runs, the boxes of every finished `rows_per_shard` images lie in a hidden folder beside `output`, from
    which a run with the same settings goes on. `output` itself is written at the end, whole or not at all: parquet,
    a card, and `review.png` with boxes of every concept from the lowest kept score to the highest.

    Args:
        name_or_path: a concept dataset as for [`load_concept_dataset`]; image and label are enough.
        concepts: what to look for, see [`read_concepts`].
        detector: Hub id or folder of an OWL-ViT, OWLv2 or Grounding DINO model with its processor.
        output: folder to write; new or empty.
        iou: of two boxes of a concept that overlap by more than this, the one of the lower score is dropped. 1 keeps
            all.
        batch_size: pairs of image and concept per forward pass.
        resume: whether to go on with an unfinished run. Without one, it starts.
        replace: whether to drop objects, points and mask that the dataset has.
        rows_per_shard: images after which what was found is kept.
        dataset_options: further arguments of [`load_concept_dataset`].
        command: for the card, the command that does this.

    Returns:
        The dataset with the column `objects` (bbox x, y, width, height; category; score), and its counts.

    Raises:
        FileExistsError: for an `output` that is not empty, or an unfinished run without `resume`.
        FileNotFoundError: for a dataset or detector that cannot be read.
        ValueError: for other settings or images than those of the run to go on with, a dataset that has spatial
            annotations without `replace`, an image that cannot be read, or a model of another kind.
    """
    from datasets import DatasetDict

    output = Path(output)
    if not 0 <= iou <= 1:
        raise ValueError(f"iou must be a number from 0 to 1; got {iou}.")
    for what, number in (("batch_size", batch_size), ("rows_per_shard", rows_per_shard)):
        if number < 1:
            raise ValueError(f"{what} must be 1 or more; got {number}.")
    if not concepts:
        raise ValueError("There is nothing to look for: give at least one concept.")
    _check_output(output)
    dataset = load_concept_dataset(name_or_path, **(dataset_options or {}))
    dataset = _without_spatial(dataset, name_or_path, replace)
    pipeline = load_detector(detector, concepts)
    version = _detector_version(detector, pipeline)
    images = {name: len(split) for name, split in dataset.items()}
    settings = {
        "dataset": _shown_name(name_or_path),
        "images": images,
        "concepts": [asdict(concept) for concept in concepts],
        "detector": _shown_name(detector),
        "detector_version": version,
        "iou": iou,
        "rows_per_shard": rows_per_shard,
    }
    work = output.absolute().with_name(f".{output.absolute().name}.annotate")
    _open_work(work, settings, resume)

    annotated = {}
    with tqdm(total=sum(images.values()), desc="Detecting", unit="image") as bar:

        def detect(split: "Dataset", start: int, stop: int, name: str) -> list[dict[str, list]]:
            return _annotate_rows(split, start, stop, name, pipeline, concepts, iou, batch_size, bar)

        for name, split in dataset.items():
            objects = _objects(split, name, work, rows_per_shard, detect, bar)
            annotated[name] = _with_objects(split, objects, concepts)
    found = _count(DatasetDict(annotated), list(concepts))
    prepared = PreparedDataset(
        dataset=found.dataset,
        title=f"{_shown_name(name_or_path)} with {len(concepts)} concepts found by a detector",
        license="other",
        description=describe(found, _shown_name(name_or_path), _shown_name(detector), version, iou),
        settings={key: value for key, value in settings.items() if key not in ("images", "concepts")},
    )
    with replace_folder(output) as folder:
        write_dataset(prepared, folder, command=command)
        draw_review(found.dataset, concepts).savefig(folder / "review.png", format="png", dpi=150)
    shutil.rmtree(work)
    return found


__all__ = ["Annotations", "DetectedConcept", "annotate_dataset", "keep_boxes", "load_detector", "read_concepts"]
