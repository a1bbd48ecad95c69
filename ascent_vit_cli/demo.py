# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit demo`: trains a model from scratch in minutes, measures, explains and loads it as a user would."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from ascent_vit.explanation import Explanation
RECIPE = "digits"
RESULTS = ("model", "explanations.png", "metrics.json")
EXPLAINED_IMAGES = 6
SHOWN_METRICS = (
    "accuracy",
    "global_concept_accuracy",
    "pixel_tpr",
    "relevance_mass",
    "pointing_game",
    "additivity_error",
)

# Probabilities of the same weights on another device or number of threads differ by rounding only.
PROBABILITY_TOLERANCE = 1e-3

CLASSIFY = """
import json, sys
import ascent_vit
from transformers import pipeline
classifier = pipeline("image-classification", model=sys.argv[1])
print(json.dumps(classifier(sys.argv[2:], top_k=None)))
"""

UCI_PAGE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"

TRAINING_DATA = """\
The 1,797 scans of scikit-learn's `load_digits`, a copy of the test set of
[Optical Recognition of Handwritten Digits]({page})
(Alpaydin and Kaynak, UCI Machine Learning Repository, 1998), licensed
[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). Each scan is placed at random scales and places on an empty
canvas, to be told apart as even or odd. Split by scan: {train} images for training, {validation} for choosing the
epoch, {test} for the figures."""

CONCEPT_SOURCE = """\
The concepts are the ten digits. For the whole image it is the digit that is shown, with a place it is where its ink
is. Both come from the data itself, nobody annotated them."""


