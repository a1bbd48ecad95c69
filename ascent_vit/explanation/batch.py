# SPDX-License-Identifier: Apache-2.0
"""Explanations of many images as files, made by one process or several."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .explain import explain
from .explanation import Explanation
from .render.table import ExplanationTable
from .sources import DatasetImages, ImageFiles, Item


FORMATS = ("png", "html", "json", "parquet")
TABLE_NAME = "explanations.parquet"

# In each process of several: how many images it and the others have done, and whether one of them has failed.
_shared: dict[str, Any] = {}


@dataclass(frozen=True)
class Export:
    """
    What to make of each image.

    Args:
        load (`Callable`): Gives model and image processor; with several processes, each calls it.
        source (`ImageFiles` or `DatasetImages`): The images.
        folder (`Path`): Where the files go; it exists.
        formats (`tuple[str, ...]`): `"png"`, `"html"` and `"json"` make a file per image, `"parquet"` one for all.
        class_id (`int` or `str`, *optional*, defaults to the predicted class): Class to explain.
        top (`int`, *optional*, defaults to 5): Concepts to show first in pictures and pages.
        batch_size (`int`, *optional*, defaults to 8): Images to run at a time.
        maps (`bool`, *optional*, defaults to `False`): Whether JSON and parquet have the patch maps.
    """

    load: Callable[[], tuple[Any, Any]]
    source: ImageFiles | DatasetImages
    folder: Path
    formats: tuple[str, ...]
    class_id: int | str | None = None
    top: int = 5
    batch_size: int = 8
    maps: bool = False

    def write_files(self, explanation: Explanation, item: Item) -> None:
        """The image's own files."""
        truth = {} if item.label is None else {"truth": item.label}
        arguments: dict[str, dict[str, Any]] = {
            "png": {"top": self.top} | truth,
            "html": {"top": self.top} | truth,
            "json": {"maps": self.maps},
        }
        for name, kwargs in arguments.items():
            if name in self.formats:
                explanation.save(self.folder / f"{item.name}.{name}", **kwargs)


def explain_items(
    export: Export, model: Any, processor: Any, items: Iterator[Item], skip: Callable[[str], None]
) -> Iterator[tuple[Item, Explanation]]:
    """Each item that can be read with its explanation; `skip` is told of the others."""
    waiting: deque[Item] = deque()

    def images() -> Iterator[Image.Image]:
        for item in items:
            try:
                image = item.read()
            except (ValueError, OSError) as error:
                skip(str(error))
                continue
            waiting.append(item)
            yield image

    for explanation in explain(model, processor, images(), export.class_id, export.batch_size):
        yield waiting.popleft(), explanation


def run_share(
    export: Export,
    start: int = 0,
    stop: int | None = None,
    table_path: Path | None = None,
    rank: int = 0,
    advance: Callable[[], None] | None = None,
) -> list[str]:
    """
    Explains the images from `start` to before `stop`.

    Args:
        table_path (`Path`, *optional*): File for the rows of the table, if there is to be one.
        rank (`int`): Number of the process, which chooses its device where there are several.
        advance (`Callable`, *optional*): Called after each image.

    Returns:
        `list[str]`: One sentence for each image that could not be read.
    """
    model, processor = export.load()
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        model = model.to(torch.device(str(kind), rank % torch.accelerator.device_count()))
    advance = advance or share_progress
    skipped: list[str] = []

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        advance()

    with ExitStack() as stack:
        table = stack.enter_context(ExplanationTable(table_path, export.maps)) if table_path else None
        for item, explanation in explain_items(export, model, processor, export.source.items(start, stop), skip):
            export.write_files(explanation, item)
            if table is not None:
                table.write(explanation, item.index, item.file, item.label)
            advance()
    return skipped


def join_processes(shared: dict[str, Any], threads: int) -> None:
    """The start of each process of several."""
    _shared.update(shared)
    torch.set_num_threads(threads)


def share_progress() -> None:
    """Counts an image; ends the process's share where another one has failed."""
    if _shared["failed"].is_set():
        raise InterruptedError("Another process failed.")
    with _shared["done"].get_lock():
        _shared["done"].value += 1


def cut_into_shares(number: int, processes: int, batch_size: int) -> list[tuple[int, int]]:
    """Neighbouring shares for the processes, cut between batches, so that the batches are those of one process."""
    batches = -(-number // batch_size)
    cuts = [min(batches * i // processes * batch_size, number) for i in range(processes + 1)]
    return [(start, stop) for start, stop in zip(cuts, cuts[1:], strict=False) if stop > start]


def run_processes(export: Export, processes: int, bar: Any) -> list[str]:
    """Explains all images in several processes; one file for the table's rows each, put together in order."""
    context = get_context("spawn")
    shared: dict[str, Any] = {"done": context.Value("q", 0), "failed": context.Event()}
    shares = cut_into_shares(len(export.source), processes, export.batch_size)
    parts: list[Path | None] = [None] * len(shares)
    if "parquet" in export.formats:
        parts = [export.folder / f".{rank}.parquet" for rank in range(len(shares))]
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(len(shares), context, join_processes, (shared, threads)) as pool:
        futures: list[Future] = [
            pool.submit(run_share, export, start, stop, part, rank)
            for rank, ((start, stop), part) in enumerate(zip(shares, parts, strict=True))
        ]
        try:
            running: Any = futures
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                bar.update(shared["done"].value - bar.n)
                for future in done:
                    future.result()
        except BaseException:
            shared["failed"].set()
            raise
    skipped = [sentence for future in futures for sentence in future.result()]
    if "parquet" in export.formats:
        with ExplanationTable(export.folder / TABLE_NAME, export.maps) as table:
            for part in filter(None, parts):
                if part.exists():
                    table.append(part)
                    os.unlink(part)
    return skipped


def export_explanations(export: Export, processes: int = 1, progress: bool = False) -> list[str]:
    """
    Explains many images and writes the files; memory stays flat, whatever their number.

    Args:
        export ([`Export`]): What to explain, and what to write.
        processes (`int`, *optional*, defaults to 1):
            Processes that share the images, each with its own model; devices are given to them in turn.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `list[str]`: One sentence for each image that could not be read and was left out.

    Raises:
        ValueError: for several processes on a stream, or where no image can be read.
    """
    from tqdm import tqdm

    streams = isinstance(export.source, DatasetImages) and export.source.streams
    if processes < 1:
        raise ValueError(f"processes must be 1 or more; got {processes}.")
    if streams and processes > 1:
        raise ValueError("A stream is read by one process: leave either the streaming or the processes out.")
    total = None if streams else len(export.source)
    processes = min(processes, total) if total else 1
    with tqdm(total=total, desc="Explaining", unit="image", disable=not progress) as bar:
        if processes > 1:
            skipped = run_processes(export, processes, bar)
        else:
            table_path = export.folder / TABLE_NAME if "parquet" in export.formats else None
            skipped = run_share(export, table_path=table_path, advance=bar.update)
        explained = bar.n - len(skipped)
    if not explained:
        reason = f" The first: {skipped[0]}" if skipped else ""
        raise ValueError(f"There is no image that can be read.{reason}")
    return skipped


__all__ = ["Export", "export_explanations"]
