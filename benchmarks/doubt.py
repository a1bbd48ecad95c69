# SPDX-License-Identifier: Apache-2.0
"""
Measures what a guard promises and what its questions are worth, on the published models; see docs/doubt.md.

    python benchmarks/doubt.py digits --output doubt.json
    python benchmarks/doubt.py concept-mnist --dataset PREPARED_MNIST --output doubt.json
    python benchmarks/doubt.py birds --dataset PREPARED_CUB --known KNOWN --output doubt.json
    ascent-vit train --recipe birds --dataset KNOWN --set backbone=deit-tiny --output RUN
    python benchmarks/doubt.py birds --dataset PREPARED_CUB --foreign-model RUN/model --output doubt.json
    python benchmarks/doubt_tables.py doubt.json docs/doubt.md

Each run has its part of the output. What is there already is left out, so that a run that was ended goes on. For
birds, the images of another kind are those of the classes that the head of --foreign-model, one with the recipe of
hub/birds, was trained without; --known writes the dataset to train it on, without ten classes that are drawn by a
seed, and does nothing else.
"""

import argparse
import string
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from ascent_vit import Safeguard
from ascent_vit.data import load_concept_dataset
from ascent_vit.inference.load import load_model
from ascent_vit.safeguard.calibration import Measured, calibrate, fit_thresholds, measure
from ascent_vit.safeguard.doubt import Judge, neighbour_distance, softmax
from ascent_vit.utils.bootstrap import bootstrap_interval
from ascent_vit.utils.files import read_json, write_json
from ascent_vit.utils.versions import versions


HUB = Path(__file__).parents[1] / "hub"
ALPHA = {"digits": 0.02, "concept-mnist": 0.02, "birds": 0.1}
SHIFTS = {"noise": (16, 32, 64), "blur": (0.01, 0.02, 0.04), "contrast": (0.6, 0.35, 0.15)}
# What a model calls digits are black and white letters that look like none of them.
LETTERS = [letter for letter in string.ascii_uppercase if letter not in "BIOSZ"]


def shifted(image: Image.Image, kind: str, strength: float) -> Image.Image:
    """Adds noise of a standard deviation of 255, blurs by a share of the shorter side, or lowers the contrast."""
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength * min(image.size)))
    pixels = np.asarray(image, dtype=np.float64)
    if kind == "noise":
        # The same noise for the same image.
        changed = pixels + np.random.default_rng(int(pixels.sum()) % 2**32).normal(0, strength, pixels.shape)
    else:
        changed = pixels.mean() + strength * (pixels - pixels.mean())
    return Image.fromarray(np.clip(changed.round(), 0, 255).astype(np.uint8))


def shift_rows(rows: dict[str, list], kind: str, strength: float) -> dict[str, list]:
    return rows | {"image": [shifted(image, kind, strength) for image in rows["image"]]}


def conditions() -> Iterator[tuple[str, Callable | None]]:
    yield "as they are", None
    for kind, strengths in SHIFTS.items():
        for strength in strengths:
            yield f"{kind} {strength}", partial(shift_rows, kind=kind, strength=strength)


def letters(number: int, canvas: int, classes: list[str], seed: int = 0) -> Dataset:
    """Letters of matplotlib's fonts, white on black, of any size at any place; of MNIST's size in the middle."""
    rng, images = np.random.default_rng(seed), []
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = sorted(path for path in folder.glob("DejaVu*.ttf") if "Display" not in path.stem)
    for _ in range(number):
        side = int(rng.integers(canvas // 4, canvas + 1)) if canvas > 28 else 20
        font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), side)
        letter, image = str(rng.choice(LETTERS)), Image.new("L", (canvas, canvas))
        draw = ImageDraw.Draw(image)
        left, top, right, bottom = draw.textbbox((0, 0), letter, font=font)
        free = [max(canvas - length, 0) for length in (right - left, bottom - top)]
        x, y = (int(rng.integers(0, room + 1)) if canvas > 28 else room // 2 for room in map(int, free))
        draw.text((x - left, y - top), letter, fill=255, font=font)
        images.append(image)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=classes)})
    return Dataset.from_dict({"image": images, "label": [0] * number}, features=features)


