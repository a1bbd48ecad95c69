# SPDX-License-Identifier: Apache-2.0
"""The plain backbone with a linear head, trained as `ascent-vit train` trains: same batches, schedule and choice."""

import copy
import time
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageClassification

from ascent_vit.data import concepts_from_features
from ascent_vit.evaluation import ClassMetrics
from ascent_vit.training.build import make_loader, split_dataset
from ascent_vit.training.optimisation import build_optimizer, build_scheduler, plan_steps
from ascent_vit.training.reading import processor_fields
from ascent_vit.training.recipe import Recipe
from modeling_ascent_vit import AscentViTConfig, AscentViTImageProcessor


def build_plain(
    recipe: Recipe, labels: list[str], global_concepts: list[str], spatial_concepts: list[str]
) -> tuple[Any, Any]:
    """
    The recipe's backbone with transformers' own linear head on its CLS token, and the recipe's image processor.

    The concepts are the dataset's: the image processor checks annotation, though nothing here is trained on it.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if recipe.backbone is not None:
        config = AutoConfig.from_pretrained(recipe.backbone, **names)
        # A pretrained head is of other classes.
        model = AutoModelForImageClassification.from_pretrained(
            recipe.backbone, config=config, ignore_mismatched_sizes=True
        )
    else:
        config = AutoConfig.for_model(**recipe.model["backbone_config"], **names)
        model = AutoModelForImageClassification.from_config(config)
    # A configuration needs concepts, though the dataset may have none.
    numbers = {"num_global_concepts": len(global_concepts) or 2, "num_spatial_concepts": len(spatial_concepts)}
    processor_config = AscentViTConfig(backbone_config=config, **numbers)
    return model, AscentViTImageProcessor.from_model_config(processor_config, **processor_fields(recipe))


@torch.no_grad()
def evaluate_plain(model: Any, loader: Iterable[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Class metrics as [`ascent_vit.evaluation.evaluate`] names them."""
    metrics = ClassMetrics(model.config.num_labels)
    training = model.training
    model.eval()
    for batch in loader:
        metrics.update(model(batch["pixel_values"]).logits.double().softmax(-1), batch["labels"])
    model.train(training)
    return {name: float(value) for name, value in metrics.compute().items()}


def train_plain(recipe: Recipe, dataset: Any) -> tuple[Any, Any, dict[str, Any]]:
    """
    Trains by a recipe on one process, and keeps the weights of the epoch that is best on validation.

    Returns:
        The model in evaluation mode, its image processor, and `steps` and `train_seconds`.
    """
    train, validation, _ = split_dataset(dataset, recipe.seed)
    set_seed(recipe.seed)
    model, processor = build_plain(recipe, *concepts_from_features(train.features))
    plan = plan_steps(recipe, len(train))
    batch_size = recipe.per_device_train_batch_size
    loader = make_loader(train, processor, recipe, batch_size, plan.steps_per_epoch * batch_size)
    validation_loader = make_loader(validation, processor, recipe, recipe.per_device_eval_batch_size)
    optimizer = build_optimizer(model, recipe)
    scheduler = build_scheduler(optimizer, recipe, plan)
    step, seconds, best, weights = 0, 0.0, None, {}
    with tqdm(total=plan.total_steps, desc="Training", unit="step") as bar:
        while step < plan.total_steps:
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(step // plan.steps_per_epoch)
            model.train()
            start = time.perf_counter()
            for batch in loader:
                model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                step += 1
                bar.update()
                if step == plan.total_steps:
                    break
            seconds += time.perf_counter() - start
            accuracy = evaluate_plain(model, validation_loader)["accuracy"]
            if best is None or accuracy > best:
                best, weights = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return model.eval(), processor, {"steps": step, "train_seconds": seconds}
