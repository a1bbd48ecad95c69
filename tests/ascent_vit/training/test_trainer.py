# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning by transformers' own Trainer, on a few digits and a model of two layers."""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, load_sharded_checkpoint
from transformers.utils import logging as transformers_logging

from ascent_vit.data import ConceptCollator, load_digits_dataset
from ascent_vit.evaluation import evaluate
from ascent_vit.training import ConceptMetrics
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


BACKBONES = ["vit", "deit", "dinov2", "siglip_vision_model"]
DIGITS = [f"digit {i}" for i in range(10)]
CONCEPTS = {"global_concepts": DIGITS, "spatial_concepts": DIGITS}


@pytest.fixture(scope="module")
def digits() -> DatasetDict:
    dataset = load_digits_dataset(copies=1, canvas=48)
    return DatasetDict(train=dataset["train"].select(range(16)), validation=dataset["validation"].select(range(11)))


@pytest.fixture
def make_model(make_config) -> Callable[..., AscentViTForImageClassification]:
    def make(backbone: str = "vit", seed: int = 0, **kwargs):
        torch.manual_seed(seed)
        kwargs = {"num_labels": 2, "pyramid_norm": "group", **CONCEPTS} | kwargs
        return AscentViTForImageClassification(make_config(backbone, **kwargs))

    return make


class Recorder(TrainerCallback):
    """Keeps a copy of the weights at each checkpoint."""

    def __init__(self):
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_save(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = copy_of(model)


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], part: str = "") -> bool:
    names = [name for name in first if part in name]
    assert names and first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in names)


def collator(model: torch.nn.Module) -> ConceptCollator:
    return ConceptCollator(AscentViTImageProcessor.from_model_config(model.config))


