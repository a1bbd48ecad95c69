# SPDX-License-Identifier: Apache-2.0
"""A whole evaluation: with outputs that are known, with a real model, and over several processes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ascent_vit.evaluation import evaluate
from modeling_ascent_vit import AscentViTForImageClassification


ROOT = Path(__file__).parents[3]
CONCEPT_METRICS = {
    "concept_map",
    "concept_auroc",
    "global_concept_accuracy",
    "pointing_game",
    "pixel_tpr",
    "relevance_mass",
    "alignment_error",
}


class KnownOutputs(torch.nn.Module):
    """Answers image i, whose pixels are all i, with row i of the outputs it was given."""

    def __init__(self, logits, global_attention=None, spatial_attention=None, contribution_gap=0.0):
        super().__init__()
        self.config = SimpleNamespace(num_labels=logits.shape[1], problem_type=None, none_concept=False)
        self.outputs = {
            "logits": logits,
            "global_concept_attention": global_attention,
            "spatial_concept_attention": spatial_attention,
            "concept_contributions": torch.stack([0.25 * logits, 0.75 * logits - 1 + contribution_gap], dim=1),
        }
        self.bias = torch.nn.Parameter(torch.ones(logits.shape[1]))

    def class_bias(self):
        return self.bias

    def forward(self, pixel_values, output_contributions):
        assert output_contributions and not self.training and not torch.is_grad_enabled()
        rows = pixel_values[:, 0, 0, 0].long()
        return SimpleNamespace(**{name: None if v is None else v[rows] for name, v in self.outputs.items()})


def batches(sizes, **columns):
    """Batches of the given sizes, whose pixels number the images."""
    start = 0
    for size in sizes:
        numbers = torch.arange(start, start + size, dtype=torch.float32)
        yield {
            "pixel_values": numbers.view(-1, 1, 1, 1).expand(-1, 3, 2, 2),
            **{name: column[start : start + size] for name, column in columns.items()},
        }
        start += size


LOGITS = torch.tensor([[4.0, 0.0], [3.0, 1.0], [0.0, 2.0], [1.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 0])


def test_only_metrics_with_targets_are_reported():
    model = KnownOutputs(LOGITS)
    assert set(evaluate(model, batches([4]))) == {"additivity_error"}
    assert set(evaluate(model, batches([4], labels=LABELS))) == {"additivity_error", "accuracy", "macro_f1", "ece"}


def test_targets_that_are_all_unknown_report_nothing():
    attention = torch.full((4, 3), 1 / 3)
    values = evaluate(KnownOutputs(LOGITS, attention), batches([4], concept_targets=torch.full((4, 3), torch.nan)))
    assert set(values) == {"additivity_error"}


def test_known_outputs_give_known_metrics_however_batches_are_cut():
    global_attention = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    concept_targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [torch.nan, torch.nan]])
    spatial_attention = torch.tensor([[0.7, 0.3], [0.4, 0.6]]).expand(4, -1, -1)
    spatial_targets = torch.full((4, 2, 2), torch.nan)
    spatial_targets[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    spatial_targets[1, 1] = torch.tensor([1.0, 0.0])
    model = KnownOutputs(LOGITS, global_attention, spatial_attention, contribution_gap=0.125)
    columns = {"labels": LABELS, "concept_targets": concept_targets, "spatial_concept_targets": spatial_targets}
    expected_alignment = (0.02 + 1.62 + 0.08) / 4 + ((0.18 + 0.32) / 2 + 0.72) / 4
    for sizes in ([4], [3, 1], [1, 1, 1, 1]):
        values = evaluate(model, batches(sizes, **columns))
        assert set(values) == CONCEPT_METRICS | {"accuracy", "macro_f1", "ece", "additivity_error"}
        assert values["accuracy"] == 0.75
        assert values["global_concept_accuracy"] == pytest.approx(2 / 3)
        assert values["pointing_game"] == pytest.approx(2 / 3)
        assert values["pixel_tpr"] == pytest.approx(2 / 3)
        assert values["alignment_error"] == pytest.approx(expected_alignment)
        assert values["additivity_error"] == pytest.approx(0.125)
        assert all(type(value) is float for value in values.values())


def test_the_strongest_attention_of_an_image_says_whether_a_concept_is_there():
    """Of the second concept it is unknown in one image; the third is nowhere, so that nothing can be ranked."""
    attention = torch.zeros(4, 2, 3)
    attention[:, 0, 0] = torch.tensor([0.9, 0.1, 0.6, 0.2])
    attention[:, 1, 0] = torch.tensor([0.0, 0.8, 0.0, 0.1])
    attention[:, 1, 1] = torch.tensor([0.1, 0.2, 0.9, 0.3])
    presence = torch.tensor([[1, 0, 0], [1, 0, 0], [0, torch.nan, 0], [1, 1, 0]])
    model = KnownOutputs(LOGITS, spatial_attention=attention)
    for sizes in ([4], [1, 3]):
        values = evaluate(model, batches(sizes, spatial_concept_presence=presence))
        assert set(values) == {"presence_map", "presence_auroc", "additivity_error"}
        # The first concept ranks 0.9, 0.8, (0.6), 0.2.
        assert values["presence_map"] == pytest.approx(((1 + 1 + 3 / 4) / 3 + 1) / 2)
        assert values["presence_auroc"] == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(ValueError, match=r"spatial_concept_presence must have the shape \(4, 3\)"):
        evaluate(model, batches([4], spatial_concept_presence=presence[:, :2]))


def test_a_batch_without_a_key_counts_as_unknown():
    attention = torch.full((2, 2), 0.5)
    model = KnownOutputs(LOGITS[:2], attention)
    targets = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])
    whole = evaluate(model, batches([2], concept_targets=targets))
    first, second = batches([1, 1], concept_targets=targets)
    del second["concept_targets"]
    assert evaluate(model, [first, second]) == whole
    assert whole["alignment_error"] == pytest.approx(0.25)


def test_top5_accuracy_from_six_classes_on():
    for classes in (5, 6):
        logits = torch.arange(classes, dtype=torch.float32).expand(2, -1)
        values = evaluate(KnownOutputs(logits), batches([2], labels=torch.tensor([0, 1])))
        assert ("top5_accuracy" in values) == (classes > 5)
    assert values["top5_accuracy"] == 0.5 and values["accuracy"] == 0.0


def test_real_model_gets_its_mode_back_and_is_additive(make_config):
    config = make_config(num_labels=7)
    model = AscentViTForImageClassification(config).train()
    batch = {
        "pixel_values": torch.randn(6, 3, 48, 48),
        "labels": torch.arange(6),
        "concept_targets": torch.eye(3).repeat(2, 1),
        "spatial_concept_targets": torch.eye(4).repeat(6, 9, 1),
    }
    values = evaluate(model, [batch], progress=True)
    assert model.training
    assert set(values) == CONCEPT_METRICS | {"accuracy", "top5_accuracy", "macro_f1", "ece", "additivity_error"}
    assert values["additivity_error"] < 1e-6
    model.eval()
    with torch.no_grad():
        out = model(**batch)
    assert values["alignment_error"] == pytest.approx(out.alignment_loss.item(), abs=1e-6)
    assert values["accuracy"] == pytest.approx((out.logits.argmax(-1) == batch["labels"]).float().mean().item())


def test_real_model_in_bfloat16(make_config):
    model = AscentViTForImageClassification(make_config()).to(torch.bfloat16)
    values = evaluate(model, [{"pixel_values": torch.randn(2, 3, 48, 48), "labels": torch.tensor([0, 4])}])
    assert values["additivity_error"] < 0.1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels must be from 0 to 1, the model's classes; got 0 to 2"),
        ({"labels": torch.zeros(4, 2)}, "one class index per image"),
        ({"concept_targets": torch.zeros(4, 5)}, r"concept_targets must have the shape \(4, 3\).*got \(4, 5\)"),
    ],
)
def test_bad_targets(columns, message):
    with pytest.raises(ValueError, match=message):
        evaluate(KnownOutputs(LOGITS, torch.full((4, 3), 1 / 3)), batches([4], **columns))


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        evaluate(KnownOutputs(LOGITS), [])


def test_a_diverged_model_is_an_error_not_a_missing_metric():
    logits = LOGITS.clone()
    logits[2, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        evaluate(KnownOutputs(logits), batches([4], labels=LABELS))


def run_processes(number: int, folder: Path) -> list[dict]:
    """What `evaluate_in_processes.py` reports from each of so many processes."""
    script = Path(__file__).with_name("evaluate_in_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.run([*command, str(script), str(folder)], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]


@pytest.mark.slow
def test_two_processes_agree_with_one_though_the_last_batch_is_uneven(tmp_path):
    (alone,) = run_processes(1, tmp_path)
    metrics = CONCEPT_METRICS | {"presence_map", "presence_auroc", "accuracy", "macro_f1", "ece", "additivity_error"}
    assert set(alone["accelerate"]) == metrics
    assert alone["torchmetrics"] == alone["accelerate"]
    for together in run_processes(2, tmp_path):
        for way in ("accelerate", "torchmetrics"):
            assert together[way] == pytest.approx(alone[way], abs=1e-6)
        for way in ("evaluators", "evaluators_alone"):
            assert together[way] == {name: pytest.approx(value, abs=1e-5) for name, value in alone[way].items()}
            assert together[way]["insertion_deletion_images"] == together[way]["intervention_images"] == 11
