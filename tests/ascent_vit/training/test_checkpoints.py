# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or not there, known to be whole, and without code in them."""

import json
import os
import pickle
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ascent_vit.training import TrainingError, train
from ascent_vit.training.checkpoints import (
    CHECKSUMS,
    _checksums,
    checkpoints,
    damage,
    last_whole_checkpoint,
    new_checkpoint,
)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def write_checkpoint(output: Path, step: int, accelerator: Accelerator, keep: int | None = None) -> Path:
    with new_checkpoint(output, step, keep, accelerator) as folder:
        (folder / "model.bin").write_bytes(bytes(range(256)) * step)
        (folder / "parts").mkdir()
        (folder / "parts" / "part.json").write_text("{}")
    return checkpoints(output)[-1]


def test_the_newest_checkpoints_are_kept(tmp_path, accelerator):
    for step in (3, 20, 100):
        write_checkpoint(tmp_path, step, accelerator, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_00000020", "checkpoint_00000100"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["checkpoint_00000020", "checkpoint_00000100"]
    assert last_whole_checkpoint(tmp_path).name == "checkpoint_00000100"


def change_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.bin").read_bytes())
    content[700] ^= 1
    (folder / "model.bin").write_bytes(content)


DAMAGES = {
    "model.bin is not as it was written": change_a_byte,
    "parts/part.json is missing": lambda folder: (folder / "parts" / "part.json").unlink(),
    "more.bin is not as it was written": lambda folder: (folder / "more.bin").touch(),
    "checksums.json cannot be read": lambda folder: (folder / CHECKSUMS).write_text("{"),
    "checksums.json cannot be read: .*No such file": lambda folder: (folder / CHECKSUMS).unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tmp_path, accelerator, reason, caplog):
    first, second = (write_checkpoint(tmp_path, step, accelerator) for step in (4, 8))
    assert damage(first) is None and damage(second) is None
    DAMAGES[reason](second)
    with caplog.at_level("WARNING", logger="ascent_vit"):
        assert last_whole_checkpoint(tmp_path) == first
    (record,) = caplog.records
    assert re.search(reason, record.getMessage())
    assert "it is now damaged_checkpoint_00000008" in record.getMessage()
    assert (second.parent / "damaged_checkpoint_00000008" / "model.bin").exists()
    # It neither counts nor comes back.
    write_checkpoint(tmp_path, 6, accelerator, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_00000006"]


def test_no_checkpoint_that_is_whole(tmp_path, accelerator):
    assert last_whole_checkpoint(tmp_path) is None
    change_a_byte(write_checkpoint(tmp_path, 4, accelerator))
    assert last_whole_checkpoint(tmp_path) is None


def test_torchs_writer_is_put_into_words(tmp_path, accelerator):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(TrainingError, match=": the file system took no more bytes. What was there before is whole"),
            new_checkpoint(tmp_path, 8, 1, accelerator) as folder,
        ):
            torch.save(torch.zeros(100_000), folder / "optimizer.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_error_leaves_the_checkpoints_as_they_were(tmp_path, accelerator):
    write_checkpoint(tmp_path, 4, accelerator)
    before = _checksums(tmp_path)
    with pytest.raises(KeyboardInterrupt), new_checkpoint(tmp_path, 8, 1, accelerator) as folder:
        (folder / "model.bin").touch()
        raise KeyboardInterrupt
    with (
        pytest.raises(TrainingError, match="^The checkpoint of step 8 could not be written to .*: no space. What was"),
        new_checkpoint(tmp_path, 8, 1, accelerator) as folder,
    ):
        raise OSError("no space")
    assert _checksums(tmp_path) == before
    assert os.listdir(tmp_path / "checkpoints") == ["checkpoint_00000004"]


class TestRuns:
    """What a run does with them."""

    def test_a_damaged_checkpoint_costs_its_steps_only(self, few_digits, tiny_recipe, tmp_path, caplog):
        values = tiny_recipe(save_steps=3, ema_decay=0.8)
        train(values, tmp_path / "whole", few_digits)
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        (tmp_path / "cut" / "metrics.json").unlink()
        last = checkpoints(tmp_path / "cut")[-1] / "average.safetensors"
        last.write_bytes(last.read_bytes()[:-1] + b"?")
        with caplog.at_level("INFO", logger="ascent_vit"):
            train(values, tmp_path / "cut", few_digits, resume=True)
        assert "checkpoint_00000008 is damaged (average.safetensors is not as it was written)" in caplog.text
        assert "Resuming at step 6 of 8." in caplog.text
        for name in ("model", "checkpoints/checkpoint_00000008"):
            expected, got = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "cut"))
            assert all(torch.equal(got[key], value) for key, value in expected.items())

    def test_a_model_that_was_not_written_is_written_again(self, few_digits, tiny_recipe, tmp_path):
        """As after a kill between the last checkpoint and the model, of which only the old one's half is there."""
        train(tiny_recipe(), tmp_path / "whole", few_digits)
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        (tmp_path / "cut" / "metrics.json").unlink()
        best = json.loads((tmp_path / "whole" / "metrics.json").read_text())["best_epoch"]
        for checkpoint in checkpoints(tmp_path / "cut")[best:]:
            shutil.rmtree(checkpoint)
        os.replace(tmp_path / "cut" / "model", tmp_path / "cut" / ".model.123.old")
        train(tiny_recipe(), tmp_path / "cut", few_digits, resume=True)
        assert not list((tmp_path / "cut").glob(".*"))
        expected, got = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "cut"))
        assert got == expected

    def test_a_run_that_is_finished_is_left_as_it_is(self, few_digits, tiny_recipe, tmp_path):
        result = train(tiny_recipe(max_steps=2), tmp_path / "run", few_digits)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json")}
        assert train(tiny_recipe(max_steps=2), tmp_path / "run", few_digits, resume=True) == result
        times.pop(tmp_path / "run" / "recipe.json")
        assert {path: path.stat().st_mtime_ns for path in times} == times

    @pytest.mark.parametrize("leftover", [None, ".recipe.json.123.partial"])
    def test_a_run_without_checkpoint_starts_anew(self, few_digits, tiny_recipe, tmp_path, leftover):
        if leftover:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / leftover).write_text("{")
        result = train(tiny_recipe(max_steps=1), tmp_path / "run", few_digits, resume=True)
        assert result.steps == 1 and not list((tmp_path / "run").glob(".*"))

    @pytest.mark.parametrize("name", ["optimizer.bin", "scheduler.bin", "random_states_0.pkl"])
    def test_a_checkpoint_cannot_run_code(self, few_digits, tiny_recipe, tmp_path, name):
        train(tiny_recipe(max_steps=1), tmp_path / "run", few_digits)
        (checkpoint,) = checkpoints(tmp_path / "run")
        (tmp_path / "run" / "metrics.json").unlink()

        class Code:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        (checkpoint / name).write_bytes(pickle.dumps(Code()))
        (checkpoint / CHECKSUMS).write_text(json.dumps(_checksums(checkpoint)))
        with pytest.raises(pickle.UnpicklingError):
            train(tiny_recipe(max_steps=1), tmp_path / "run", few_digits, resume=True)
        assert not (tmp_path / "ran").exists()
        pickles = [path.name for path in checkpoint.iterdir() if path.suffix in (".pkl", ".bin")]
        assert sorted(pickles) == ["optimizer.bin", "random_states_0.pkl", "scheduler.bin"]

    def test_another_number_of_processes_is_refused(self, few_digits, tiny_recipe, tmp_path):
        train(tiny_recipe(max_steps=1), tmp_path / "run", few_digits)
        (checkpoint,) = checkpoints(tmp_path / "run")
        progress = json.loads((checkpoint / "progress.json").read_text())
        (checkpoint / "progress.json").write_text(json.dumps(progress | {"num_processes": 2}))
        (checkpoint / CHECKSUMS).write_text(json.dumps(_checksums(checkpoint)))
        with pytest.raises(ValueError, match="has 2 processes and cannot be resumed with 1"):
            train(tiny_recipe(max_steps=1), tmp_path / "run", few_digits, resume=True)

    def test_a_disk_that_takes_no_more(self, few_digits, tiny_recipe, tmp_path):
        """A limit to the size of files stands for a full disk: the system then refuses to write in the same way."""
        values = tiny_recipe(save_steps=1, max_steps=4)
        train(values, tmp_path / "whole", few_digits)
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        for checkpoint in checkpoints(tmp_path / "run")[1:]:
            shutil.rmtree(checkpoint)
        (tmp_path / "run" / "metrics.json").unlink()
        before = _checksums(tmp_path / "run" / "checkpoints")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(TrainingError, match="^The checkpoint of step 2 could not be written") as raised:
                train(values, tmp_path / "run", few_digits, resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(raised.value) and "go on with --resume" in str(raised.value)
        assert _checksums(tmp_path / "run" / "checkpoints") == before
        train(values, tmp_path / "run", few_digits, resume=True)
        name = Path("checkpoints", "checkpoint_00000004", "model.safetensors")
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