def drawn(dataset: Dataset, number: int, seed: int = 0) -> Dataset:
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(len(dataset))[:number]))


def write_known(splits: DatasetDict, folder: str, number: int = 10) -> None:
    """Writes a dataset without so many of its classes, to train a head that does not know them."""
    names, used = splits["train"].features["label"].names, sorted(set(splits["train"]["label"]))
    left_out = np.random.default_rng(0).choice(used, number, replace=False)
    kept = [label for label in used if label not in left_out]
    for name, split in splits.items():
        own = split.select(np.flatnonzero(np.isin(split["label"], kept)))
        labels = [kept.index(label) for label in own["label"]]
        own = own.remove_columns("label").add_column("label", labels)
        splits[name] = own.cast_column("label", ClassLabel(names=[names[label] for label in kept]))
    splits.save_to_disk(folder)


def part_of(measured: Measured, rows: np.ndarray) -> Measured:
    values = {name: getattr(measured, name)[rows] for name in ("logits", "labels", "features", "nowhere")}
    for name in ("attention", "presence"):
        values[name] = {stream: array[rows] for stream, array in getattr(measured, name).items()}
    return Measured(**values, shares=measured.shares, extents=measured.extents)


def sets_of(probabilities: np.ndarray, thresholds: np.ndarray, alpha: float) -> np.ndarray:
    inside = probabilities >= np.minimum(thresholds, alpha)
    inside[np.arange(len(inside)), probabilities.argmax(1)] = True
    return inside


def set_figures(inside: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Coverage, also of the class of the least; size; share of images that are decided, and how many are right."""
    covered, single = inside[np.arange(len(labels)), labels], inside.sum(1) == 1
    right = probabilities.argmax(1) == labels
    return {
        "coverage": covered.mean(),
        "lowest class coverage": min(covered[labels == k].mean() for k in np.unique(labels)),
        "size": inside.sum(1).mean(),
        "decided": single.mean(),
        "accuracy": right.mean(),
        "accuracy if decided": right[single].mean() if single.any() else np.nan,
    }


def coverage(pool: Measured, alpha: float, per_class: bool, splits: int = 20) -> dict[str, Any]:
    """Figures over random halves: calibrated on one, measured on the other; mean, least and greatest."""
    rows, classes = [], []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(pool.labels))
        first, second = (part_of(pool, half) for half in np.array_split(order, 2))
        facts, arrays, _ = calibrate(first, True, alpha, 0.05, per_class)
        probabilities = softmax(second.logits / facts["temperature"])
        inside = sets_of(probabilities, arrays["thresholds"], alpha)
        figures = set_figures(inside, probabilities, second.labels)
        covered = inside[np.arange(len(inside)), second.labels]
        classes.append([covered[second.labels == k].mean() for k in np.unique(pool.labels)])
        signs = strangeness(second, facts, arrays)
        figures |= {"taken for another kind": (signs["both"] > 1).mean()}
        raw, tempered = (
            float(multiclass_calibration_error(torch.tensor(p), torch.tensor(second.labels), p.shape[1]))
            for p in (softmax(second.logits), probabilities)
        )
        bare, _ = fit_thresholds(softmax(first.logits / facts["temperature"]), first.labels, alpha, per_class)
        inside = probabilities >= bare
        figures |= {"coverage by conformal thresholds alone": inside[np.arange(len(inside)), second.labels].mean()}
        rows.append(figures | {"ece": raw, "ece tempered": tempered, "temperature": facts["temperature"]})
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    figures = {name: [float(f(values)) for f in (np.mean, np.min, np.max)] for name, values in table.items()}
    # Of each class the mean over the halves: a half has few images of it.
    means = np.nanmean(classes, 0)
    return figures | {"class coverage": [float(f(means)) for f in (np.mean, np.min, np.max)]}


def strangeness(measured: Measured, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Both signs of another kind, 1 at their limits, and the greater of them."""
    distances = np.array([neighbour_distance(f, arrays["reference"], facts["neighbours"]) for f in measured.features])
    sizes = {"features": distances, "attention": measured.nowhere}
    signs = {name: values / facts["limits"][name] for name, values in sizes.items()}
    return signs | {"both": np.maximum(*signs.values())}


def risk_area(confidence: np.ndarray, right: np.ndarray) -> float:
    """Area under the curve of errors among the surest images against their share."""
    errors = 1 - right[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(errors) / np.arange(1, len(errors) + 1)).mean())


