# SPDX-License-Identifier: Apache-2.0
"""Boxes from an open-vocabulary detector: the detector loaded, run over images, and what is kept of its detections."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ascent_vit.utils.files import file_digest

from .concepts import DetectedConcept


if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import ZeroShotObjectDetectionPipeline

# Detectors that were trained on lower-case phrases, each ended by a full stop, and fail on others.
PHRASE_DETECTORS = ("grounding-dino", "mm-grounding-dino")


def _detector_prompt(concept: DetectedConcept, model_type: str) -> str:
    if model_type in PHRASE_DETECTORS:
        return concept.prompt.lower().rstrip(" .") + "."
    return concept.prompt


def _check_prompts(
    detector: "ZeroShotObjectDetectionPipeline", concepts: Sequence[DetectedConcept], name_or_path: str
) -> None:
    config: Any = detector.model.config
    tokenizer: Any = detector.tokenizer
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


def load_detector(name_or_path: str, concepts: Sequence[DetectedConcept]) -> "ZeroShotObjectDetectionPipeline":
    """
    Loads an open-vocabulary detector as a pipeline, on the first GPU where there is one.

    Args:
        name_or_path: Hub id or folder of an OWL-ViT, OWLv2 or Grounding DINO model.
        concepts: concepts whose prompts it must be able to read.

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
    if detector.tokenizer is None or detector.image_processor is None:
        raise ValueError(f"{name_or_path} lacks its tokenizer or image processor: save its whole processor there.")
    _check_prompts(detector, concepts, name_or_path)
    return detector


def detector_version(name_or_path: str, detector: "ZeroShotObjectDetectionPipeline") -> str:
    """The version of a detector: the Hub's commit, or a digest of its folder's files."""
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        return str(getattr(detector.model.config, "_commit_hash", None) or "main")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(path.name.encode())
            digest.update(file_digest(path))
    return digest.hexdigest()


def _has_one_size(image_processor: Any) -> bool:
    size = image_processor.size
    height = size.get("height") if isinstance(size, Mapping) else getattr(size, "height", None)
    return bool(height) and getattr(image_processor, "do_resize", True)


def _detections(
    detector: "ZeroShotObjectDetectionPipeline",
    inputs: Iterable[dict[str, Any]],
    threshold: float,
    batch_size: int,
) -> Iterator[list[dict[str, Any]]]:
    """Gives the pipeline's detections per image with its prompts. A batch holds pairs of image and prompt."""
    # A pipeline takes generators too, but its type hints do not say so.
    run: Any = detector
    if _has_one_size(detector.image_processor):
        yield from run(inputs, threshold=threshold, batch_size=batch_size)
        return
    # Images of several sizes fit into no common batch: each has its own, of one pair per prompt.
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
    Turns the detections of an image into its annotation.

    Args:
        detections: the pipeline's detections: `score`, `label` (one of the prompts), `box` (`xmin`, `ymin`, `xmax`,
            `ymax`).
        size: height and width of the image in pixels; boxes are clipped to it.
        prompts: prompt of each concept.
        thresholds: score above which a box is kept, of each concept.
        iou: intersection over union above which the lower-scoring of two boxes of a concept is dropped.

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


def detect_concepts(
    detector: "ZeroShotObjectDetectionPipeline",
    images: Iterable[tuple["Image", Sequence[int] | None]],
    concepts: Sequence[DetectedConcept],
    iou: float = 0.5,
    batch_size: int = 8,
) -> Iterator[dict[str, list]]:
    """
    Runs a detector over images; gives the annotation of each in turn, as [`keep_boxes`] makes it.

    Args:
        detector: pipeline of [`load_detector`].
        images: RGB images, taken as they are needed, each with the numbers of the concepts to look for in it; None for
            all.
        concepts: concepts to look for.
        iou: intersection over union above which a box is dropped, see [`keep_boxes`].
        batch_size: pairs of image and concept per forward pass.
    """
    prompts = [_detector_prompt(concept, detector.model.config.model_type) for concept in concepts]
    thresholds = [concept.threshold for concept in concepts]
    seen: list[tuple[tuple[int, int], list[str]]] = []

    def inputs() -> Iterator[dict[str, Any]]:
        for image, chosen in images:
            asked = prompts if chosen is None else [prompts[i] for i in chosen]
            seen.append(((image.height, image.width), asked))
            # The pipeline gives nothing for an image without prompts: it gets one, whose answer is dropped.
            yield {"image": image, "candidate_labels": asked or prompts[:1]}

    for i, detections in enumerate(_detections(detector, inputs(), min(thresholds), batch_size)):
        size, asked = seen[i]
        yield keep_boxes(detections if asked else [], size, prompts, thresholds, iou)


__all__ = ["detect_concepts", "detector_version", "keep_boxes", "load_detector"]
