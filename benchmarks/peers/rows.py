# SPDX-License-Identifier: Apache-2.0
"""The runs beside the peers, as `tables.yaml` lists them, and what has been measured of them."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascent_vit.utils.yaml import read_yaml
from modeling_ascent_vit.suggestions_ascent_vit import suggest


TABLES = Path(__file__).parent / "tables.yaml"
KINDS = ("concepts", "explanations", "checks")


@dataclass(frozen=True)
class PeerRun:
    """
    One row of a table with one seed.

    Args:
        table: name of the table.
        name: name of the row, unique in its table.
        title: the same in words.
        seed: random seed.
        kind: "concepts", "explanations" or "checks".
        method: name of what is run.
        arguments: its arguments, where they are not its defaults.
        tune: arguments by name, each with values of which the ones best on validation are taken.
        recipe, dataset: names of the recipe and of the folder of the dataset.
        images: numbers of images by measure.
        ground: row of the study, TABLE/ROW, whose recipe, budget and data are taken; empty for the recipe as it is.
    """

    table: str
    name: str
    title: str
    seed: int
    kind: str
    method: str
    recipe: str
    dataset: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, list] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    ground: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.table}: kind must be one of {KINDS}; got {self.kind!r}.")

    @property
    def label(self) -> str:
        return f"{self.table}/{self.name}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """All that its figures depend on; a result with other settings is not a result of this run."""
        values = dataclasses.asdict(self)
        for key in ("title", *(() if self.ground else ("ground",))):
            del values[key]
        return json.loads(json.dumps(values))

    def trials(self) -> Iterator[dict[str, Any]]:
        """The arguments to try, one set where there is nothing to tune."""
        for values in itertools.product(*self.tune.values()):
            yield self.arguments | dict(zip(self.tune, values, strict=True))

    def path(self, results: Path) -> Path:
        return results / f"{self.label}.json"

    def result(self, results: Path) -> dict[str, Any] | None:
        """What was measured of it; None where there is nothing, or of other settings."""
        path = self.path(results)
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["settings"] == self.settings() else None


def read_tables(path: Path = TABLES) -> dict[str, dict[str, Any]]:
    return read_yaml(path.read_text(encoding="utf-8"), str(path))


def runs_of(table: str, path: Path = TABLES) -> list[PeerRun]:
    """
    The runs of a table, seed by seed.

    Raises:
        ValueError: for a table or a key that does not exist.
    """
    tables = read_tables(path)
    if table not in tables:
        raise ValueError(f"There is no table {table}; {suggest(table, tables)}")
    common = dict(tables[table])
    rows, seeds = common.pop("runs"), common.pop("seeds")
    for key in ("title", "study"):
        common.pop(key, None)
    known = {item.name for item in dataclasses.fields(PeerRun)}
    runs = []
    for seed in seeds:
        for name, own in rows.items():
            values = common | own
            if seed not in values.pop("only_seeds", seeds):
                continue
            unknown = sorted(set(values) - known)
            if unknown:
                raise ValueError(f"{table}: {name} has no key {unknown[0]}; {suggest(unknown[0], known)}")
            runs.append(PeerRun(table=table, name=name, seed=seed, **values))
    return runs


def first_of(run: PeerRun) -> PeerRun:
    """The same row with the first seed of its table, with which its settings are chosen."""
    return next(other for other in runs_of(run.table) if other.name == run.name)
