# SPDX-License-Identifier: Apache-2.0
"""What would make a guard promise what does not hold, refused or said before it is fitted."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascent_vit.utils.files import read_json
from modeling_ascent_vit.class_scores_ascent_vit import score_function


if TYPE_CHECKING:
    from datasets import Dataset

# Where a model's folder, or the folder of its run, says what it was trained on.
RECORDS = ("training/recipe.yaml", "training/metrics.json", "../recipe.json", "../metrics.json")


def images_needed(alpha: float) -> int:
    """Fewest calibration images by which a set can promise to hold the right class but for a share alpha."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def check_shares(alpha: float, outlier_rate: float) -> None:
    """Raises ValueError for shares that are not between 0 and 1."""
    for name, value in (("alpha", alpha), ("outlier_rate", outlier_rate)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be a share between 0 and 1, as 0.1; got {value}.")


def check_model(config: Any) -> None:
    """Raises ValueError for a model that no guard can be fitted for."""
    if score_function(config) != "softmax":
        raise ValueError(
            "A guard needs a model of one class an image: sets of classes have no meaning for several classes of an "
            f"image or for values, and this model is for {config.problem_type}."
        )
    if not config.num_global_concepts + config.num_spatial_concepts:
        raise ValueError("A guard asks about global and spatial concepts, and this model has none.")


def training_record(model_name: str) -> dict[str, Any]:
    """What the records beside a model say of its training; empty where there are none."""
    from ascent_vit.utils.yaml import read_yaml

    record: dict[str, Any] = {}
    for name in RECORDS if model_name and Path(model_name).is_dir() else ():
        path = Path(model_name, name)
        if path.is_file():
            found = read_yaml(path.read_text(encoding="utf-8"), name) if path.suffix == ".yaml" else read_json(path)
            record |= {key: found[key] for key in ("dataset", "metric_for_best_model") if key in found}
    return record


def last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def check_split(model_name: str, dataset: str | None, split: str | None) -> list[str]:
    """
    Checks that the calibration images are not those of the training.

    Args:
        model_name: Folder of the model, whose record is read.
        dataset: Name of the calibration images' dataset, None if it is not known.
        split: Name of their split, None if it is not known.

    Returns:
        Warnings.

    Raises:
        ValueError: where the record says that the model was trained on them.
    """
    record, warnings = training_record(model_name), []
    trained = record.get("dataset")
    same = dataset is None or trained is None or last_part(dataset) == last_part(str(trained))
    if split is not None and split.startswith("train"):
        if trained is not None and same:
            raise ValueError(
                f"The model was trained on the split train of {trained}, as its record says: it is surer of these "
                "images than of others, and a guard would promise too much. Calibrate on images that it has not seen."
            )
        warnings.append(
            "The calibration images are of a split named train: if the model was trained on them, the guard promises "
            "too much."
        )
    chosen_by = record.get("metric_for_best_model")
    if chosen_by not in (None, "none") and same and split is not None and split.startswith("validation"):
        warnings.append(
            f"The checkpoint was chosen by {chosen_by} on this split, so that it may be a little better there than "
            "elsewhere."
        )
    return warnings


def check_calibration(config: Any, calibration: "Dataset", alpha: float) -> list[str]:
    """
    Checks the calibration images before any is read.

    Returns:
        Warnings.

    Raises:
        ValueError: for other classes or another order of them than the model's, images that are changed as they are
            read, or too few of them.
    """
    from ascent_vit.data.schema import GROUP_COLUMN
    from ascent_vit.evaluation.dataset import check_names

    features = getattr(calibration, "features", None)
    if features is None or not hasattr(calibration, "__len__"):
        raise ValueError(
            "Calibration images are a split of a concept dataset, a datasets.Dataset that names its classes."
        )
    check_names(config, features)
    if calibration.format["type"] == "custom":
        raise ValueError(
            "The calibration split has a transform (with_transform), as for augmentation: images of use are not "
            "changed like that, and the guard's promise would not hold for them. Take the split without it."
        )
    needed = images_needed(alpha)
    number = sum(label is not None and label >= 0 for label in calibration["label"])
    if number < needed:
        raise ValueError(
            f"alpha {alpha} needs {needed} calibration images with a class or more; there are {number}. Take more "
            "images, or a larger alpha."
        )
    warnings = []
    if GROUP_COLUMN in features:
        groups = [group for group in calibration[GROUP_COLUMN] if group is not None]
        if len(set(groups)) < len(groups):
            warnings.append(
                f"{len(groups)} calibration images are of {len(set(groups))} groups ({GROUP_COLUMN}): images of a "
                "group are alike, and the promise holds for further images of these groups rather than for new ones."
            )
    return warnings


__all__ = ["check_calibration", "check_model", "check_shares", "check_split", "images_needed"]