def trainer(model: torch.nn.Module, digits: DatasetDict, folder: Path, **kwargs) -> Trainer:
    own = {name: kwargs.pop(name) for name in ("data_collator", "compute_metrics", "callbacks") if name in kwargs}
    values = {
        "learning_rate": 3e-3,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    arguments = TrainingArguments(str(folder), **(values | kwargs))
    own = {"data_collator": collator(model), **own}
    return Trainer(model, arguments, train_dataset=digits["train"], eval_dataset=digits["validation"], **own)


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_labels_alone(make_model, digits, tmp_path):
    model = make_model()
    processor = AscentViTImageProcessor.from_model_config(model.config)

    def images_and_labels(rows):
        batch = ConceptCollator(processor)(rows)
        return {name: batch[name] for name in ("pixel_values", "labels")}

    values = {"data_collator": images_and_labels, "compute_metrics": ConceptMetrics(model.config)}
    run = trainer(model, digits, tmp_path, eval_strategy="steps", eval_steps=1, max_steps=6, **values)
    run.train()
    assert [entry["step"] for entry in run.state.log_history if "eval_accuracy" in entry] == list(range(1, 7))
    metrics = run.evaluate()
    loader = DataLoader(digits["validation"], 4, collate_fn=images_and_labels)
    expected = evaluate(model, loader)
    assert expected.keys() - {"additivity_error"} == {"accuracy", "macro_f1", "ece"}
    assert {name: metrics[f"eval_{name}"] for name in ("accuracy", "macro_f1", "ece")} == pytest.approx(
        {name: expected[name] for name in ("accuracy", "macro_f1", "ece")}
    )
    assert "eval_alignment_error" not in metrics
    prediction = run.predict(digits["validation"])
    assert prediction.predictions.shape == (11, 2) and prediction.label_ids.shape == (11,)


@pytest.mark.parametrize("at_once", [True, False])
def test_full_supervision_and_every_metric(make_model, digits, tmp_path, at_once):
    model = make_model(alignment_loss="kl", entropy_loss_weight=0.0, concept_loss_weight=5.0)
    metrics = ConceptMetrics(model.config, ["labels", "concept_targets", "spatial_concept_targets"])
    run = trainer(
        model,
        digits,
        tmp_path,
        compute_metrics=metrics,
        label_names=metrics.label_names,
        batch_eval_metrics=not at_once,
        eval_strategy="steps",
        eval_steps=20,
        max_steps=40,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
    )
    run.train(ignore_keys_for_eval=metrics.ignore_keys)
    assert np.mean(losses(run)[-5:]) < 0.9 * np.mean(losses(run)[:5])
    expected = evaluate(model, DataLoader(digits["validation"], 4, collate_fn=collator(model)))
    expected.pop("additivity_error")
    assert {"accuracy", "concept_map", "concept_auroc", "pixel_tpr", "alignment_error"} <= expected.keys()
    # Once more: nothing of the evaluations before is left.
    got = run.evaluate(ignore_keys=metrics.ignore_keys)
    assert {name: got[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert got["eval_loss"] > 0


def test_concepts_are_judged_as_label_names_list_them(make_model, digits, tmp_path):
    model = make_model()
    metrics = ConceptMetrics(model.config, ["concept_targets", "labels"])
    assert metrics.ignore_keys == [
        name for name in model.config.keys_to_ignore_at_inference if name != "global_concept_attention"
    ]
    run = trainer(model, digits, tmp_path, compute_metrics=metrics, label_names=metrics.label_names)
    prediction = run.predict(digits["validation"], ignore_keys=metrics.ignore_keys)
    assert [part.shape for part in prediction.predictions] == [(11, 2), (11, 10)]
    assert {"test_accuracy", "test_concept_map"} <= prediction.metrics.keys()
    assert not {"test_pixel_tpr", "test_alignment_error"} & prediction.metrics.keys()
    with pytest.raises(ValueError, match="need logits, global_concept_attention of the model.*as ignore_keys"):
        run.evaluate()
    run = trainer(model, digits, tmp_path, compute_metrics=metrics)
    with pytest.raises(
        ValueError, match="judge concept_targets, labels, but .* shapes \\(11,\\): pass the same label_"
    ):
        run.evaluate(ignore_keys=metrics.ignore_keys)
    run = trainer(model, digits, tmp_path, compute_metrics=metrics, label_names=["labels", "concept_targets"])
    with pytest.raises(ValueError, match="shapes \\(11,\\), \\(11, 10\\): pass the same label_names"):
        run.evaluate(ignore_keys=metrics.ignore_keys)


def test_lists_are_judged_beside_places_and_without(make_config):
    config = make_config(num_labels=2, spatial_concepts=["a", "b"])
    logits, labels = np.eye(2, dtype=np.float32), np.arange(2)
    attention = np.array([[[0.9, 0.1], [0.2, 0.3]], [[0.5, 0.5], [0.4, 0.1]]], dtype=np.float32)
    presence = np.array([[1, 0], [0, 1]], dtype=np.float32)
    metrics = ConceptMetrics(config, ["labels", "spatial_concept_presence"])
    assert "spatial_concept_attention" not in metrics.ignore_keys
    values = metrics(EvalPrediction((logits, attention), (labels, presence)))
    assert (values["presence_map"], values["presence_auroc"]) == (1, 1)
    assert not {"pixel_tpr", "alignment_error"} & values.keys()
    metrics = ConceptMetrics(config, ["labels", "spatial_concept_presence", "spatial_concept_targets"])
    values = metrics(EvalPrediction((logits, attention), (labels, presence, np.round(attention))))
    assert {"presence_map", "pixel_tpr", "alignment_error"} <= values.keys()
    with pytest.raises(ValueError, match=r"shapes \(2,\), \(2, 2, 2\), \(2, 2\): pass the same label_names"):
        metrics(EvalPrediction((logits, attention), (labels, np.round(attention), presence)))


def test_metrics_that_a_model_cannot_have(make_config):
    config = make_config(num_labels=2, spatial_concepts=["a", "b"])
    for names, got in ((["labels", "concept_targets"], "labels, concept_targets"), ([], "nothing")):
        with pytest.raises(ValueError, match=f"labels, spatial_concept_targets, spatial_concept_presence; got {got}"):
            ConceptMetrics(config, names)
    with pytest.raises(ValueError, match="must list labels"):
        ConceptMetrics(config, ["labels", "labels"])
    with pytest.raises(ValueError, match="at least 2 classes; this one has 1"):
        ConceptMetrics(make_config(num_labels=1, spatial_concepts=["a", "b"]))
    logits = np.array([[0.0, np.nan]], dtype=np.float32)
    with pytest.raises(ValueError, match="logits are not finite"):
        ConceptMetrics(config)(EvalPrediction(logits, np.array([1])))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_best_model_is_restored_tensor_by_tensor(make_model, digits, tmp_path, backbone):
    model, recorder, numbers = make_model(backbone), Recorder(), itertools.count()
    run = trainer(
        model,
        digits,
        tmp_path,
        callbacks=[recorder],
        max_steps=6,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        # The first evaluation is the best.
        compute_metrics=lambda prediction: {"number": next(numbers)},
        metric_for_best_model="eval_number",
        greater_is_better=False,
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    weights = recorder.weights
    assert same(copy_of(run.model), weights[2])
    assert not same(weights[2], weights[6], "ascent_vit.backbone.") and not same(
        weights[2], weights[6], "spatial_stream"
    )
    again = AscentViTForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert same(copy_of(again), weights[2])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_resumed_run_equals_an_undisturbed_one_tensor_by_tensor(make_model, digits, tmp_path, backbone, pretrained):
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    model, recorder = make_model(backbone, pyramid_norm="batch"), Recorder()
    other = make_model(backbone, seed=1, pyramid_norm="batch")
    if pretrained:
        for number, item in enumerate((model, other)):
            item.save_pretrained(tmp_path / str(number))
        model, other = (AscentViTForImageClassification.from_pretrained(tmp_path / name) for name in "01")
    trainer(model, digits, tmp_path / "run", callbacks=[recorder], **values).train()

    run = trainer(other, digits, tmp_path / "again", **values)
    assert not same(copy_of(other), recorder.weights[2], "ascent_vit.backbone.")
    run._load_from_checkpoint(str(tmp_path / "run" / "checkpoint-2"))
    assert same(copy_of(other), recorder.weights[2])
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert same(copy_of(other), recorder.weights[4]) and not same(copy_of(other), recorder.weights[2])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_plain_torch_loads_what_was_saved(make_model, tmp_path, backbone):
    model, other = make_model(backbone), make_model(backbone, seed=1)
    model.save_pretrained(tmp_path / "whole")
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    assert str(other.load_state_dict(saved)) == "<All keys matched successfully>"
    assert same(copy_of(other), copy_of(model))

    other = make_model(backbone, seed=1)
    other.load_state_dict(model.state_dict(), assign=True)
    assert all(
        left.data_ptr() == right.data_ptr() for left, right in zip(other.parameters(), model.parameters(), strict=True)
    )
    other = make_model(backbone, seed=1)
    model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    load_sharded_checkpoint(other, str(tmp_path / "shards"), strict=False)
    assert same(copy_of(other), copy_of(model))

    name = min(name for name in saved if name.startswith("ascent_vit.backbone.") and "layer" in name)
    tensor = saved.pop(name)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(saved)
    assert len(other.load_state_dict(saved, strict=False).missing_keys) == 1
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "stray"'):
        other.load_state_dict(saved | {name: tensor, "stray": tensor})
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(saved | {name: torch.zeros(1, 2, 3, 4, 5)})


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion_levels", [0, 3])
def test_sharding_finds_every_class_that_it_must_not_split(make_model, backbone, fusion_levels):
    model = make_model(backbone, fusion_levels=fusion_levels)
    classes = {type(module).__name__ for module in model.modules()}
    assert "AscentViTConceptStream" in model._no_split_modules and model._no_split_modules <= classes
    # What FSDP shards on its own must not lie within what it has sharded as a whole.
    embeddings = model.get_input_embeddings()
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            assert module is embeddings or embeddings not in set(module.modules())


def test_accumulated_batches_equal_one_batch(make_model, digits, tmp_path):
    values = {"adam_epsilon": 1e-3, "max_grad_norm": 0.0}
    whole, parts, start = make_model(), make_model(), copy_of(make_model())
    first = trainer(whole, digits, tmp_path, per_device_train_batch_size=8, **values)
    second = trainer(parts, digits, tmp_path, gradient_accumulation_steps=2, **values)
    first.train(), second.train()
    assert losses(second) == pytest.approx(losses(first), rel=1e-5)
    expected = copy_of(whole)
    for name, tensor in copy_of(parts).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-4


def test_activation_checkpointing_and_bfloat16(make_model, digits, tmp_path):
    models = {name: make_model(seed=0) for name in ("plain", "checkpointed", "bf16")}
    kwargs = {"checkpointed": {"activation_checkpointing": True}, "bf16": {"bf16": True}}
    runs = {name: trainer(model, digits, tmp_path, **kwargs.get(name, {})) for name, model in models.items()}
    for run in runs.values():
        run.train()
    assert models["checkpointed"].is_activation_checkpointing
    plain, checkpointed, reduced = (copy_of(model) for model in models.values())
    assert same(plain, checkpointed)
    assert {parameter.dtype for parameter in models["bf16"].parameters()} == {torch.float32}
    assert not same(plain, reduced)
    assert losses(runs["bf16"]) == pytest.approx(losses(runs["plain"]), rel=0.05)
    assert np.isfinite(runs["bf16"].evaluate()["eval_loss"])


def test_new_classes_and_new_concepts(make_model, digits, tmp_path):
    old = make_model(num_labels=5, global_concepts=["a", "b"], spatial_concepts=["c", "d", "e"])
    old.save_pretrained(tmp_path / "old")
    model = AscentViTForImageClassification.from_pretrained(
        tmp_path / "old", num_labels=2, ignore_mismatched_sizes=True, **CONCEPTS
    )
    assert model.config.global_concepts == CONCEPTS["global_concepts"]
    before, after = old.state_dict(), model.state_dict()
    mismatched = [name for name in after if after[name].shape != before[name].shape]
    assert sorted(mismatched) == sorted(
        f"{stream}_stream.{part}"
        for stream in ("global", "spatial")
        for part in ("concepts", "projection.weight", "projection.bias")
    )
    assert all(torch.equal(after[name], before[name]) for name in after if name not in mismatched)
    assert all(after[name].isfinite().all() for name in mismatched)
    assert all(after[name].std() > 0 for name in mismatched if not name.endswith("bias"))
    run = trainer(model, digits, tmp_path / "run")
    run.train()
    assert run.predict(digits["validation"]).predictions.shape == (11, 2)


def test_a_frozen_backbone(make_model, digits, tmp_path):
    model = make_model()
    model.ascent_vit.backbone.requires_grad_(False)
    before = copy_of(model)
    trainer(model, digits, tmp_path).train()
    after = copy_of(model)
    assert same(before, after, "ascent_vit.backbone.")
    others = [name for name in before if not name.startswith("ascent_vit.backbone.")]
    assert sum(not torch.equal(before[name], after[name]) for name in others) > 0.9 * len(others)


def test_lora_on_the_backbone(make_model, digits, tmp_path):
    peft = pytest.importorskip("peft")
    base = make_model()
    before = copy_of(base)
    adapter = peft.LoraConfig(
        r=4, target_modules=r"ascent_vit\.backbone\..*\.(q_proj|v_proj)", modules_to_save=base.new_parts()
    )
    data_collator, recorder = collator(base), Recorder()
    model = peft.get_peft_model(base, adapter)
    values = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = trainer(
        model,
        digits,
        tmp_path,
        data_collator=data_collator,
        callbacks=[recorder],
        label_names=["labels"],
        **values,
        **best,
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-1")
    assert same(copy_of(model), recorder.weights[1]) and not same(recorder.weights[1], recorder.weights[2])
    assert not (tmp_path / "checkpoint-1" / "model.safetensors").exists()

    pixels = data_collator(list(digits["validation"]))["pixel_values"]
    model.eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AscentViTForImageClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, expected, rtol=1e-4, atol=1e-5)
    after = copy_of(again)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    of_backbone = {name for name in changed if name.startswith("ascent_vit.backbone.")}
    assert of_backbone == {name for name in before if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert "spatial_stream.concepts" in changed and "ascent_vit.fusion.gamma" in changed
    fresh = make_model(seed=1)
    fresh.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    assert same(copy_of(fresh), after)


def test_lora_trains_and_saves_every_new_part(make_model, digits, tmp_path):
    """All but the backbone, in a model of all parts: each tensor has moved, and comes back with the adapter."""
    peft = pytest.importorskip("peft")
    parts = {"global_token": "pool", "num_unsupervised_concepts": 3, "none_concept": True}
    base = make_model(**parts)
    before, data_collator = copy_of(base), collator(base)
    names = {"ascent_vit.encoding", "ascent_vit.fusion", "token_pool"}
    assert set(base.new_parts()) == names | {"global_stream", "spatial_stream", "unsupervised_stream"}
    adapter = peft.LoraConfig(
        target_modules=r"ascent_vit\.backbone\..*\.(q_proj|v_proj)", modules_to_save=base.new_parts()
    )
    model = peft.get_peft_model(base, adapter)
    # The fusion's parts move one after the other: gamma starts at 0, and the sampling's weights.
    trainer(model, digits, tmp_path, data_collator=data_collator, label_names=["labels"], max_steps=4).train()
    model.save_pretrained(tmp_path / "adapter")
    merged = copy_of(model.merge_and_unload())
    new = [name for name in before if not name.startswith("ascent_vit.backbone.")]
    assert [name for name in new if torch.equal(before[name], merged[name])] == []
    loaded = peft.PeftModel.from_pretrained(make_model(**parts), tmp_path / "adapter")
    assert same(copy_of(loaded.merge_and_unload()), merged)


def test_the_last_checkpoint_is_found_and_resumed(make_model, digits, tmp_path):
    values = {"save_strategy": "steps", "save_steps": 1}
    trainer(make_model(), digits, tmp_path, max_steps=2, **values).train()
    assert get_last_checkpoint(str(tmp_path)).endswith("checkpoint-2")
    run = trainer(make_model(seed=1), digits, tmp_path, max_steps=3, **values)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 3


def hear(monkeypatch, caplog) -> None:
    monkeypatch.setattr(logging.getLogger("modeling_ascent_vit"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # Said once in a process otherwise.
    type(transformers_logging.get_logger("")).warning_once.cache_clear()


@pytest.mark.parametrize("way", ["label_smoothing_factor", "compute_loss_func"])
def test_what_replaces_the_loss_says_what_to_set(way, make_model, digits, tmp_path, monkeypatch, caplog):
    hear(monkeypatch, caplog)
    options = {"label_smoothing_factor": 0.1} if way == "label_smoothing_factor" else {}
    run = trainer(make_model(), digits, tmp_path, **options)
    if way == "compute_loss_func":
        run.compute_loss_func = lambda outputs, labels, **kwargs: outputs.logits.logsumexp(-1).mean()
    run.train()
    said = [record.getMessage() for record in caplog.records if "drops the loss of concepts" in record.getMessage()]
    assert len(said) == 1 and "set label_smoothing or class_weights of the model's config" in said[0]


def test_smoothing_of_the_model_keeps_the_concepts(make_model, digits, tmp_path, monkeypatch, caplog):
    hear(monkeypatch, caplog)
    run = trainer(make_model(label_smoothing=0.1), digits, tmp_path)
    run.train()
    assert not [record for record in caplog.records if "drops the loss of concepts" in record.getMessage()]
    gradients = run.model.spatial_stream.concepts.grad
    assert gradients is None or gradients.isfinite().all()
    batch = collator(run.model)([digits["train"][0]])
    outputs = run.model.train()(**batch)
    config = run.model.config
    expected = outputs.class_loss + config.concept_loss_weight * outputs.alignment_loss
    torch.testing.assert_close(outputs.loss, expected + config.entropy_loss_weight * outputs.entropy_loss)
