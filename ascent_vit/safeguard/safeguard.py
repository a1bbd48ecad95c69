# SPDX-License-Identifier: Apache-2.0
"""`Safeguard`: a model that says "I don't know", and what would settle it."""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from ascent_vit.inference.load import load_model
from ascent_vit.inference.mode import evaluation_mode, input_kind, size_options
from ascent_vit.utils.files import read_json, replace_folder, write_json
from modeling_ascent_vit.concept_pipeline_ascent_vit import check_model_and_processor
from modeling_ascent_vit.image_reading_ascent_vit import ImageInput, is_single, read_input

from .binding import binding, check_binding
from .doubt import Doubt, Judge


if TYPE_CHECKING:
    from datasets import Dataset

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

logger = logging.getLogger(__name__)

FOLDER, FILES = "guard", ("guard.json", "guard.safetensors")
FORMAT = 2


def guard_folder(folder: str | os.PathLike) -> Path | None:
    """Folder of the guard's files in a folder of a model or a guard, None if there is none."""
    places = (Path(folder, FOLDER), Path(folder))
    return next((place for place in places if all((place / name).is_file() for name in FILES)), None)


class Safeguard:
    r"""
    Says of an image: decided, "I don't know" and what would settle it, or not the kind of image that the model knows.

    Made by [`~Safeguard.fit`] on images that the model has not seen, or loaded by [`~Safeguard.from_pretrained`].
    When called with an image, it gives a [`Doubt`]; with an iterable, a list of them. What it promises, over images
    like the calibration images, drawn independently of them:

    - `labels`, the set of classes, holds the right class with a probability of 1 - alpha at least: over all images,
      and by default also over those of each class with enough calibration images, and over the others' together.
    - an image of that kind is called foreign with a probability of about `outlier_rate` at most.

    After answers, sets follow the model's exact sum with the same thresholds, and nothing is promised of them.

    Args:
        judge ([`~ascent_vit.safeguard.doubt.Judge`]): What it knows.
        model (`torch.nn.Module`): The model that it was fitted for.
        processor (`AscentViTImageProcessor`): The model's image processor.

    Raises:
        ValueError: for a guard of another model.

    Example:

    ```python
    >>> guard = Safeguard.fit(model, processor, dataset["validation"], alpha=0.1)
    >>> doubt = guard("digit.png")
    >>> doubt.verdict, doubt.labels, doubt.ask[0].concept
    ('abstain', ['even', 'odd'], 'digit 8')
    >>> guard.answer(doubt, {"digit 8": "yes"}).decision
    'even'
    ```
    """

    def __init__(self, judge: Judge, model: "ConceptClassifier", processor: "ConceptImageProcessor"):
        check_model_and_processor(model, processor)
        check_binding(judge.facts, model, processor)
        self.judge, self.model, self.processor = judge, model, processor
        # The guard is bound to the weights, so that the tables are theirs.
        judge.arrays |= contribution_tables(model)

    @classmethod
    def fit(
        cls,
        model: "ConceptClassifier",
        processor: "ConceptImageProcessor",
        calibration: "Dataset",
        alpha: float = 0.1,
        outlier_rate: float = 0.05,
        per_class: bool = True,
        dataset: str | None = None,
        split: str | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> "Safeguard":
        """
        Calibrates a guard on images that the model has not seen.

        Args:
            model (`torch.nn.Module`): An `AscentViTForImageClassification` of one class an image.
            processor (`AscentViTImageProcessor`): The model's image processor.
            calibration (`datasets.Dataset`): Split of a concept dataset with the model's classes.
            alpha (`float`, *optional*, defaults to 0.1): Share of images whose set may lack the right class.
            outlier_rate (`float`, *optional*, defaults to 0.05): Share of such images that may be called foreign.
            per_class (`bool`, *optional*, defaults to `True`):
                Whether the promise is made of each class by itself, which takes larger sets, or of all together.
            dataset (`str`, *optional*): Name of the dataset, for the record, and to tell it from that of the training.
            split (`str`, *optional*, defaults to the name that the dataset knows): Name of the split.
            batch_size (`int`, *optional*, defaults to 32): Number of images to run at a time.
            progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

        Raises:
            ImportError: without MAPIE.
            ValueError: for a model that predicts several classes or values, calibration images that the model was
                trained on, with other classes, changed as they are read or too few.
        """
        # What fits a guard needs datasets and more, which what serves it does not.
        from .calibration import calibrate, measure
        from .checks import check_calibration, check_model, check_shares, check_split, images_needed

        try:
            import mapie  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError("Fitting a guard needs MAPIE: pip install 'ascent-vit[doubt]'.") from error
        check_model_and_processor(model, processor)
        check_model(model.config)
        check_shares(alpha, outlier_rate)
        split = split or (str(calibration.split) if getattr(calibration, "split", None) else None)
        warnings = check_split(getattr(model.config, "_name_or_path", ""), dataset, split)
        warnings += check_calibration(model.config, calibration, alpha)
        measured = measure(model, processor, calibration, batch_size, progress)
        facts, arrays, shared = calibrate(measured, bool(model.config.none_concept), alpha, outlier_rate, per_class)
        # A path says nothing elsewhere, and may say what nobody should read.
        name = Path(dataset).name if dataset is not None and Path(dataset).exists() else dataset
        facts = {"format": FORMAT, **binding(model, processor), **facts, "dataset": name, "split": split}
        facts["shared"] = [facts["classes"][index] for index in shared] if per_class else []
        if facts["shared"]:
            names = ", ".join(facts["shared"][:5]) + (", ..." if len(shared) > 5 else "")
            warnings.append(
                f"{len(shared)} of {len(facts['classes'])} classes share one threshold, as some have fewer than the "
                f"{images_needed(alpha)} calibration images that alpha {alpha} needs: what is promised of each other "
                f"class holds of these together ({names})."
            )
        for name, known in measured.presence.items():
            if np.isnan(known).all():
                warnings.append(f"The calibration images have no {name} concepts: how likely answers are is a guess.")
        for sentence in warnings:
            logger.warning("%s", sentence)
        return cls(Judge(facts | {"warnings": warnings}, arrays), model, processor)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | os.PathLike,
        model: "ConceptClassifier | None" = None,
        processor: "ConceptImageProcessor | None" = None,
        revision: str | None = None,
    ) -> "Safeguard":
        """
        Loads a guard, whole or refused.

        Args:
            folder_or_id (`str` or `os.PathLike`): Hub id or folder of a model with a guard, or folder of a guard.
            model, processor (*optional*): The model and its image processor; by default those beside the guard.
            revision (`str`, *optional*): Revision of the Hub's repository, also of the model beside the guard.

        Raises:
            FileNotFoundError: where there is no guard.
            ValueError: for a guard that is damaged, or of another model.
        """
        place = Path(folder_or_id)
        if not place.exists() and str(folder_or_id).count("/") == 1:
            place = download(str(folder_or_id), revision, model is None or processor is None)
        folder = guard_folder(place)
        if folder is None:
            raise FileNotFoundError(f"There is no guard in {folder_or_id}: make one by ascent-vit guard.")
        judge = load_judge(folder)
        if model is None or processor is None:
            model, processor = load_model(str(folder.parent if folder.name == FOLDER else place))
        return cls(judge, model, processor)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """
        Writes the guard to `guard/` in a folder, usually the model's, whole or not at all: what was calibrated. The
        tables of contributions are the model's, and read from it.
        """
        with replace_folder(Path(folder, FOLDER)) as partial:
            self.save_files(partial, ("thresholds", "reference"))

    def save_files(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Writes `guard.json` and `guard.safetensors` into a folder that exists, with all arrays or those named."""
        from safetensors.numpy import save_file

        arrays = self.judge.arrays
        write_json(folder / FILES[0], self.judge.facts)
        save_file({name: np.ascontiguousarray(arrays[name]) for name in names or arrays}, folder / FILES[1])

    def outputs(self, images: list[Any]) -> list[dict[str, np.ndarray]]:
        """The model's outputs for images, of each what is judged: logits, and the attention of each head."""
        device, dtype = input_kind(self.model)
        pixels = self.processor(images, return_tensors="pt")["pixel_values"].to(device, dtype)
        with evaluation_mode(self.model):
            outputs = self.model(
                pixels, return_dict=True, output_concept_heads=True, **size_options(self.model.config, pixels)
            )
        names = ["logits", *(f"{stream}_concept_attention_heads" for stream in self.judge.streams)]
        arrays = {name: outputs[name].float().cpu().numpy() for name in names}
        if not np.isfinite(arrays["logits"]).all():
            raise ValueError("The model gives scores that are not finite: its weights or the pixels are damaged.")
        return [{name: values[i] for name, values in arrays.items()} for i in range(len(images))]

    @overload
    def __call__(self, images: ImageInput, answers: Mapping[str, bool | str] | None = None) -> Doubt: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(
        self, images: Iterable[ImageInput], answers: Mapping[str, bool | str] | None = None, batch_size: int = 8
    ) -> list[Doubt]: ...

    def __call__(
        self,
        images: ImageInput | Iterable[ImageInput],
        answers: Mapping[str, bool | str] | None = None,
        batch_size: int = 8,
    ) -> Doubt | list[Doubt]:
        """
        Judges images.

        Args:
            images (`PIL.Image.Image`, path, URL, `np.ndarray` or `torch.Tensor`, or an iterable of them):
                Images to judge, as in [`~ascent_vit.explain`].
            answers (`dict`, *optional*): Whether concepts are there, True, False, `"yes"` or `"no"`, by name.
            batch_size (`int`, *optional*, defaults to 8): Number of images to run at a time.

        Raises:
            ValueError: for an image that cannot be read, or an answer that does not fit the model.
        """
        single = is_single(images)
        inputs: list[Any] = [images] if single else list(images)  # type: ignore[arg-type,list-item]
        doubts = []
        for start in range(0, len(inputs), batch_size):
            pictures = [read_input(image, self.processor) for image in inputs[start : start + batch_size]]
            doubts += [self.judge.judge(outputs, answers) for outputs in self.outputs(pictures)]
        return doubts[0] if single else doubts

    def answer(self, doubt: Doubt, answers: Mapping[str, bool | str]) -> Doubt:
        """Continues a dialogue, see [`Doubt.answer`]; the model does not run again."""
        return doubt.answer(answers)


def contribution_tables(model: "ConceptClassifier") -> dict[str, np.ndarray]:
    """What each head of a stream adds where all its attention is to one concept, by the arrays' names, `(A, C, K)`."""
    streams = model.streams()
    with torch.no_grad():
        return {
            f"{name}_table": streams[name].contribution_table().float().cpu().numpy()
            for name in ("global", "spatial")
            if name in streams
        }


def find_guard(
    folder_or_id: str | os.PathLike, model: "ConceptClassifier", processor: "ConceptImageProcessor"
) -> Safeguard | None:
    """Loads the guard of a model, None if it has none; ValueError for one that is damaged or of another model."""
    try:
        return Safeguard.from_pretrained(folder_or_id, model, processor)
    except FileNotFoundError:
        return None


def download(repo_id: str, revision: str | None, whole: bool) -> Path:
    """Fetches a guard of the Hub, with `whole` also its model's weights and settings, and returns their folder."""
    from huggingface_hub import snapshot_download

    patterns = [f"{FOLDER}/*", *(["*.json", "*.safetensors"] if whole else [])]
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))


def load_judge(folder: Path) -> Judge:
    """Reads the files of a guard, or raises one ValueError."""
    facts = read_json(folder / FILES[0])
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{folder / FILES[0]} is no guard of format {FORMAT}: make one by ascent-vit guard.")
    try:
        judge = Judge.load(folder)
        number = len(judge.classes)
        finite = all(np.isfinite(values).all() for values in judge.arrays.values())
        if not finite or judge.arrays["thresholds"].shape != (number,):
            raise ValueError("its arrays do not fit its classes")
        count, width = judge.arrays["reference"].shape
        if (
            width != sum(len(facts["concepts"][name]) for name in judge.streams)
            or not 0 < facts["neighbours"] <= count
        ):
            raise ValueError("its reference does not fit its concepts")
        if not (0 < facts["alpha"] < 1 and facts["temperature"] > 0):
            raise ValueError("its alpha or temperature is none")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The guard in {folder} is damaged: {error}.") from error
    return judge


__all__ = ["FILES", "FOLDER", "Safeguard", "find_guard", "guard_folder"]
