# SPDX-License-Identifier: Apache-2.0
"""
Training from a stream: shared by readers without overlap or loss, shuffled, and resumable at the sample.

A reader is a worker process of a training process, or that itself without workers. The files of a stream, its shards,
are dealt out to groups of readers, as many groups as divide both numbers evenly; the readers of a group take turns at
its rows. In each pass over the stream every row goes to one reader, in an order of shards drawn for that pass.

Rows are shuffled in blocks that are read whole. A state is therefore small, where the block begins and how many of its
rows were used, and going on from it reads one block again, not all that came before.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ascent_vit.data import ConceptAugmenter, ConceptCollator


# Rows that are drawn from at random: they are held as they are stored, not decoded.
SHUFFLE_BLOCK = 1000

# Rows per request to the stream; a block ends between two requests.
READ_ROWS = 50

ENCODED_COLUMNS = ("image", "mask")


def start_of_pass(reader: int, number: int) -> dict[str, Any]:
    """Gives the state of a reader before a pass."""
    begin = {"reader": reader, "pass": number, "place": 0, "shard_state": None, "row": 0, "count": 0}
    return begin | {"position": 0}


def first_states(process_index: int, num_workers: int) -> list[dict[str, Any]]:
    """Gives the states of a process's readers before the first pass; without workers the process is one itself."""
    readers = max(1, num_workers)
    return [start_of_pass(process_index * readers + number, 0) for number in range(readers)]


class ShuffledStream(torch.utils.data.IterableDataset):
    """
    Gives the rows of one process's readers, without end.

    Args:
        stream: streamed split of a concept dataset, not shuffled and not split.
        seed: random seed of the order, and of what `augmenter` draws.
        augmenter: augmentation of each row, which depends on seed, pass, and the row's shard and number in it alone.
        process_index: index of this process.
        num_processes: number of processes that share the stream.
        states: states of this process's readers, in the order in which their next batches are due; one per worker.
            None begins the first pass.

    Yields:
        Rows with two further keys: `_row`, pass, shard and the row's number in the shard, each from 0; `_state`, a
        dict of plain values from which the stream goes on behind that row.

    Raises:
        ValueError: when read, for a stream without a row for each reader.
    """

    def __init__(
        self,
        stream: Any,
        seed: int,
        augmenter: ConceptAugmenter | None = None,
        process_index: int = 0,
        num_processes: int = 1,
        states: list[dict[str, Any]] | None = None,
    ):
        self.stream, self.seed, self.augmenter = stream.decode(False), seed, augmenter
        self.features = stream.features
        self.process_index, self.num_processes, self.states = process_index, num_processes, states

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        state = (self.states or first_states(self.process_index, num_workers))[number]
        num_readers = self.num_processes * num_workers
        while True:
            found = False
            for row in self._read_pass(state, num_readers):
                found = True
                yield row
            if not found and state == start_of_pass(state["reader"], state["pass"]):
                raise ValueError(
                    f"The streamed train split has no row for one of its {num_readers} readers (processes times "
                    "dataloader_num_workers): lower dataloader_num_workers, or train on more images."
                )
            state = start_of_pass(state["reader"], state["pass"] + 1)

    def _read_pass(self, state: dict[str, Any], num_readers: int) -> Iterator[dict[str, Any]]:
        """Gives the rows of this reader that are left of a pass."""
        num_shards = self.stream.num_shards
        groups = math.gcd(num_shards, num_readers)
        group, member, members = state["reader"] % groups, state["reader"] // groups, num_readers // groups
        shards = np.random.default_rng([self.seed, state["pass"]]).permutation(num_shards)[group::groups].tolist()
        block: list[tuple[dict[str, Any], list[int]]] = []
        # Rows of the group's shards so far, and where the block begins.
        count, begin = state["count"], state
        for place in range(state["place"], len(shards)):
            shard = self.stream.shard(num_shards, shards[place])
            number = 0
            if place == state["place"] and state["shard_state"] is not None:
                shard.load_state_dict(state["shard_state"])
                number = state["row"]
            for columns in shard.iter(batch_size=READ_ROWS):
                for values in zip(*columns.values(), strict=True):
                    if count % members == member:
                        block.append((dict(zip(columns, values, strict=True)), [state["pass"], shards[place], number]))
                    count, number = count + 1, number + 1
                if len(block) >= SHUFFLE_BLOCK:
                    yield from self._shuffle(block, begin)
                    here = {"place": place, "shard_state": shard.state_dict(), "row": number, "count": count}
                    block, begin = [], begin | here | {"position": 0}
        yield from self._shuffle(block, begin)

    def _shuffle(self, block: list[tuple[dict[str, Any], list[int]]], begin: dict[str, Any]) -> Iterator[dict]:
        """Gives the rows of a block that are left, drawn at random."""
        seeds = [self.seed, begin["pass"], begin["reader"], begin["count"]]
        order = np.random.default_rng(seeds).permutation(len(block)).tolist()
        for position in range(begin["position"], len(order)):
            row, place = block[order[position]]
            row = {name: self._decode(name, value) for name, value in row.items()}
            if self.augmenter is not None:
                row = self.augmenter(row, np.random.default_rng([self.seed, *place]))
            yield row | {"_row": place, "_state": begin | {"position": position + 1}}

    def _decode(self, name: str, value: Any) -> Any:
        # A stream whose names were encoded on the way has decoded its images for that.
        stored = name in ENCODED_COLUMNS and isinstance(value, dict)
        return self.features[name].decode_example(value) if stored else value


class StreamCollator:
    """Makes batches by [`ConceptCollator`] from rows of a stream, with the rows' places and the last state."""

    def __init__(self, collate: ConceptCollator):
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], list[list[int]], dict[str, Any]]:
        return self.collate(rows), [row["_row"] for row in rows], rows[-1]["_state"]


class StreamLoader:
    """
    Gives batches of one process's share of a stream, without end.

    Args:
        stream: stream to read.
        batch_size: number of images per batch.
        collate: collator that makes a batch of rows.
        num_workers: number of processes that read; each gives every `num_workers`-th batch.

    Attributes:
        rows: places of the rows of the batch given last: for each image pass, shard and number in the shard, each
            from 0.
    """

    def __init__(self, stream: ShuffledStream, batch_size: int, collate: ConceptCollator, num_workers: int = 0):
        self.stream, self.batch_size, self.num_workers = stream, batch_size, num_workers
        self.collate = StreamCollator(collate)
        self.states = first_states(stream.process_index, num_workers)
        self.rows: list[list[int]] = []

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.stream.states = list(self.states)
        loader: Any = DataLoader(
            self.stream,
            self.batch_size,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            drop_last=True,
            # A generator of its own, so that reading draws nothing from the global one, which a resumed run restores.
            generator=torch.Generator().manual_seed(self.stream.seed),
        )
        for batch, self.rows, state in loader:
            # Readers take turns: that of this batch is due last.
            self.states = [*self.states[1:], state]
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Says where the batch after the last one begins, in plain values."""
        return {"states": self.states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes on from a `state_dict`.

        Raises:
            ValueError: for the state of another number of readers.
        """
        states = state["states"]
        if len(states) != len(self.states):
            raise ValueError(
                f"A streamed run goes on with as many readers as it had: set dataloader_num_workers: {len(states)}."
                if len(states) > 1
                else "A streamed run goes on with as many readers as it had: set dataloader_num_workers: 0."
            )
        self.states = states


__all__ = ["ShuffledStream", "StreamLoader"]
