# SPDX-License-Identifier: Apache-2.0
"""
Similar images: how many of an image's concepts they share, and how long an index of many images takes to answer.

    ascent-vit index hub/birds --dataset DATA/cub108 --output DATA/index
    python benchmarks/similar.py --model hub/birds --data DATA/cub108 --index DATA/index \\
        --output benchmarks/results/similar.json

Queries are the test split, the index is of the train split. Relevance is graded by concept labels, as in retrieval of
images with several labels: precision at 10 is the mean, over queries and their 10 nearest images, of the share of the
query's concepts that the image has too; Jaccard is that of both lists. Beside them, the share of images of the query's
class. The neighbours by CLS token are those of a linear classifier's input, by cosine.
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
from datasets import concatenate_datasets, load_from_disk
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


def explained(model: Any, processor: Any, split: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """Each image's explanation, without what is large and not asked for here, and the backbone's CLS token `(D,)`."""
    explainer = Explainer(model, processor, features=True)
    tokens: list[Any] = []
    model.ascent_vit.backbone.register_forward_hook(lambda _, __, outputs: tokens.append(outputs.last_hidden_state))
    for start in tqdm(range(0, len(split), BATCH), desc="Explaining", unit="batch"):
        images = [image.convert("RGB") for image in split[start : start + BATCH]["image"]]
        tokens.clear()
        for explanation, token in zip(explainer.run(images, [None] * len(images)), tokens[0][:, 0], strict=True):
            small = {"image": Image.new("RGB", (1, 1)), "patch_attention_heads": explanation.patch_attention[None]}
            yield dataclasses.replace(explanation, **small), token.numpy()


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
    for explanation, asked in zip(tqdm(explanations, desc="Patches"), placed(test), strict=True):
        strongest = np.argsort(-explanation.patch_attention.max(axis=(1, 2)))[:STRONGEST].tolist()
        for concept in asked.intersection(strongest):
            name = explanation.concept_names["spatial"][concept]
            held = [concept in there[case.row] for case in index.similar(explanation, k=len(index), concept=name)]
            if len(held) >= NEAREST:
                seen.append(np.mean(held[:NEAREST]))
                chance.append(np.mean(held))
    figures = {"concept_at_10": np.mean(seen), "concept_in_compared": np.mean(chance)}
    return {name: round(100 * float(value), 1) for name, value in figures.items()} | {"queries": len(seen)}


def grow(index: ConceptIndex, entries: int, folder: Path) -> ConceptIndex:
    """Writes an index of as many entries, copies with noise of those that there are, and loads it."""
    copies = -(-entries // len(index))
    for name, columns in (("cases", ("contributions", "attention")), ("patches", ("features",))):
        table = concatenate_datasets([load_from_disk(str(index.folder / name))] * copies)
        if name == "patches":
            case = np.array(table["case"][:]) + np.repeat(np.arange(copies) * len(index), len(index.patches))
            table = table.remove_columns("case").add_column("case", case)
        table.select_columns([each for each in table.column_names if each != "thumbnail"]).save_to_disk(folder / name)
        for column in columns:
            given = faiss.read_index(str(index.folder / f"{column}.faiss"))
            vectors = given.reconstruct_n(0, given.ntotal)
            more = faiss.index_factory(given.d, FACTORY, faiss.METRIC_INNER_PRODUCT)
            for seed in range(copies):
                noise = np.random.default_rng(seed).normal(0, 0.01, vectors.shape).astype(np.float32)
                noisy = vectors + noise * (vectors != 0)
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


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model.")],
    data: Annotated[str, typer.Option(help="Prepared dataset with global concepts and points.")],
    index: Annotated[Path, typer.Option(help="Index of its train split.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    entries: Annotated[int, typer.Option(min=1, help="Entries of the index whose answers are timed.")] = 100_000,
    queries: Annotated[int | None, typer.Option(min=1, help="Queries; by default the whole test split.")] = None,
) -> None:
    """Measures neighbours by contributions, attention and patch beside those by the backbone's CLS token."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    classifier, processor = load_model(model)
    splits, similar = load_concept_dataset(data), ConceptIndex.load(index)
    train, test = splits["train"], splits["test"]
    test = test.select(range(0, len(test), -(-len(test) // (queries or len(test)))))
    explanations, asked = zip(*explained(classifier, processor, test), strict=True)
    there = [token for _, token in explained(classifier, processor, train)]
    values: dict[str, Any] = {}
    for by in ("contributions", "attention"):
        rows = [[case.row for case in similar.similar(e, k=NEAREST, by=by)] for e in explanations]
        values[by] = judge(rows, test, train)
    units = [np.stack([unit(token) for token in tokens]) for tokens in (asked, there)]
    nearest = np.argsort(-(units[0] @ units[1].T), axis=1, kind="stable")[:, :NEAREST]
    values["cls"] = judge(nearest.tolist(), test, train)
    every = list(range(len(train)))
    values["all images"] = judge([every] * len(test), test, train)
    for name, figures in values.items():
        print(f"{name:16}", figures, flush=True)
    values["patch"] = judge_patches(similar, explanations, test, train)
    print(f"{'patch':16}", values["patch"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        values["answers"] = answer_times(grow(similar, entries, Path(folder)), explanations)
    write_json(output, values | {"faiss_version": faiss.__version__, **versions()})


if __name__ == "__main__":
    typer.run(main)
