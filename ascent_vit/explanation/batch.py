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
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .explain import explain
from .explanation import Explanation
from .render.table import ExplanationTable
from .sources import DatasetImages, ImageFiles, Item


if TYPE_CHECKING:
    from tqdm import tqdm

    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

FORMATS = ("png", "html", "json", "parquet")
TABLE_NAME = "explanations.parquet"

# What the processes of a job share: the number of images that all of them have done, and whether one has failed.
_shared: dict[str, Any] = {}


@dataclass(frozen=True)
class BatchJob:
    """
    Images to explain, and the files to write of them.

    Args:
        load (`Callable`): Function that returns model and image processor; each of several processes calls it.
        source (`ImageFiles` or `DatasetImages`): Images to explain.
        folder (`Path`): Folder for the files, which exists.
        formats (`tuple[str, ...]`): `"png"`, `"html"` and `"json"` make a file per image, `"parquet"` one for all.
        class_id (`int` or `str`, *optional*, defaults to the predicted class): Class to explain.
        top (`int`, *optional*, defaults to 5): Number of concepts to show first in pictures and pages.
        batch_size (`int`, *optional*, defaults to 8): Number of images to run at a time.
        maps (`bool`, *optional*, defaults to `False`): Whether JSON and parquet hold the patch maps.
        guard (`Callable`, *optional*):
            Function of model and image processor that returns a guard, for the doubt in pages and JSON.
    """

    load: "Callable[[], tuple[ConceptClassifier, ConceptImageProcessor]]"
    source: ImageFiles | DatasetImages
    folder: Path
    formats: tuple[str, ...]
    class_id: int | str | None = None
    top: int = 5
    batch_size: int = 8
    maps: bool = False
    guard: Callable[..., Any] | None = None

    def write_files(self, explanation: Explanation, item: Item, doubt: Any = None) -> None:
        """Writes the files that an image has to itself."""
        truth = {} if item.label is None else {"truth": item.label}
        arguments: dict[str, dict[str, Any]] = {
            "png": {"top": self.top} | truth,
            "html": {"top": self.top, "doubt": doubt} | truth,
            "json": {"maps": self.maps, "doubt": doubt},
        }
        for name, kwargs in arguments.items():
            if name in self.formats:
                explanation.save(self.folder / f"{item.name}.{name}", **kwargs)


def explain_items(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    items: Iterator[Item],
    skip: Callable[[str], None],
    **kwargs: Any,
) -> Iterator[tuple[Item, Explanation]]:
    """
    Explains each item that can be read; `skip` gets one sentence for each of the others, and `kwargs` are arguments of
    [`explain`].
    """
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

    for explanation in explain(model, processor, images(), **kwargs):
        yield waiting.popleft(), explanation


def on_accelerator(model: "ConceptClassifier", rank: int) -> "ConceptClassifier":
    """Moves a model to the accelerator of a process of this machine; they take the accelerators in turn."""
    if not torch.accelerator.is_available():
        return model
    kind = torch.accelerator.current_accelerator()
    return model.to(torch.device(str(kind), rank % torch.accelerator.device_count()))


def write_share(
    job: BatchJob,
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    start: int,
    stop: int | None,
    table_path: Path | None,
    advance: Callable[[], None],
) -> list[str]:
    """
    Explains the images from `start` to before `stop`.

    Args:
        job ([`BatchJob`]): Images to explain, and files to write.
        model (`torch.nn.Module`): The model.
        processor (`AscentViTImageProcessor`): The model's image processor.
        start (`int`): Index of the first image.
        stop (`int`, *optional*): Index after the last image; None for all.
        table_path (`Path`, *optional*): Parquet file to write, if there is to be one.
        advance (`Callable`): Function that is called after each image.

    Returns:
        `list[str]`: One sentence for each image that could not be read.
    """
    guard = job.guard(model=model, processor=processor) if job.guard else None
    skipped: list[str] = []

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        advance()

    options = {"class_ids": job.class_id, "batch_size": job.batch_size}
    with ExitStack() as stack:
        table = stack.enter_context(ExplanationTable(table_path, job.maps)) if table_path else None
        items = job.source.items(start, stop)
        for item, explanation in explain_items(model, processor, items, skip, **options):
            job.write_files(explanation, item, guard(item.read()) if guard else None)
            if table is not None:
                table.write(explanation, item.index, item.file, item.label)
            advance()
    return skipped


