# SPDX-License-Identifier: Apache-2.0
"""Streams to train on: who reads which rows, in which order, and where reading goes on."""

import dataclasses
import io
import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from safetensors.torch import load_file

from ascent_vit.data import ConceptAugmenter, ConceptCollator, load_concept_dataset
from ascent_vit.data.augmentation import Augmentation
from ascent_vit.training import stream as stream_module
from ascent_vit.training.checkpoints import checkpoints
from ascent_vit.training.stream import ShuffledStream, StreamLoader
from modeling_ascent_vit import AscentViTImageProcessor


FEATURES = Features(image=Image(), label=ClassLabel(names=["a", "b"]), number=Value("int32"))
SIZES = (70, 3, 120, 51)


def picture(number: int) -> bytes:
    """A PNG of 8 x 8 pixels whose first two pixels tell the number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = number % 256, number // 256
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, sizes: tuple[int, ...]) -> Path:
    """Parquet files with rows numbered through."""
    numbers = itertools.count()
    folder.mkdir(parents=True)
    for shard, size in enumerate(sizes):
        chosen = list(itertools.islice(numbers, size))
        columns = {
            "image": [{"bytes": picture(number), "path": None} for number in chosen],
            "label": [number % 2 for number in chosen],
            "number": chosen,
        }
        split = Dataset.from_dict(columns, features=FEATURES)
        split.to_parquet(folder / f"train-{shard:05d}-of-{len(sizes):05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("stream") / "data", SIZES)


@pytest.fixture
def streamed(folder):
    return load_dataset(str(folder), streaming=True)["train"]


@pytest.fixture
def small_blocks(monkeypatch):
    """So that a pass has several blocks, some of them over the end of a shard."""
    monkeypatch.setattr(stream_module, "SHUFFLE_BLOCK", 40)
    monkeypatch.setattr(stream_module, "READ_ROWS", 8)


def one_pass(streamed, process_index=0, num_processes=1, number=0) -> list[dict]:
    reader = ShuffledStream(streamed, 5, None, process_index, num_processes)
    rows = itertools.dropwhile(lambda row: row["_row"][0] < number, reader)
    return list(itertools.takewhile(lambda row: row["_row"][0] == number, rows))


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 6])
def test_processes_share_each_pass_without_overlap_or_loss(streamed, small_blocks, num_processes):
    for number in (0, 1):
        parts = [one_pass(streamed, i, num_processes, number) for i in range(num_processes)]
        numbers = [row["number"] for part in parts for row in part]
        assert sorted(numbers) == list(range(sum(SIZES)))
    if num_processes in (2, 4):
        # As many groups as processes: no shard is read twice.
        shards = [{row["_row"][1] for row in part} for part in parts]
        assert sum(map(len, shards)) == len(SIZES)


def test_rows_are_what_was_stored_and_named_by_their_place(streamed, small_blocks):
    starts = np.cumsum([0, *SIZES])
    for row in one_pass(streamed):
        _, shard, in_shard = row["_row"]
        assert row["number"] == starts[shard] + in_shard
        assert row["image"].getpixel((0, 0))[0] + 256 * row["image"].getpixel((1, 0))[0] == row["number"]


def test_rows_are_shuffled_anew_each_pass(streamed, small_blocks):
    first, again, second = (one_pass(streamed, number=number) for number in (0, 0, 1))
    orders = [[row["number"] for row in rows] for rows in (first, again, second)]
    assert orders[0] == orders[1] != orders[2]
    steps = np.abs(np.diff(orders[0]))
    assert (steps == 1).mean() < 0.2
    assert [row["_row"][1] for row in first][:3] != [row["_row"][1] for row in second][:3]


@settings(max_examples=25, deadline=None)
@given(taken=st.integers(1, 600), process=st.integers(0, 2), num_processes=st.integers(1, 3))
def test_reading_goes_on_at_the_sample(folder, taken, process, num_processes):
    blocks = pytest.MonkeyPatch()
    with blocks.context() as patch:
        patch.setattr(stream_module, "SHUFFLE_BLOCK", 40)
        patch.setattr(stream_module, "READ_ROWS", 8)
        streamed = load_dataset(str(folder), streaming=True)["train"]
        process %= num_processes
        rows = iter(ShuffledStream(streamed, 5, None, process, num_processes))
        state = None
        for row in itertools.islice(rows, taken):
            state = row["_state"]
        expected = [row["_row"] for row in itertools.islice(rows, 100)]
        # As it lies in a checkpoint.
        state = json.loads(json.dumps(state))
        rest = ShuffledStream(streamed, 5, None, process, num_processes, [state])
        assert [row["_row"] for row in itertools.islice(rest, 100)] == expected


def make_loader(streamed, process_index=0, num_processes=1, num_workers=0, augmented=False) -> StreamLoader:
    processor = AscentViTImageProcessor(size={"height": 8, "width": 8}, patch_size=4)
    augmenter = ConceptAugmenter(Augmentation(horizontal_flip=0.5, rotation=30), [], []) if augmented else None
    split = streamed.select_columns(["image", "label"])
    return StreamLoader(
        ShuffledStream(split, 5, augmenter, process_index, num_processes), 16, ConceptCollator(processor), num_workers
    )


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_loader_goes_on_at_the_batch(streamed, small_blocks, num_workers):
    loader = make_loader(streamed, 1, 2, num_workers, augmented=True)
    batches, states = [], []
    for batch in itertools.islice(loader, 24):
        batches.append((loader.rows, batch["pixel_values"]))
        states.append(json.loads(json.dumps(loader.state_dict())))
    for done in (1, 2, 7, 12):
        again = make_loader(streamed, 1, 2, num_workers, augmented=True)
        again.load_state_dict(states[done - 1])
        for batch, (rows, pixels) in zip(again, batches[done:], strict=False):
            assert again.rows == rows and torch.equal(batch["pixel_values"], pixels)


def test_a_view_depends_on_the_row_and_the_pass_alone(streamed, small_blocks):
    views: list[dict] = []
    for parts in ([(0, 1, 0)], [(0, 2, 2), (1, 2, 2)]):
        views.append({})
        for part in parts:
            loader = make_loader(streamed, *part, augmented=True)
            for batch in itertools.islice(loader, 32):
                views[-1] |= dict(zip(map(tuple, loader.rows), batch["pixel_values"], strict=True))
    shared = views[0].keys() & views[1].keys()
    assert len(shared) > sum(SIZES)
    assert all(torch.equal(views[0][key], views[1][key]) for key in shared)
    passes = [(views[0][key], views[0][(1, *key[1:])]) for key in views[0] if key[0] == 0 and (1, *key[1:]) in shared]
    assert not all(torch.equal(*pair) for pair in passes)


def test_workers_share_the_rows_of_their_process(streamed, small_blocks):
    loader = make_loader(streamed, num_workers=2)
    rows = Counter(tuple(row) for _ in itertools.islice(loader, 2 * sum(SIZES) // 16) for row in loader.rows)
    assert max(rows.values()) == 1


def test_another_number_of_readers_is_refused(streamed):
    state = make_loader(streamed, num_workers=3).state_dict()
    with pytest.raises(ValueError, match="as many readers as it had: set dataloader_num_workers: 3."):
        make_loader(streamed).load_state_dict(state)


def test_a_stream_too_small_for_its_readers(tmp_path):
    streamed = load_dataset(str(write_shards(tmp_path / "data", (2,))), streaming=True)["train"]
    assert len(list(itertools.islice(ShuffledStream(streamed, 0, None, 1, 2), 3))) == 3
    with pytest.raises(ValueError, match="no row for one of its 3 readers"):
        next(iter(ShuffledStream(streamed, 0, None, 2, 3)))


def test_names_that_are_encoded_on_the_way(tmp_path):
    features = Features(image=Image(), label=Value("string"), concepts=List(Value("string")))
    columns = {
        "image": [{"bytes": picture(number), "path": None} for number in range(60)],
        "label": [["cat", "dog"][number % 2] for number in range(60)],
        "concepts": [[["ear", "tail"][number % 2]] for number in range(60)],
    }
    (tmp_path / "data").mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    names = {"labels": ["dog", "cat"], "global_concepts": ["tail", "ear"]}
    streamed = load_concept_dataset(str(tmp_path / "data"), streaming=True, **names)["train"]
    rows = one_pass(streamed)
    assert sorted(row["_row"][2] for row in rows) == list(range(60))
    for row in rows:
        number = row["image"].getpixel((0, 0))[0]
        assert (row["label"], row["concepts"]) == (1 - number % 2, [1 - number % 2])


MEMORY = """
import itertools, sys
import psutil
from datasets import load_dataset
from ascent_vit.training.stream import ShuffledStream
rows = ShuffledStream(load_dataset(sys.argv[1], streaming=True)["train"], 0)
memory = []
for count, row in enumerate(itertools.islice(rows, 100_000), start=1):
    if count % 10_000 == 0:
        memory.append(psutil.Process().memory_info().rss / 2**20)
