# SPDX-License-Identifier: Apache-2.0
"""What a summary keeps of every image, in a parquet file: written as images come, read again part by part."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ascent_vit.explanation.render.table import fixed_lists


if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_SIZE = 256


def to_table(columns: dict[str, Any]) -> "pa.Table":
    """Makes a table of numpy arrays `(n, ...)`, or of lists, which may hold None and lists of numbers."""
    import pyarrow as pa

    lists = {"label": pa.string(), "predicted": pa.string(), "put_right": pa.list_(pa.int32())}
    return pa.table(
        {
            name: pa.array(values, lists[name]) if name in lists else fixed_lists(values)
            for name, values in columns.items()
        }
    )


class Rows:
    """
    Table of images in a parquet file, with the names of classes and concepts in its metadata `ascent_vit`, as JSON.

    Args:
        path (`Path`): File to write.
        names (`dict`): Names of classes and concepts.
    """

    def __init__(self, path: Path, names: dict[str, Any]):
        self.path, self.names = path, names
        self.metadata = {"ascent_vit": json.dumps(names, ensure_ascii=False)}
        self.waiting: list[Any] = []
        self.writer: Any = None

    def write(self, columns: dict[str, Any]) -> None:
        """Adds the images of a batch, of which 256 at most wait to be written."""
        table = to_table(columns).replace_schema_metadata(self.metadata)
        self.waiting.append(table)
        if sum(map(len, self.waiting)) >= ROW_GROUP_SIZE:
            self._flush()

    def append(self, file: Any) -> None:
        """Adds the rows of another file of this kind, a path or an open file."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as other:
            for group in range(other.num_row_groups):
                self.waiting.append(other.read_row_group(group))
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.waiting:
            table = pa.concat_tables(self.waiting)
            self.writer = self.writer or pq.ParquetWriter(self.path, table.schema)
            self.writer.write_table(table)
            self.waiting = []

    def close(self) -> None:
        """Writes what waits; the file can be read after that."""
        self._flush()
        if self.writer is not None:
            self.writer.close()

    def parts(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Reads columns of the written file, a group of rows at a time: arrays `(n, ...)`, or lists."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(columns))
                yield tuple(_values(table[name].combine_chunks()) for name in columns)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers in whole."""
        return np.concatenate([values for (values,) in self.parts([name])])


def _values(array: "pa.Array") -> Any:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    if pa.types.is_string(array.type) or pa.types.is_list(array.type):
        return array.to_pylist()
    return array.to_numpy(zero_copy_only=False)


__all__ = ["Rows"]
