# SPDX-License-Identifier: Apache-2.0
"""What follows from the sums and the table of images: classes, concepts, errors."""

from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import binary_average_precision

from .rows import Rows
from .tally import Tally


CASES = 3
MOST_PAIRS = 100
PAIR_IMAGES = 4


def shares(numbers: Any, counts: Any) -> list[float | None]:
    """Quotients, None where the count is 0."""
    pairs = zip(np.asarray(numbers).tolist(), np.asarray(counts).tolist(), strict=True)
    return [number / count if count else None for number, count in pairs]


def average_precisions(rows: Rows) -> list[float | None]:
    """Average precision of the strongest attention to each concept as a score for its presence, where known."""
    presence, strongest = rows.column("presence"), rows.column("strongest")
    found: list[float | None] = []
    for known, scores in zip(presence.T, strongest.T, strict=True):
        judged = known >= 0
        if not ((known == 1).any() and (known == 0).any()):
            found.append(None)
            continue
        score, target = (torch.from_numpy(values[judged].copy()) for values in (scores, known))
        found.append(float(binary_average_precision(score.clamp(0, 1), target.long(), validate_args=False)))
    return found


def concept_findings(tally: Tally, rows: Rows, names: dict[str, list[str]]) -> list[dict[str, Any]]:
    """What a summary says of each concept, see `Summary`."""
    sums, images = tally.sums, float(tally.sums["images"])
    spatial = {
        "annotated_images": sums["judged"].long().tolist(),
        "pointing_game": shares(sums["pointing"], sums["judged"]),
        "relevance_mass": shares(sums["relevance"], sums["judged"]),
        "pixel_tpr": shares(sums["named"], sums["patches"]),
        "mass_on_annotated": shares(sums["mass_on_annotated"], sums["mass"]),
        "mass_if_even": shares(sums["mass_if_even"], sums["mass"]),
    }
    maps = tally.mean_maps
    places = [(stream, index, name) for stream, known in names.items() for index, name in enumerate(known)]
    precisions = average_precisions(rows)
    put_right = np.zeros(len(places), dtype=int)
    for (lists,) in rows.parts(["put_right"]):
        np.add.at(put_right, [concept for concepts in lists for concept in concepts or ()], 1)
    findings = []
    for column, (stream, index, name) in enumerate(places):
        found: dict[str, Any] = {
            "name": name,
            "stream": stream,
            "attention": float(sums["attention"][column]) / images,
            "average_precision": precisions[column],
            "put_right": int(put_right[column]),
            "exemplars": [
                {"row": row, "attention": value, "patch": patch if patch >= 0 else None}
                for row, value, patch in zip(
                    *(array[column].tolist() for array in (tally.rows, tally.values, tally.patches)), strict=True
                )
            ],
        }
        if stream == "spatial":
            found |= {key: values[index] for key, values in spatial.items()}
            on, even = found["mass_on_annotated"], found["mass_if_even"]
            found["suspicious"] = None if on is None else on <= even
            found["mean_map"] = None if maps is None else maps[index].tolist()
        findings.append(found)
    return findings


def typical_cases(rows: Rows, num_classes: int) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """
    Numbers of the most typical and the most atypical images of each class, and the distances of all images `(N,)`.

    Of the images that are rightly predicted (without labels, of all), it is the Euclidean distance of an image's
    contributions to its class from their mean over such images of the class; NaN for others.
    """
    classes, quality = rows.column("predicted_id"), rows.column("quality")
    if not np.isnan(quality).all():
        classes = np.where(quality == 1, classes, -1)
    sums: Any = 0.0
    start = 0
    for (contributions,) in rows.parts(["contributions"]):
        chosen = classes[start : start + len(contributions)]
        start += len(contributions)
        if isinstance(sums, float):
            sums = np.zeros((num_classes, contributions.shape[1]))
        np.add.at(sums, chosen[chosen >= 0], contributions[chosen >= 0].astype(np.float64))
    counts = np.bincount(classes[classes >= 0], minlength=num_classes)
    means = sums / np.maximum(counts, 1)[:, None]
    distances, start = np.full(len(classes), np.nan), 0
    for (contributions,) in rows.parts(["contributions"]):
        chosen = classes[start : start + len(contributions)]
        found = np.linalg.norm(contributions.astype(np.float64) - means[chosen], axis=1)
        distances[start : start + len(contributions)] = np.where(chosen >= 0, found, np.nan)
        start += len(contributions)
    typical, atypical = [], []
    for k in range(num_classes):
        members = np.flatnonzero(classes == k)
        ordered = members[np.argsort(distances[members], kind="stable")]
        number = min(CASES, -(-len(ordered) // 2))
        typical.append(ordered[:number].tolist())
        atypical.append(ordered[number:][::-1][:CASES].tolist())
    return typical, atypical, distances


def confusion_findings(rows: Rows, biases: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    The pairs of true and predicted class that were confused, most frequent first, and figures of all errors.

    Args:
        rows: table of the images, of a model for one class an image.
        biases: class biases `(K,)`.
    """
    labels, predicted = rows.column("label_id"), rows.column("predicted_id")
    scores = rows.column("score")
    wrong = np.flatnonzero((labels >= 0) & (labels != predicted))
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    ordered = np.argsort(-counts, kind="stable")[:MOST_PAIRS].tolist()
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for i in ordered:
        label, other = pairs[i].tolist()
        rows_of = wrong[(labels[wrong] == label) & (predicted[wrong] == other)]
        found[label, other] = {
            "label_id": label,
            "predicted_id": other,
            "images": int(counts[i]),
            "contrast": np.zeros(0),
            "bias": float(biases[label] - biases[other]),
            "correctable": 0,
            "put_right": 0,
            "corrections": {},
            "rows": rows_of[np.argsort(-scores[rows_of], kind="stable")][:PAIR_IMAGES].tolist(),
        }
    total = {"errors": len(wrong), "pairs": len(pairs), "correctable": 0, "put_right": 0}
    columns = ["label_id", "predicted_id", "contributions_label", "contributions", "put_right"]
    for label_ids, predicted_ids, to_label, to_predicted, lists in rows.parts(columns):
        for i in np.flatnonzero((label_ids >= 0) & (label_ids != predicted_ids)).tolist():
            pair = found.get((int(label_ids[i]), int(predicted_ids[i])))
            for counted in (total, pair) if pair is not None else (total,):
                counted["correctable"] += lists[i] is not None
                counted["put_right"] += bool(lists[i])
            if pair is not None:
                contrast = to_label[i].astype(np.float64) - to_predicted[i]
                pair["contrast"] = contrast + pair["contrast"] if len(pair["contrast"]) else contrast
                for concept in lists[i] or ():
                    pair["corrections"][concept] = pair["corrections"].get(concept, 0) + 1
    for pair in found.values():
        pair["contrast"] = (pair["contrast"] / pair["images"]).tolist()
        ranked = sorted(pair["corrections"].items(), key=lambda item: (-item[1], item[0]))
        pair["corrections"] = [{"concept": concept, "images": number} for concept, number in ranked]
    return list(found.values()), total


__all__ = ["concept_findings", "confusion_findings", "typical_cases"]