assert count == 100_000
print(*memory)
"""


@pytest.mark.nightly
def test_memory_stays_flat_over_100000_samples(tmp_path):
    """Noise does not compress: 10,000 images of 12 KiB, ten times, are 1.2 GiB."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(5):
        images = []
        for _ in range(2000):
            buffer = io.BytesIO()
            PILImage.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG", compress_level=1)
            images.append({"bytes": buffer.getvalue(), "path": None})
        columns = {"image": images, "label": [0] * 2000, "number": list(range(2000))}
        Dataset.from_dict(columns, features=FEATURES).to_parquet(
            folder / f"train-{shard:05d}-of-00005.parquet", batch_size=200
        )
    result = subprocess.run([sys.executable, "-c", MEMORY, str(folder)], check=True, capture_output=True, text=True)
    memory = [float(value) for value in result.stdout.split()]
    assert len(memory) == 10
    # It goes up and down by some tens of MiB; what is kept of the samples would be 600 MiB more in the second half.
    assert max(memory[5:]) - max(memory[1:5]) < 40, memory


@pytest.mark.slow
def test_two_processes_on_a_streamed_folder_go_on_at_the_sample(few_digits, tiny_recipe, tmp_path):
    (tmp_path / "data").mkdir()
    for name, split in few_digits.items():
        for shard in range(2):
            split.shard(2, shard).to_parquet(tmp_path / "data" / f"{name}-{shard:05d}-of-00002.parquet")
    values = tiny_recipe(
        dataset=str(tmp_path / "data"),
        dataset_options={"streaming": True},
        augmentation={"horizontal_flip": 0.5, "rotation": 20},
        per_device_train_batch_size=4,
        max_steps=12,
        save_steps=2,
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(values)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ascent_vit_cli", "train"]
    command += ["--recipe", str(tmp_path / "recipe.yaml"), "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "metrics.json").unlink()
    for checkpoint in checkpoints(tmp_path / "cut")[3:]:
        shutil.rmtree(checkpoint)
    subprocess.run([*command, str(tmp_path / "cut"), "--resume"], check=True)
    last = [checkpoints(tmp_path / name)[-1] for name in ("whole", "cut")]
    states = [[json.loads((path / f"stream_{i}.json").read_text()) for i in range(2)] for path in last]
    assert states[0] == states[1] and states[0][0] != states[0][1]
    expected, got = (load_file(path / "model.safetensors") for path in last)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-7)