def run_share(job: BatchJob, start: int, stop: int, table_path: Path | None, rank: int) -> list[str]:
    """Explains a share of the images in one process of several of this machine, see [`write_share`]."""
    model, processor = job.load()
    return write_share(job, on_accelerator(model, rank), processor, start, stop, table_path, share_progress)


def join_processes(shared: dict[str, Any], threads: int) -> None:
    """Prepares one process of several."""
    _shared.update(shared)
    torch.set_num_threads(threads)


def share_progress() -> None:
    """Counts an image; ends the process's share if another process has failed."""
    if _shared["failed"].is_set():
        raise InterruptedError("Another process failed.")
    with _shared["done"].get_lock():
        _shared["done"].value += 1


def cut_into_shares(number: int, processes: int, batch_size: int) -> list[tuple[int, int]]:
    """Cuts the images into a share per process, between batches, so that the batches are those of one process."""
    batches = -(-number // batch_size)
    cuts = [min(batches * i // processes * batch_size, number) for i in range(processes + 1)]
    return [(start, stop) for start, stop in zip(cuts, cuts[1:], strict=False) if stop > start]


def run_processes(job: BatchJob, processes: int, bar: "tqdm") -> list[str]:
    """Explains all images in several processes, each with a table of its own, which are joined in order."""
    context = get_context("spawn")
    shared: dict[str, Any] = {"done": context.Value("q", 0), "failed": context.Event()}
    shares = cut_into_shares(len(job.source), processes, job.batch_size)
    parts: list[Path | None] = [None] * len(shares)
    if "parquet" in job.formats:
        parts = [job.folder / f".{rank}.parquet" for rank in range(len(shares))]
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(len(shares), context, join_processes, (shared, threads)) as pool:
        futures: list[Future] = [
            pool.submit(run_share, job, start, stop, part, rank)
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
    if "parquet" in job.formats:
        with ExplanationTable(job.folder / TABLE_NAME, job.maps) as table:
            for part in filter(None, parts):
                if part.exists():
                    table.append(part)
                    os.unlink(part)
    return skipped


def explain_many(job: BatchJob, processes: int = 1, progress: bool = False) -> list[str]:
    """
    Explains many images and writes the files; memory stays flat, whatever their number.

    Args:
        job ([`BatchJob`]): Images to explain, and files to write.
        processes (`int`, *optional*, defaults to 1):
            Number of processes that share the images, each with a model of its own; they take the accelerators in
            turn.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `list[str]`: One sentence for each image that could not be read and was left out.

    Raises:
        ValueError: for several processes on a stream, or where no image can be read.
    """
    from tqdm import tqdm

    if processes < 1:
        raise ValueError(f"processes must be 1 or more; got {processes}.")
    if job.source.streams and processes > 1:
        raise ValueError("A stream is read by one process: leave either the streaming or the processes out.")
    total = None if job.source.streams else len(job.source)
    processes = min(processes, total) if total else 1
    with tqdm(total=total, desc="Explaining", unit="image", disable=not progress) as bar:
        if processes > 1:
            skipped = run_processes(job, processes, bar)
        else:
            table_path = job.folder / TABLE_NAME if "parquet" in job.formats else None
            model, processor = job.load()
            skipped = write_share(job, on_accelerator(model, 0), processor, 0, None, table_path, bar.update)
        check_explained(bar.n - len(skipped), skipped)
    return skipped


def check_explained(number: int, skipped: list[str]) -> None:
    """Raises ValueError where no image could be read."""
    if not number:
        reason = f" The first: {skipped[0]}" if skipped else ""
        raise ValueError(f"There is no image that can be read.{reason}")


__all__ = ["BatchJob", "check_explained", "explain_items", "explain_many", "on_accelerator", "write_share"]
