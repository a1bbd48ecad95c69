# SPDX-License-Identifier: Apache-2.0
"""
Similar images: how many of an image's concepts they share, and how long an index of many images takes to answer.

    ascent-vit index hub/birds --dataset DATA/cub108 --output DATA/index
    python benchmarks/similar.py neighbours --model hub/birds --data DATA/cub108 --index DATA/index \\
        --output benchmarks/results/similar.json
    python benchmarks/similar.py answers --model hub/birds --data DATA/cub108 --index DATA/index \\
        --output benchmarks/results/similar_answers.json

Queries are the test split, the index is of the train split. Relevance is graded by labels of global concepts.
Precision at 10 is the mean, over queries and their 10 nearest images, of the share of the query's concepts that an
image has too: the cumulated gain of Järvelin and Kekäläinen (ACM Transactions on Information Systems 20(4), 2002) at
10, with the number of shared concepts as gain, by its largest value. Jaccard is that of both lists. Beside them is the
share of images of the query's class. The neighbours by the backbone's CLS token are by cosine too.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import torch
import typer
from datasets import load_from_disk
from PIL import Image
from tqdm import tqdm

from ascent_vit import ConceptIndex
from ascent_vit.cases.build import FACTORY
from ascent_vit.cases.vectors import unit
from ascent_vit.data import load_concept_dataset
from ascent_vit.explanation.explain import Explainer
from ascent_vit.inference import load_model
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions


NEAREST, BATCH = 10, 8
STRONGEST = 8
QUERIES, WARM_UP = 500, 10
QUESTIONS: dict[str, dict[str, Any]] = {
    "contributions": {},
    "contributions, same class": {"same_class": True},
    "contributions, other classes": {"same_class": False},
    "attention": {"by": "attention"},
    "patch": {"by": "patch"},
    "patch, other classes": {"by": "patch", "same_class": False},
}


def presence(split: Any) -> np.ndarray:
    """Global concepts of each image, `(N, G)`, bool."""
    lists = split["concepts"][:]
    present = np.zeros((len(split), len(split.features["concepts"].feature.names)), dtype=bool)
    for row, concepts in enumerate(lists):
        present[row, concepts] = True
    return present


def explained(model: Any, processor: Any, split: Any) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """
    Each image's explanation, without what is large and not asked for here, and unit vectors to compare with: the
    contributions to all classes, and the backbone's CLS token.
    """
    explainer = Explainer(model, processor, features=True)
    tokens: list[Any] = []
    model.ascent_vit.backbone.register_forward_hook(lambda _, __, outputs: tokens.append(outputs.last_hidden_state))
    for start in tqdm(range(0, len(split), BATCH), desc="Explaining", unit="batch"):
        images = [image.convert("RGB") for image in split[start : start + BATCH]["image"]]
        tokens.clear()
        for explanation, token in zip(explainer.run(images, [None] * len(images)), tokens[0][:, 0], strict=True):
            small = {"image": Image.new("RGB", (1, 1)), "patch_attention_heads": explanation.patch_attention[None]}
            vectors = {"contributions to all classes": explanation.contributions.ravel(), "cls": token.numpy()}
            yield (
                dataclasses.replace(explanation, **small),
                {name: unit(vector) for name, vector in vectors.items()},
            )


def judge(rows: list[list[int]], test: Any, train: Any) -> dict[str, float]:
    """Precision, Jaccard and share of the same class of each query's nearest images, means in percent."""
    asked, there = presence(test), presence(train)
    labels, classes = np.array(train["label"][:]), np.array(test["label"][:])
    values: dict[str, list[float]] = {"precision_at_10": [], "jaccard_at_10": [], "same_class_at_10": []}
    for query, found in enumerate(rows):
        shared = (there[found] & asked[query]).sum(1)
        values["precision_at_10"].append(float((shared / asked[query].sum()).mean()))
        values["jaccard_at_10"].append(float((shared / (there[found] | asked[query]).sum(1)).mean()))
        values["same_class_at_10"].append(float((labels[found] == classes[query]).mean()))
    return {name: round(100 * float(np.mean(each)), 1) for name, each in values.items()} | {"queries": len(rows)}


def placed(split: Any) -> list[set[int]]:
    """Spatial concepts of each image that annotators placed."""
    return [set(points["category"]) for points in split["points"][:]]


def judge_patches(index: ConceptIndex, explanations: Sequence[Any], test: Any, train: Any) -> dict[str, float]:
    """
    Takes the concepts that the model attends to most in a query and that annotators placed there. Says in how many of
    the 10 images of nearest patches they placed the concept too, and in how many of all that are compared.
    """
    seen, chance, there = [], [], placed(train)
    shares: dict[int, float] = {}
    for explanation, asked in zip(tqdm(explanations, desc="Patches"), placed(test), strict=True):
        strongest = np.argsort(-explanation.patch_attention.max(axis=(1, 2)))[:STRONGEST].tolist()
        for concept in asked.intersection(strongest):
            # The first time all images that are compared, for their share.
            k = NEAREST if concept in shares else len(index)
            cases = index.similar(explanation, k=k, concept=explanation.concept_names["spatial"][concept])
            held = [concept in there[case.row] for case in cases]
            shares.setdefault(concept, float(np.mean(held)))
            if len(held) >= NEAREST:
                seen.append(np.mean(held[:NEAREST]))
                chance.append(shares[concept])
    figures = {"concept_at_10": np.mean(seen), "concept_in_compared": np.mean(chance)}
    return {name: round(100 * float(value), 1) for name, value in figures.items()} | {"queries": len(seen)}