def selection(pool: Measured, facts: dict[str, Any]) -> dict[str, Any]:
    """Area under risk-coverage, as the images come and best possible, and accuracy of the surest half."""
    probabilities = softmax(pool.logits / facts["temperature"])
    confidence, right = probabilities.max(1), probabilities.argmax(1) == pool.labels

    def area(rows: np.ndarray) -> float:
        return risk_area(confidence[rows], right[rows])

    surest = right[np.argsort(-confidence, kind="stable")]
    return {
        "area": area(np.arange(len(right))),
        "interval": list(bootstrap_interval(np.arange(len(right)), area, draws=300)),
        "area at random": float(1 - right.mean()),
        "best area": risk_area(right.astype(float), right),
        "accuracy": {
            f"{share:.0%}": float(surest[: round(share * len(right))].mean()) for share in (1, 0.9, 0.7, 0.5)
        },
    }


def auroc(known: np.ndarray, foreign: np.ndarray) -> dict[str, Any]:
    values = torch.tensor(np.concatenate([known, foreign]))
    kinds = torch.tensor([0] * len(known) + [1] * len(foreign))

    def area(rows: np.ndarray) -> float:
        # torchmetrics takes other values than probabilities for logits.
        return float(binary_auroc(values[rows].argsort().argsort().float() / len(rows), kinds[rows]))

    return {
        "auroc": area(np.arange(len(kinds))),
        "interval": list(bootstrap_interval(np.arange(len(kinds)), area, draws=200)),
    }


def shift_figures(measured: Measured, facts: dict, arrays: dict, alpha: float) -> dict[str, float]:
    """Figures of sets, and of what is decided and not taken for another kind."""
    probabilities = softmax(measured.logits / facts["temperature"])
    inside = sets_of(probabilities, arrays["thresholds"], alpha)
    figures = set_figures(inside, probabilities, measured.labels)
    taken = strangeness(measured, facts, arrays)["both"] > 1
    kept = ~taken & (inside.sum(1) == 1)
    right = probabilities.argmax(1) == measured.labels
    figures |= {"taken for another kind": taken.mean(), "decided in the end": kept.mean()}
    figures["accuracy if decided in the end"] = right[kept].mean() if kept.any() else np.nan
    return {name: float(value) for name, value in figures.items()}


def foreign_figures(known: Measured, foreign: Measured, facts: dict, arrays: dict) -> dict[str, Any]:
    signs = [strangeness(measured, facts, arrays) for measured in (known, foreign)]
    figures: dict[str, Any] = {name: auroc(signs[0][name], signs[1][name]) for name in signs[0]}
    unsure = [1 - softmax(measured.logits / facts["temperature"]).max(1) for measured in (known, foreign)]
    figures["1 - probability"] = auroc(*unsure)
    shares = {"known": signs[0], "foreign": signs[1]}
    return figures | {f"{name} taken for another kind": float((s["both"] > 1).mean()) for name, s in shares.items()}


