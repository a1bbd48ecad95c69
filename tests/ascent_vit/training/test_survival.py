# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed for real, and go on."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from ascent_vit.training.checkpoints import checkpoints, damage


SURVIVE = Path(__file__).parent / "survive.py"
LAST = Path("checkpoints", "checkpoint_00000060", "model.safetensors")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
# When a run is killed: any time after its start, while it writes a checkpoint, or a step or two later.
KILLS = ["start"] * 6 + ["checkpoint"] * 6 + ["later"] * 8


@pytest.fixture
def folder(few_digits, tiny_recipe, tmp_path) -> Path:
    """60 steps in 15 epochs, a checkpoint after each."""
    backbone = tiny_recipe().model["backbone_config"] | {"hidden_dropout_prob": 0.1}
    values = tiny_recipe(
        model={"backbone_config": backbone},
        dataset="digits",
        num_train_epochs=15,
        head_only_epochs=1,
        ema_decay=0.8,
        save_steps=1,
        save_total_limit=2,
        augmentation={"horizontal_flip": 0.5},
    )
    few_digits.save_to_disk(tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(values)))
    return tmp_path


@contextlib.contextmanager
def attempts(folder: Path, output: Path):
    process = subprocess.Popen(
        [sys.executable, str(SURVIVE), str(folder), str(output)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.stdin.close()
        assert process.wait(60) == 0


def start(process: subprocess.Popen) -> int:
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def wait_while(condition, attempt: int) -> None:
    """Until the condition ends to hold, or the attempt has ended."""
    while condition() and psutil.Process(attempt).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.0005)


def partial_checkpoints(output: Path) -> list[Path]:
    return list((output / "checkpoints").glob("partial_checkpoint_*"))


def last_step(output: Path) -> int:
    return max((int(path.name.split("_")[1]) for path in checkpoints(output)), default=0)


def assert_equal_results(whole: Path, cut: Path) -> None:
    """Equal weights, bit by bit, in the last checkpoint and the model, and equal figures."""
    for name in (LAST, LAST.with_name("average.safetensors"), Path("model", "model.safetensors")):
        expected, got = load_file(whole / name), load_file(cut / name)
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[key], value) for key, value in expected.items())
    files = [sorted((output / "metrics").iterdir()) for output in (whole, cut)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_text() for path in files[0]] == [path.read_text() for path in files[1]]
    metrics = [json.loads((output / "report.json").read_text()) for output in (whole, cut)]
    for key in ("metrics", "best_epoch", "best_validation_value", "steps", "history"):
        assert metrics[0][key] == metrics[1][key]


@pytest.mark.nightly
def test_killed_at_20_random_points_a_run_ends_as_if_undisturbed(folder):
    rng = random.Random(0)
    whole, cut = folder / "whole", folder / "cut"
    with attempts(folder, whole) as process:
        begin = time.monotonic()
        start(process)
        assert process.stdout.readline().strip() == "0"
        duration = time.monotonic() - begin
    in_checkpoints, steps = 0, [0]
    with attempts(folder, cut) as process:
        for kill in rng.sample(KILLS, len(KILLS)):
            attempt = start(process)
            if kill == "start":
                time.sleep(rng.uniform(0, duration / 16))
            if kill == "checkpoint":
                # What the last kill left is removed first.
                wait_while(lambda: partial_checkpoints(cut), attempt)
                wait_while(lambda: not partial_checkpoints(cut), attempt)
                time.sleep(rng.uniform(0, 0.01))
            if kill == "later":
                target = steps[-1] + rng.randint(1, 2)
                wait_while(lambda target=target: last_step(cut) < target, attempt)
                time.sleep(rng.uniform(0, 0.05))
            os.kill(attempt, signal.SIGKILL)
            assert process.stdout.readline().strip() == str(-signal.SIGKILL), "the run ended before it was killed"
            in_checkpoints += kill == "checkpoint" and bool(partial_checkpoints(cut))
            assert [path for path in checkpoints(cut) if damage(path) is not None] == []
            steps.append(last_step(cut))
        start(process)
        assert process.stdout.readline().strip() == "0"
    # No kill took back what an earlier one had left.
    assert len(steps) == 21 and steps == sorted(steps) and len(set(steps)) > 8
    assert in_checkpoints >= 3
    assert_equal_results(whole, cut)
    left = [path.name for path in cut.rglob("*") if path.name.startswith((".", "partial_", "damaged_"))]
    assert left == []


TWO_PROCESSES = """
import sys
import torch
from datasets import load_from_disk
from ascent_vit.training import load_recipe, train
torch.set_num_threads(1)
train(load_recipe(sys.argv[1] + "/recipe.yaml"), sys.argv[2], load_from_disk(sys.argv[1] + "/data"), resume=True)
"""


@pytest.mark.nightly
def test_a_dead_process_among_several_ends_the_run_which_goes_on(folder):
    (folder / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]

    def launch(output: str) -> list[str]:
        return [*command, str(folder / "run.py"), str(folder), str(folder / output)]

    def ranks(process: psutil.Process) -> list[psutil.Process]:
        return [child for child in process.children() if "run.py" in " ".join(child.cmdline())]

    process = subprocess.Popen(launch("cut"), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(checkpoints(folder / "cut")) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    others = ranks(psutil.Process(process.pid))
    assert len(others) == 2
    others.pop().kill()
    # Nobody waits for the dead one for ever.
    assert process.wait(90) != 0
    assert not any(other.is_running() for other in others)
    assert not (folder / "cut" / "metrics.json").exists()
    assert all(damage(path) is None for path in checkpoints(folder / "cut"))
    for output in ("cut", "whole"):
        subprocess.run(launch(output), env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL)
    expected, got = (load_file(folder / output / "model" / "model.safetensors") for output in ("whole", "cut"))
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-6)
