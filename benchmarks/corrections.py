# SPDX-License-Identifier: Apache-2.0
"""
Corrections of concepts at test time: in which order, and one at a time or in groups.

    ascent-vit prepare cub --source CUB_200_2011 --output DATA/cub
    python benchmarks/corrections.py --model hub/birds --data DATA/cub --output benchmarks/results/corrections.json

Groups are the concepts whose names begin alike before "::", of both streams.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils.data import DataLoader

from ascent_vit.data import ConceptCollator, load_concept_dataset
from ascent_vit.data.schema import COLUMNS
from ascent_vit.evaluation import Intervention
from ascent_vit.evaluation.intervention import concept_units
from ascent_vit.evaluation.probe import choose_subset
from ascent_vit.inference import load_model
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions


STEPS = 16
# Shares of the corrections, in steps of the curve, that the table shows.
SHOWN = (0, 1, 2, 4, 8, 16)


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Prints areas and some points of each curve, in %."""
    shares = [f"{100 * step / STEPS:g} %" for step in SHOWN]
    print(f"| corrected | order | area | {' | '.join(shares)} |\n|{'---|' * (3 + len(SHOWN))}")
    for name, values in results.items():
        for ending, order in Intervention().orders.items():
            curve = values[f"intervention_curve{ending}"]
            cells = [values[f"intervention_auc{ending}"], *(curve[step] for step in SHOWN)]
            print(f"| {name} | {order} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |")


def main(
    model: Annotated[str, typer.Option(help="A Hub id, or a folder with model and processor.")],
    data: Annotated[str, typer.Option(help="A dataset with the model's concepts.")],
    output: Annotated[Path, typer.Option(metavar="FILE.json", help="File to write.")],
    images: Annotated[int, typer.Option(min=1, help="Images of the test split, drawn by seed 0.")] = 200,
) -> None:
    """Measure intervention curves by uncertainty, by expected gain and at random, of concepts and of groups."""
    torch.set_num_threads(1)
    classifier, processor = load_model(model)
    split = load_concept_dataset(data)["test"]
    split = split.select_columns([name for name in COLUMNS if name in split.features])
    split = split.select(choose_subset(len(split), images, 0))
    loader: Any = DataLoader(split, 20, collate_fn=ConceptCollator(processor, classifier.config.num_labels))
    results = {}
    for groups in (None, "prefix"):
        number = int(concept_units(classifier.config, groups).max()) + 1
        name = f"{number} {'concepts, one at a time' if groups is None else 'groups'}"
        results[name] = Intervention(STEPS, groups=groups)(classifier, loader, progress=True)
    write_json(output, {"results": results, "model": model, "images": images, **versions()})
    print_table(results)


if __name__ == "__main__":
    typer.run(main)