def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder to write, new or empty.", show_default=False)],
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of data, weights and order.", show_default="the recipe's")
    ] = None,
) -> None:
    """Train a small model on handwritten digits, and write it with its figures and explanations."""
    with whole_or_nothing(output) as folder:
        metrics = run_demo(folder, seed)
    width = max(map(len, metrics))
    typer.echo(f"\n{'metric':{width}}  test split")
    for name in SHOWN_METRICS:
        if name in metrics:
            typer.echo(f"{name:{width}}  {metrics[name]:.4g}")
    typer.echo(f"{'time':{width}}  {metrics['total_seconds']:.0f} s")
    typer.echo(f"{'peak memory':{width}}  {metrics['peak_memory_mib']:.0f} MiB\n")
    for name in RESULTS:
        typer.echo(output / name)


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """
    Gives a folder to work in, inside `output`; at the end only its `RESULTS` are left, in `output` itself.

    After an error or an interruption, `output` is as it was before.

    Raises:
        ValueError: for an output that is a file, or a folder that is not empty.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file: give a new or an empty folder.")
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output {output} is not empty: give a new or an empty folder, or empty this one.")
    new_folders = [folder for folder in [output, *output.parents] if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    work = output / ".incomplete"
    work.mkdir()
    try:
        yield work
        for name in RESULTS:
            os.replace(work / name, output / name)
        shutil.rmtree(work)
    except BaseException:
        for name in (work.name, RESULTS[0]):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in RESULTS[1:]:
            (output / name).unlink(missing_ok=True)
        for folder in new_folders:
            folder.rmdir()
        raise


def run_demo(folder: Path, seed: int | None) -> dict[str, Any]:
    """Trains, measures, explains and checks a model in a folder; returns what `metrics.json` says."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from ascent_vit.data.digits import load_digits_dataset
    from ascent_vit.explanation import explain
    from ascent_vit.explanation.render.plot import plot_grid
    from ascent_vit.publishing import ModelCardContent, write_model_card
    from ascent_vit.publishing.examples import write_card_examples
    from ascent_vit.training import load_recipe, train
    from ascent_vit.utils.files import read_json, write_json

    started = time.perf_counter()
    recipe = load_recipe(RECIPE)
    seed = recipe.seed if seed is None else seed
    dataset = load_digits_dataset(**(recipe.dataset_options | {"seed": seed}))
    result = train(recipe, folder / "run", dataset=dataset, seed=seed)
    train_seconds = time.perf_counter() - started
    model_dir = folder / "model"
    os.replace(result.model_dir, model_dir)

    model = AutoModelForImageClassification.from_pretrained(model_dir)
    processor = AutoImageProcessor.from_pretrained(model_dir)
    test = dataset["test"]
    shown = test.select(range(0, len(test), max(1, len(test) // EXPLAINED_IMAGES))).select(range(EXPLAINED_IMAGES))
    explanations = explain(model, processor, shown["image"])
    truths = [model.config.id2label[label] for label in shown["label"]]
    plot_grid(explanations, folder / "explanations.png", truths)
    check_pipeline(model_dir, explanations, model.config.id2label, folder / "images")

    metrics = dict(result.metrics)
    content = ModelCardContent.from_model_dir(
        model_dir,
        model_name="ASCENT-ViT digits",
        repo_id="PATH/TO/model",
        dataset_name="scikit-learn's handwritten digits at any scale and place",
        metrics=metrics,
        seed=seed,
        command=f"ascent-vit demo --output demo --seed {seed}",
        training_data=TRAINING_DATA.format(page=UCI_PAGE, **{name: len(split) for name, split in dataset.items()}),
        concept_source=CONCEPT_SOURCE,
        settings=card_settings(read_json(folder / "run" / "recipe.json")),
        widget=write_card_examples(shown["image"][:], model, processor, model_dir),
    )
    write_model_card(model_dir, content)
    facts: dict[str, Any] = {
        "split": result.split,
        "recipe": recipe.name,
        "dataset": recipe.dataset,
        "seed": seed,
        "train_seconds": round(train_seconds, 1),
        "total_seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }
    write_json(folder / "metrics.json", metrics | facts)
    return metrics | facts


def card_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run's recipe that the card shows, without those that are off."""
    names = (
        "learning_rate",
        "weight_decay",
        "num_train_epochs",
        "warmup_epochs",
        "lr_scheduler_type",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_grad_norm",
        "mixed_precision",
        "ema_decay",
        "metric_for_best_model",
    )
    return {name: values[name] for name in names if values[name] is not None}


def check_pipeline(model_dir: Path, explanations: "list[Explanation]", id2label: dict[int, str], images: Path) -> None:
    """
    Loads a model's folder in a new process, as a user does, and compares its probabilities with the explanations'.

    Args:
        model_dir: folder of the model and its image processor.
        explanations: explanations of some images by this process.
        id2label: names of the classes.
        images: folder to create for the images.

    Raises:
        RuntimeError: if the new process fails, or gives other probabilities.
    """
    import ascent_vit

    images.mkdir()
    paths = [images / f"{i}.png" for i in range(len(explanations))]
    for path, explanation in zip(paths, explanations, strict=True):
        explanation.image.save(path)
    source = str(Path(ascent_vit.__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, "-c", CLASSIFY, str(model_dir.resolve()), *(str(path.resolve()) for path in paths)],
        env=os.environ | {"PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"The model that was written does not load in a new process:\n{process.stderr.strip()}")
    answers = json.loads(process.stdout.splitlines()[-1])
    for path, answer, explanation in zip(paths, answers, explanations, strict=True):
        expected = {id2label[i]: probability for i, probability in enumerate(explanation.scores.tolist())}
        got = {item["label"]: item["score"] for item in answer}
        if got.keys() != expected.keys() or any(abs(got[k] - expected[k]) > PROBABILITY_TOLERANCE for k in expected):
            raise RuntimeError(
                f"The model that was written does not answer as the one in memory: {got} instead of {expected} for "
                f"{path.name}. Please report this with the versions of torch and transformers."
            )


def peak_memory_mib() -> float:
    """Largest memory that this process has held so far, in MiB."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


__all__ = ["demo"]