def next_concept(judge: Judge, doubt: Any, order: str, shuffled: list[str], to_the_end: bool) -> str | None:
    """The concept to ask about by the guard, by uncertainty or at random; None where nothing is to be asked."""
    left = [name for name in shuffled if name not in doubt.answers]
    if (len(doubt.labels) == 1 and not to_the_end) or not left:
        return None
    if order == "guard":
        if not doubt.ask:
            # Decided: asked on as if every class were possible, for what makes the classes the surest.
            open_minded = Judge(judge.facts, judge.arrays | {"thresholds": np.zeros(len(judge.classes))})
            doubt = open_minded.judge(doubt.outputs, doubt.answers, questions=1)
        return doubt.ask[0].concept
    if order == "random":
        return left[0]

    def likely(concept: str) -> float:
        stream = next(name for name in judge.streams if concept in judge.facts["concepts"][name])
        attention = doubt.outputs[f"{stream}_concept_attention_heads"].mean(0)
        index = judge.facts["concepts"][stream].index(concept)
        return judge.presence(stream, float(attention.reshape(-1, attention.shape[-1])[:, index].max()))

    return min(left, key=lambda name: abs(likely(name) - 0.5))


def outputs_of(guard: Safeguard, rows: Dataset) -> list[dict[str, np.ndarray]]:
    return [o for start in range(0, len(rows), 32) for o in guard.outputs(rows[start : start + 32]["image"])]


def dialogues(guard: Safeguard, rows: Dataset, outputs: list, most: int, to_the_end: bool = False) -> dict[str, Any]:
    """
    Accuracy, size of the sets and coverage after each question, by order; answers are the dataset's. A dialogue ends
    when a class is decided on, or goes on to the end.
    """
    judge = guard.judge
    judge.facts["limits"] = dict.fromkeys(judge.facts["limits"], np.inf)
    names = rows.features["concepts"].feature.names
    labels, concepts = rows["label"], rows["concepts"]
    figures = {}
    for order in ("guard", "uncertainty", "random"):
        table = np.zeros((4, most + 1, len(rows)))
        for i, output in enumerate(outputs):
            truth, name = {names[c] for c in concepts[i]}, judge.classes[labels[i]]
            shuffled = np.random.default_rng(i).permutation(judge.concepts).tolist()
            doubt = judge.judge(output, questions=int(order == "guard"))
            for step in range(most + 1):
                values = doubt.labels[0] == name, len(doubt.labels), name in doubt.labels, len(doubt.answers)
                table[:, step, i] = values
                concept = next_concept(judge, doubt, order, shuffled, to_the_end)
                if concept is not None and step < most:
                    answers = doubt.answers | {concept: concept in truth}
                    doubt = judge.judge(output, answers, questions=int(order == "guard"))
        means = dict(zip(("accuracy", "size", "coverage", "questions"), table.mean(2).tolist(), strict=True))
        enough = [asked for asked, right in zip(means["questions"], means["accuracy"], strict=True) if right >= 0.95]
        interval = list(bootstrap_interval(table[0, -1]))
        figures[order] = means | {"to 95 % accuracy": enough[0] if enough else None, "last accuracy": interval}
    return figures | {"images": len(rows)}


class Results:
    """Parts of the output, each written when it is there."""

    def __init__(self, path: Path, model: str):
        self.path, self.model = path, model
        self.values = (read_json(path) if path.is_file() else {}) | {"versions": versions()}

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        own = self.values.setdefault(self.model, {})
        if name not in own:
            own[name] = make()
            write_json(self.path, self.values)
        print(self.model, name, own[name], flush=True)
        return own[name]


def foreign_sets(options: argparse.Namespace, dataset: Dataset) -> tuple[Any, Dataset, Dataset, Dataset]:
    """A model with its processor, and its calibration images, its test images, and images of another kind."""
    names, number = dataset.features["label"].names, options.images
    if options.name != "birds":
        parts, own = load_model(options.model or str(HUB / options.name)), dataset
        other = letters(number, dataset[0]["image"].width, names)
    else:
        parts = load_model(options.foreign_model)
        kept = list(parts[0].config.id2label.values())
        known = np.array([names[label] in kept for label in dataset["label"]])
        other = drawn(dataset.select(np.flatnonzero(~known)), number)
        own = dataset.select(np.flatnonzero(known))
        labels = [kept.index(names[label]) for label in own["label"]]
        own = own.remove_columns("label").add_column("label", labels)  # type: ignore[call-arg]
        own = own.shuffle(seed=0)
    half = len(own) // 2
    return parts, own.select(range(half)), own.select(range(half, min(half + number, len(own)))), other


