# SPDX-License-Identifier: Apache-2.0
"""
Explanations of many images by processes of several machines, which share the output folder and nothing else.

The images are cut into shards, whatever the number of processes. A process explains every shard that is its turn and
not there yet. A shard is there when its record is, which is written after it: a process that ends in the middle of one
leaves nothing that counts, and the same command again completes the folder, with as many processes or others.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascent_vit.inference.identity import model_digest, processor_settings
from ascent_vit.utils.files import check_new_folder, read_json, write_json

from .batch import BatchJob, check_explained, on_accelerator, write_share


# Images of a shard, as long as that makes no more shards than this.
SHARD_IMAGES, MOST_SHARDS = 256, 1000

# Hidden, so that `load_dataset` reads the shards alone.
RECORDS = ".job"


@dataclass(frozen=True)
class Launch:
    """
    Place of this process among those of a launcher.

    Args:
        rank (`int`): Number of the process, from 0.
        world_size (`int`): Number of processes on all machines.
        local_rank (`int`): Number of the process on its machine, from 0, which chooses its accelerator.
    """

    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> "Launch | None":
        """
        Reads `RANK`, `WORLD_SIZE` and `LOCAL_RANK` as `torchrun` and `accelerate launch` set them.

        Returns:
            [`Launch`], or None where no launcher started this process.

        Raises:
            ValueError: for values that are no such numbers.
        """
        if "RANK" not in variables or "WORLD_SIZE" not in variables:
            return None
        given = {name: variables.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if not all(value.isdecimal() for value in given.values()) or int(given["RANK"]) >= int(given["WORLD_SIZE"]):
            raise ValueError(f"RANK must be a number from 0 to before WORLD_SIZE; the environment has {given}.")
        return cls(*map(int, given.values()))


def cut_into_shards(number: int) -> list[tuple[int, int]]:
    """Cuts the images into shards: the index of the first image of each, and that after its last."""
    size = max(SHARD_IMAGES, -(-number // MOST_SHARDS))
    return [(start, min(start + size, number)) for start in range(0, number, size)]


def shard_path(folder: Path, split: str | None, index: int, shards: int) -> Path:
    """File of a shard, named so that `load_dataset` knows the split."""
    name = split if re.fullmatch(r"\w+", split or "") else "train"
    return folder / "data" / f"{name}-{index:05d}-of-{shards:05d}.parquet"


def record_path(folder: Path, index: int) -> Path:
    return folder / RECORDS / f"{index:05d}.json"


def begin_job(folder: Path, facts: Mapping[str, Any]) -> None:
    """
    Begins a job in its folder, or goes on with it.

    Args:
        folder: folder of the job, which need not exist.
        facts: what its results depend on.

    Raises:
        NotADirectoryError: for a file.
        FileExistsError: for a folder that is not empty and holds no such job, or another one.
    """
    path = folder / RECORDS / "job.json"
    try:
        check_new_folder(folder)
    except FileExistsError:
        # Another process may have begun the job, also just now.
        if not (folder / RECORDS).is_dir():
            raise
    if not path.is_file():
        write_json(path, facts)
    there = read_json(path)
    differing = [name for name, value in facts.items() if there.get(name) != read_back(value)]
    if differing:
        raise FileExistsError(
            f"The folder {folder} holds the work of another job, which differs in {', '.join(differing)}: name "
            "another folder, give what it was begun with, or remove it."
        )


def read_back(value: Any) -> Any:
    """A value as a JSON file gives it back."""
    return [read_back(item) for item in value] if isinstance(value, list | tuple) else value


def explain_shards(job: BatchJob, launch: Launch, progress: bool = False) -> tuple[list[str], bool]:
    """
    Explains the shards of the images that are this process' turn, as parquet files in `data/` of the job's folder.

    Args:
        job ([`BatchJob`]): Images to explain, and the folder, which all processes share and which need not exist.
        launch ([`Launch`]): Place of this process among all.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `tuple[list[str], bool]`: One sentence for each image of this process' shards that could not be read and was
        left out, and whether the shards of all processes are there now.

    Raises:
        ValueError: for a stream, for other formats than parquet, or where no image of the whole job can be read.
        NotADirectoryError: for a file in the folder's place.
        FileExistsError: for a folder that holds something else than this job.
    """
    from tqdm import tqdm

    if job.source.streams:
        raise ValueError("A stream is read by one process: leave the streaming out, or the launcher.")
    if job.formats != ("parquet",):
        raise ValueError("Under a launcher, explain writes parquet alone: choose --format parquet and no other.")
    model, processor = job.load()
    shards = cut_into_shards(len(job.source))
    facts = {
        "model": model_digest(model),
        "processor": processor_settings(processor),
        "data": job.source.digest(),
        "shards": shards,
        "class": job.class_id,
        "maps": job.maps,
    }
    begin_job(job.folder, facts)
    model = on_accelerator(model, launch.local_rank)
    turns = range(launch.rank, len(shards), launch.world_size)
    waiting = [index for index in turns if not record_path(job.folder, index).is_file()]
    total = sum(shards[index][1] - shards[index][0] for index in waiting)
    title = f"Explaining, process {launch.rank} of {launch.world_size}"
    with tqdm(total=total, desc=title, unit="image", disable=not progress or launch.local_rank > 0) as bar:
        for index in waiting:
            path = shard_path(job.folder, job.source.split_name, index, len(shards))
            # What a process that was killed has left.
            for partial in path.parent.glob(f".{path.name}.*.partial"):
                partial.unlink(missing_ok=True)
            skipped = write_share(job, model, processor, *shards[index], path, bar.update)
            write_json(record_path(job.folder, index), {"left_out": skipped})
    left_out = [sentence for index in turns for sentence in read_json(record_path(job.folder, index))["left_out"]]
    is_complete = all(record_path(job.folder, index).is_file() for index in range(len(shards)))
    if is_complete:
        check_explained(len(list((job.folder / "data").glob("*.parquet"))), left_out)
    return left_out, is_complete


__all__ = ["Launch", "begin_job", "explain_shards"]