def grow(index: ConceptIndex, entries: int, folder: Path) -> ConceptIndex:
    """Writes an index of as many entries, copies with noise of those that there are, and loads it."""
    copies = -(-entries // len(index))
    noise = np.random.default_rng(0)
    for name, columns in (("cases", ("contributions", "attention")), ("patches", ("features",))):
        given = load_from_disk(str(index.folder / name))
        table = given.select(np.repeat(np.arange(len(given)), copies))
        if name == "patches":
            case = np.array(table["case"][:]) * copies + np.tile(np.arange(copies), len(given))
            table = table.remove_columns("case").add_column("case", case)
        table.select_columns([each for each in table.column_names if each != "thumbnail"]).save_to_disk(folder / name)
        for column in columns:
            stored = faiss.read_index(str(index.folder / f"{column}.faiss"))
            more = faiss.index_factory(stored.d, FACTORY, faiss.METRIC_INNER_PRODUCT)
            for row in range(stored.ntotal):
                vector = stored.reconstruct(row)
                noisy = vector + noise.normal(0, 0.01, (copies, stored.d)).astype(np.float32) * (vector != 0)
                more.add(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
            faiss.write_index(more, str(folder / f"{column}.faiss"))
    counts = {"cases": copies * len(index), "patches": copies * len(index.patches)}
    write_json(folder / "index.json", index.facts | counts)
    return ConceptIndex.load(folder)


def answer_times(index: ConceptIndex, explanations: Sequence[Any]) -> dict[str, Any]:
    """Milliseconds of answers by one core, median and 95th percentile, on the clock and of the CPU."""
    times: dict[str, Any] = {"entries": len(index), "patches": len(index.patches)}
    for name, options in QUESTIONS.items():
        taken = []
        for query in range(-WARM_UP, QUERIES):
            start = np.array([time.perf_counter(), time.process_time()])
            index.similar(explanations[query % len(explanations)], k=NEAREST, **options)
            taken.append(1000 * (np.array([time.perf_counter(), time.process_time()]) - start))
        quantiles = np.quantile(taken[WARM_UP:], (0.5, 0.95), axis=0).round(2)
        times[name] = {"ms": quantiles[:, 0].tolist(), "cpu_ms": quantiles[:, 1].tolist()}
        print(f"{name:32}", times[name], flush=True)
    return times


Model = Annotated[str, typer.Option(help="Hub id or folder of the model.")]
Data = Annotated[str, typer.Option(help="Prepared dataset with global concepts and points.")]
Index = Annotated[Path, typer.Option(help="Index of its train split.")]
Output = Annotated[Path, typer.Option(help="JSON file to write.")]
app = typer.Typer()


@app.command()
def neighbours(model: Model, data: Data, index: Index, output: Output) -> None:
    """Measures neighbours by contributions, attention and patch beside those by the backbone's CLS token."""
    classifier, processor = load_model(model)
    splits, similar = load_concept_dataset(data), ConceptIndex.load(index)
    train, test = splits["train"], splits["test"]
    explanations, asked = zip(*explained(classifier, processor, test), strict=True)
    there = [vectors for _, vectors in explained(classifier, processor, train)]
    values: dict[str, Any] = {}
    for by in ("contributions", "attention"):
        rows = [[case.row for case in similar.similar(e, k=NEAREST, by=by)] for e in explanations]
        values[by] = judge(rows, test, train)
    for name in there[0]:
        left, right = (np.stack([vectors[name] for vectors in each]) for each in (asked, there))
        nearest = np.argsort(-(left @ right.T), axis=1, kind="stable")[:, :NEAREST]
        values[name] = judge(nearest.tolist(), test, train)
    values["all images"] = judge([list(range(len(train)))] * len(test), test, train)
    for name, figures in values.items():
        print(f"{name:28}", figures, flush=True)
    values["patch"] = judge_patches(similar, explanations, test, train)
    print(f"{'patch':28}", values["patch"], flush=True)
    write_json(output, values | {"faiss_version": faiss.__version__, **versions()})


@app.command()
def answers(
    model: Model,
    data: Data,
    index: Index,
    output: Output,
    entries: Annotated[int, typer.Option(min=1, help="Entries of the index, at least.")] = 100_000,
    images: Annotated[int, typer.Option(min=1, help="Images that are asked about in turn.")] = 50,
) -> None:
    """Measures how long an answer takes on one core."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    classifier, processor = load_model(model)
    test = load_concept_dataset(data)["test"]
    test = test.select(range(0, len(test), -(-len(test) // images)))
    explanations = [explanation for explanation, _ in explained(classifier, processor, test)]
    with tempfile.TemporaryDirectory() as folder:
        values = answer_times(grow(ConceptIndex.load(index), entries, Path(folder)), explanations)
    write_json(output, values | {"faiss_version": faiss.__version__, **versions()})


if __name__ == "__main__":
    app()