def run(options: argparse.Namespace, dataset: Dataset, results: Results) -> None:
    """Measures all parts that the results do not have yet. No image is used twice: the first half calibrates."""
    model, processor = load_model(options.model or str(HUB / options.name))
    alpha = ALPHA[options.name]
    half = len(dataset) // 2
    first, second = dataset.select(range(half)), dataset.select(range(half, len(dataset)))
    rows = second.select(range(min(options.images, len(second))))

    # What several parts need is made once, and not at all if they are there.
    @cache
    def pool() -> Measured:
        return measure(model, processor, dataset, progress=True)

    @cache
    def calibrated() -> tuple[dict, dict]:
        return calibrate(part_of(pool(), np.arange(half)), True, alpha, 0.05)[:2]

    @cache
    def fitted() -> Safeguard:
        return Safeguard.fit(model, processor, first, alpha, dataset=options.name, split="half of test")

    results.part("images", lambda: len(dataset))
    results.part("alpha", lambda: alpha)
    for per_class in (True, False):
        kind = "per class" if per_class else "together"
        results.part(f"coverage {kind}", lambda per_class=per_class: coverage(pool(), alpha, per_class))
    results.part("selection", lambda: selection(part_of(pool(), np.arange(half, len(dataset))), calibrated()[0]))

    def under(change: Callable | None) -> dict[str, float]:
        measured = measure(model, processor, rows.with_transform(change) if change else rows)
        return shift_figures(measured, *calibrated(), alpha)

    for condition, change in conditions():
        results.part(f"sets {condition}", partial(under, change))
    asked = second.select(range(min(options.dialogues, len(second))))
    shifts = {"": asked}
    if options.name != "birds":
        shifts[", noise 64"] = asked.map(partial(shift_rows, kind="noise", strength=64), batched=True)
    for ending, images in shifts.items():
        outputs = cache(lambda images=images: outputs_of(fitted(), images))

        def talk(to_the_end: bool, images: Dataset = images, outputs: Callable = outputs) -> dict[str, Any]:
            return dialogues(fitted(), images, outputs(), options.questions, to_the_end)

        results.part(f"dialogues{ending}", partial(talk, False))
        results.part(f"dialogues to the end{ending}", partial(talk, True))
    if options.name == "birds" and not options.foreign_model:
        return
    parts, calibration, known, other = foreign_sets(options, dataset)

    @cache
    def own_calibration() -> tuple[dict, dict]:
        return calibrate(measure(*parts, calibration, progress=True), True, alpha, 0.05)[:2]

    def judged(change: Callable | None) -> dict[str, Any]:
        sets = [each.with_transform(change) if change else each for each in (known, other)]
        return foreign_figures(*(measure(*parts, each) for each in sets), *own_calibration())

    for condition, change in conditions():
        results.part(f"another kind, {condition}", partial(judged, change))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(ALPHA))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", help="A model in place of that of hub/.")
    parser.add_argument("--foreign-model")
    parser.add_argument("--known", metavar="DIR", help="Write the dataset for --foreign-model's training to DIR.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200, help="Images of a shift or another kind, at most.")
    parser.add_argument("--dialogues", type=int, default=300, help="Images of a dialogue, at most.")
    parser.add_argument("--questions", type=int, default=10)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    splits = load_concept_dataset(options.dataset)
    if options.known:
        return write_known(splits, options.known)
    dataset = splits["test"]
    if options.name == "digits":
        dataset = concatenate_datasets([splits["validation"], splits["test"]])
    run(options, drawn(dataset, 2000).shuffle(seed=0), Results(options.output, options.name))


if __name__ == "__main__":
    main()
