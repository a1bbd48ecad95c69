# SPDX-License-Identifier: Apache-2.0
"""Writes explanations of many images as one parquet file."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..decomposition import Decomposition


if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_SIZE = 256


def fixed_lists(values: np.ndarray) -> "pa.Array":
    """Makes n lists of fixed length, nested as deep as the array has axes, of an array `(n, ...)` of numbers."""
    import pyarrow as pa

    array = pa.array(values.reshape(-1))
    for length in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def to_table(rows: Sequence[tuple[int, str | None, str | None, Decomposition]], maps: bool) -> "pa.Table":
    """Makes a table of rows of index, file, true class and explanation, see [`ExplanationTable`]."""
    import pyarrow as pa

    explanations = [explanation for _, _, _, explanation in rows]

    def strings(values: Iterable[str | None]) -> "pa.Array":
        return pa.array(list(values), pa.string())

    def numbers(values: Iterable[float]) -> "pa.Array":
        return pa.array(np.fromiter(values, dtype=np.float32, count=len(rows)))

    columns: dict[str, Any] = {
        "index": pa.array([index for index, _, _, _ in rows], pa.int64()),
        "file": strings(file for _, file, _, _ in rows),
        "label": strings(label for _, _, label, _ in rows),
        "predicted": strings(e.predicted_label for e in explanations),
        "predicted_score": numbers(e.predicted_score for e in explanations),
        "explained": strings(e.label for e in explanations),
        "score": numbers(e.score for e in explanations),
        "logits": fixed_lists(np.stack([e.logits for e in explanations])),
        "logit": numbers(e.logit for e in explanations),
        "class_bias": numbers(e.class_bias for e in explanations),
        "contributions": fixed_lists(np.stack([e.select(e.contributions) for e in explanations])),
        "attention": fixed_lists(np.stack([e.concept_attention for e in explanations])),
        "additivity_error": numbers(e.additivity_error for e in explanations),
    }
    if maps and explanations[0].patch_attention_heads.shape[1]:
        columns["patch_attention"] = fixed_lists(np.stack([e.patch_attention for e in explanations]))
        columns["patch_contributions"] = fixed_lists(np.stack([e.patch_contributions for e in explanations]))
    names = {
        "labels": explanations[0].labels,
        "concepts": explanations[0].concept_names,
        "score_function": explanations[0].score_function,
    }
    return pa.table(columns).replace_schema_metadata({"ascent_vit": json.dumps(names, ensure_ascii=False)})


class ExplanationTable:
    """
    Writes explanations to a parquet file, 256 rows at a time, so that memory stays flat. The file appears when the
    block ends without an error; without any row there is none.

    A row has `index`, `file` and `label` (the true class) if they are known, `predicted` and `predicted_score`,
    `explained` and its `score`, `logits` (K), `logit` and `class_bias` of the explained class, `contributions` to it
    and `attention` (G + S + U each), and `additivity_error`; with maps also `patch_attention` and
    `patch_contributions` (S, h, w). Contributions and `class_bias` sum to `logit`. The file's metadata has the names
    of classes and concepts, under `ascent_vit` as JSON: `labels`, and `concepts` of each stream, in the order of the
    columns, with the `score_function` that makes scores of logits. Where an image may have several classes,
    `predicted` is the most probable one; of a regression it is the first value, and `predicted_score` what it is.

    Args:
        path (`str` or `os.PathLike`): File to write.
        maps (`bool`, *optional*, defaults to `False`): Whether to write the patch maps.

    Example:

    ```python
    >>> with ExplanationTable("explanations.parquet") as table:
    ...     for index, explanation in enumerate(explain(model, processor, images())):
    ...         table.write(explanation, index)
    ```
    """

    def __init__(self, path: str | os.PathLike, maps: bool = False):
        self.path, self.maps = Path(path), maps
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self.rows: list[tuple[int, str | None, str | None, Decomposition]] = []
        self.writer: Any = None

    def write(self, explanation: Decomposition, index: int, file: str | None = None, label: str | None = None) -> None:
        """
        Adds one row.

        Args:
            explanation ([`Explanation`]): Explanation of the image.
            index (`int`): Index of the image.
            file (`str`, *optional*): File of the image.
            label (`str`, *optional*): Name of the true class.
        """
        self.rows.append((index, file, label, explanation))
        if len(self.rows) == ROW_GROUP_SIZE:
            self._flush()

    def append(self, path: str | os.PathLike) -> None:
        """Adds the rows of another file of this kind."""
        import pyarrow.parquet as pq

        self._flush()
        with pq.ParquetFile(path) as other:
            for group in range(other.num_row_groups):
                self._write(other.read_row_group(group))

    def _flush(self) -> None:
        if self.rows:
            self._write(to_table(self.rows, self.maps))
            self.rows = []

    def _write(self, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(self.partial, table.schema)
        self.writer.write_table(table)

    def __enter__(self) -> "ExplanationTable":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
            if self.writer is not None:
                self.writer.close()
                if error is None:
                    os.replace(self.partial, self.path)
        finally:
            self.partial.unlink(missing_ok=True)


__all__ = ["ExplanationTable"]
