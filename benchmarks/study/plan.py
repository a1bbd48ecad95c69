# SPDX-License-Identifier: Apache-2.0
"""The runs of the study, as `tables.yaml` lists them, and what has been measured of them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascent_vit.training import Recipe, load_recipe
from ascent_vit.utils.yaml import read_yaml
from modeling_ascent_vit.suggestions_ascent_vit import suggest


TABLES = Path(__file__).parent / "tables.yaml"
MEASURES = ("faithfulness", "robustness", "intervention", "scales", "places", "heads", "leakage")
CHOICES = {
    "head": ("concepts", "linear"),
    "attention": ("softmax", "sigmoid", "key"),
    "pretrained": (None, "rotation"),
}


@dataclass(frozen=True)
class StudyRun:
    """
    One training and its evaluation.

    Args:
        table: name of the table that it belongs to.
        name: name of what is trained, unique in its table.
        title: the same in words.
        seed: random seed of weights and order, and of data that are drawn.
        recipe: name of the recipe to start from.
        overrides: changes of that recipe, `KEY=VALUE` each, the table's and then the run's.
        dataset: "digits", or a folder of prepared datasets.
        minutes: time that it may take on one CPU core.
        head, attention, pretrained, start, permuted, steps, train_images, measures, images, test_images, whole_images:
            as `tables.yaml` explains.
    """

    table: str
    name: str
    title: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    dataset: str
    minutes: float
    head: str = "concepts"
    attention: str = "softmax"
    pretrained: str | None = None
    start: str | None = None
    permuted: bool = False
    steps: int | None = None
    train_images: int | None = None
    measures: tuple[str, ...] = field(default=())
    images: int = 100
    test_images: int | None = None
    whole_images: bool = False

    def __post_init__(self):
        if self.start == self.name:
            raise ValueError(f"{self.table}: {self.name} cannot start from itself.")
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{self.table}: {key} of {self.name} must be one of {choices}.")
        unknown = [name for name in self.measures if name not in MEASURES]
        if unknown:
            raise ValueError(f"{self.table}: there is no measure {unknown[0]}; {suggest(unknown[0], MEASURES)}")

    @property
    def label(self) -> str:
        return f"{self.table}/{self.name}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """All that its figures depend on; a result with other settings is not a result of this run."""
        values = dataclasses.asdict(self)
        # Results of before there were these keys say nothing of them.
        newer = [key for key in ("whole_images", "start", "permuted") if not values[key]]
        for key in ("title", "minutes", *newer):
            del values[key]
        return json.loads(json.dumps(values))

    def load_recipe(self) -> Recipe:
        return dataclasses.replace(load_recipe(self.recipe, self.overrides), seed=self.seed)

    def path(self, results: Path) -> Path:
        return results / f"{self.label}.json"

    def result(self, results: Path) -> dict[str, Any] | None:
        """What was measured of it; None where there is nothing, or of other settings."""
        path = self.path(results)
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["settings"] == self.settings() else None


def start_of(run: StudyRun) -> StudyRun | None:
    """The run with whose trained weights a run starts; ValueError where there is none of that name."""
    if run.start is None:
        return None
    runs = {other.name: other for other in runs_of(run.table) if other.seed == run.seed}
    if run.start not in runs:
        raise ValueError(f"{run.table}: {run.name} starts from no run of it; {suggest(run.start, runs)}")
    first = runs[run.start]
    if (first.head, first.attention) != (run.head, run.attention):
        raise ValueError(
            f"{run.table}: {run.name} has another head or attention than {first.name}, from which it starts."
        )
    return first


def read_tables(path: Path = TABLES) -> dict[str, dict[str, Any]]:
    return read_yaml(path.read_text(encoding="utf-8"), str(path))


def runs_of(table: str, path: Path = TABLES) -> list[StudyRun]:
    """
    The runs of a table, seed by seed, so that a table that is cut short has whole comparisons.

    Raises:
        ValueError: for a table or a key that does not exist.
    """
    tables = read_tables(path)
    if table not in tables:
        raise ValueError(f"There is no table {table}; {suggest(table, tables)}")
    common = dict(tables[table])
    names, seeds, changes = common.pop("runs"), common.pop("seeds"), common.pop("set", [])
    for key in ("title", "also"):
        common.pop(key, None)
    known = {item.name for item in dataclasses.fields(StudyRun)}
    runs = []
    for seed in seeds:
        for name, own in names.items():
            values = common | own
            values |= {"overrides": tuple(changes + values.pop("set", [])), "measures": tuple(values["measures"])}
            unknown = sorted(set(values) - known)
            if unknown:
                raise ValueError(f"{table}: {name} has no key {unknown[0]}; {suggest(unknown[0], known)}")
            runs.append(StudyRun(table=table, name=name, seed=seed, **values))
    return runs
