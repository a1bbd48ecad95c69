# SPDX-License-Identifier: Apache-2.0
"""Trainer's push_to_hub, to a Hub on the loopback interface."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


TESTS = Path(__file__).parents[2]

PUSH = """
import torch
from transformers import Trainer, TrainingArguments
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification, AscentViTImageProcessor
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
backbone = {"model_type": "vit", "image_size": 32, "patch_size": 8, **sizes}
config = AscentViTConfig(backbone_config=backbone, spatial_concepts=["beak", "wing"], num_labels=3, fusion_heads=4)
model = AscentViTForImageClassification(config)
rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": torch.tensor(i % 3)} for i in range(4)]
arguments = TrainingArguments(
    "run", max_steps=2, save_steps=1, use_cpu=True, disable_tqdm=True, push_to_hub=True, hub_model_id="ann/birds"
)
processor = AscentViTImageProcessor.from_model_config(config)
trainer = Trainer(model, arguments, train_dataset=rows, processing_class=processor)
trainer.train()
trainer.push_to_hub()
torch.save(model.state_dict(), "weights.pt")
"""
LOAD = """
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("ann/birds", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
processor = AutoImageProcessor.from_pretrained("ann/birds", trust_remote_code=True)
expected = torch.load("weights.pt", weights_only=True)
weights = model.state_dict()
assert weights.keys() == expected.keys()
assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
assert model.config.spatial_concepts == ["beak", "wing"] and processor.num_spatial_concepts == 2
"""


@pytest.mark.slow
def test_trainer_pushes_a_model_that_loads_as_remote_code(tmp_path):
    spec = importlib.util.spec_from_file_location("hub_double_of_trainer", TESTS / "hub_double.py")
    hub_double = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = hub_double
    spec.loader.exec_module(hub_double)
    with hub_double.hub_double() as hub:
        for name, program in (("push", PUSH), ("load", LOAD)):
            environment = os.environ | hub.environment(tmp_path / name) | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", program]
            run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
        files = hub.files("ann/birds")
    assert {"config.json", "model.safetensors", "README.md", "modeling_ascent_vit.py"} <= files.keys()
    assert not [name for name in files if name.startswith("checkpoint-")]
