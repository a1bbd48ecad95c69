# SPDX-License-Identifier: Apache-2.0
"""When a run stops by itself, and the rows that it names."""

import math
import re

import pytest
import torch
from datasets import DatasetDict

from ascent_vit.training import TrainingError, train
from ascent_vit.training.checkpoints import checkpoints
from ascent_vit.training.divergence import broken_term
from ascent_vit.training.loop import fit
from ascent_vit.training.run import Run
from ascent_vit.training.setup import set_up


LOSSES = {"loss": 3.0, "class_loss": 1.0, "alignment_loss": 2.0}


@pytest.mark.parametrize(
    "changes, first, expected",
    [
        ({}, 3.0, None),
        ({"loss": math.nan, "alignment_loss": math.nan}, 3.0, "alignment_loss is nan"),
        ({"loss": math.inf, "class_loss": math.inf}, 3.0, "class_loss is inf"),
        ({"loss": math.inf}, 3.0, "loss is inf"),
        ({"loss": 2999.0, "class_loss": 2997.0}, 3.0, None),
        ({"loss": 3001.0, "class_loss": 2999.0}, 3.0, "class_loss is 2999, after a first loss of 3"),
        # A first loss that is tiny, as with smooth targets, is no measure.
        ({"loss": 999.0}, 0.01, None),
        ({"loss": 1001.0, "alignment_loss": 1000.0}, 0.01, "alignment_loss is 1000, after a first loss of 0.01"),
    ],
)
def test_which_term_is_broken(changes, first, expected):
    assert broken_term(LOSSES | changes, first) == expected


def rows_of(error: TrainingError) -> list[int]:
    return [int(row) for row in re.search(r"batch of rows ([\d, ]+), counted", str(error)).group(1).split(",")]


AUGMENTATION = {"horizontal_flip": 0.5}


@pytest.mark.parametrize("augmentation", [{}, AUGMENTATION])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_loss_that_is_not_finite_names_the_rows_of_its_batch(
    few_digits, tiny_recipe, tmp_path, augmentation, resumed
):
    values = tiny_recipe(augmentation=augmentation, save_steps=1, num_train_epochs=4, per_device_train_batch_size=12)
    if resumed:
        train(values, tmp_path / "run", few_digits)
        (tmp_path / "run" / "metrics.json").unlink()
        for checkpoint in checkpoints(tmp_path / "run")[4:]:
            checkpoint.rename(checkpoint.with_name(f"damaged_{checkpoint.name}"))
    run = set_up(values, tmp_path / "run", few_digits, resume=resumed)
    pixels = torch.stack(read_pixels(run, few_digits["train"]))
    batches: list[list[int]] = []

    def look(model, args, batch):
        if model.training:
            distances = [(pixels - image).flatten(1).abs().amax(1) for image in batch["pixel_values"]]
            batches.append([int(distance.argmin()) for distance in distances])

    def damage(model, args, outputs):
        if model.training and run.progress.step == 5:
            outputs.alignment_loss = outputs.alignment_loss * math.nan

    run.model.register_forward_pre_hook(look, with_kwargs=True)
    run.model.register_forward_hook(damage)
    with pytest.raises(TrainingError, match="^Training diverged at step 6: alignment_loss is nan, in the") as raised:
        fit(run)
    expected = batches[-1]
    if augmentation:
        # A mirrored image is not found by its pixels; the loader tells its rows once more.
        run.loader.set_epoch(1)
        expected = [index for _, index in list(run.loader.batch_sampler)[2]]
    assert rows_of(raised.value) == expected and len(set(expected)) == 12


def read_pixels(run: Run, split) -> list[torch.Tensor]:
    return list(run.processor([row["image"] for row in split], return_tensors="pt")["pixel_values"])


def test_a_gradient_that_is_not_finite_stops_before_a_checkpoint(few_digits, tiny_recipe, tmp_path):
    run = set_up(tiny_recipe(save_steps=1, gradient_accumulation_steps=2), tmp_path / "run", few_digits, resume=False)
    parameter = next(run.model.parameters())
    parameter.register_hook(lambda gradient: gradient * (math.nan if run.progress.step == 2 else 1))
    with pytest.raises(TrainingError, match="^Training diverged at step 3: the gradient is nan, in the") as raised:
        fit(run)
    assert len(rows_of(raised.value)) == 16
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint_00000001", "checkpoint_00000002"]


def test_the_rows_of_a_stream_are_named(few_digits, tiny_recipe, tmp_path):
    streams = {name: split.to_iterable_dataset(num_shards=2) for name, split in few_digits.items()}
    values = tiny_recipe(learning_rate=1e30, max_grad_norm=0.0, max_steps=9)
    with pytest.raises(TrainingError, match=r"in the batch of row \d+ of shard [01], row .* of the streamed train"):
        train(values, tmp_path / "run", type(few_digits)(streams))


def test_a_cut_validation_split_is_told(few_digits, tiny_recipe, tmp_path):
    values = tiny_recipe(learning_rate=1e30, max_grad_norm=0.0, num_train_epochs=5)
    with pytest.raises(TrainingError, match="of the train split, from which the validation split has been cut"):
        train(values, tmp_path / "run", DatasetDict(train=few_digits["train"]))
