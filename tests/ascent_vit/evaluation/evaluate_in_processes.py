# SPDX-License-Identifier: Apache-2.0
"""Evaluates 11 images in batches of 3 in one of several processes, and writes the metrics to FOLDER/RANK.json."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from ascent_vit.evaluation import Faithfulness, Intervention, Randomisation, Robustness, evaluate
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification


accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
backbone_config = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
config = AscentViTConfig(
    backbone_config=backbone_config, num_global_concepts=3, num_spatial_concepts=4, num_labels=4, fusion_heads=4
)
model = AscentViTForImageClassification(config)
rows = [
    {
        "pixel_values": torch.randn(3, 32, 32),
        "labels": torch.tensor(i % 4),
        "concept_targets": torch.eye(3)[i % 3],
        "spatial_concept_targets": torch.eye(4)[torch.randint(0, 4, (16,))],
        "spatial_concept_presence": torch.tensor([0, 1, 1, torch.nan]).roll(i),
    }
    for i in range(11)
]

prepared = accelerator.prepare(torch.utils.data.DataLoader(rows, batch_size=3))
metrics = {"accelerate": evaluate(accelerator.prepare(model), prepared, accelerator)}
own_rows = rows[accelerator.process_index :: accelerator.num_processes]
metrics["torchmetrics"] = evaluate(model, torch.utils.data.DataLoader(own_rows, batch_size=3))
evaluators = (Faithfulness(steps=4), Intervention(steps=4), Robustness(), Randomisation())
metrics["evaluators"] = {}
for evaluator in evaluators:
    metrics["evaluators"] |= evaluator(accelerator.prepare(model), prepared, accelerator)
metrics["evaluators_alone"] = {}
for evaluator in evaluators:
    metrics["evaluators_alone"] |= evaluator(model, torch.utils.data.DataLoader(own_rows, batch_size=3))
(Path(sys.argv[1]) / f"{accelerator.process_index}.json").write_text(json.dumps(metrics))
accelerator.end_training()
