# SPDX-License-Identifier: Apache-2.0
"""Trains 3 steps of 16 random images by Trainer in one of several processes, and evaluates 11 in batches of 2.

FOLDER/settings.json has fields of TrainingArguments, beside them the model's `config`, its `seed` and the checkpoint
to `resume` from. Writes losses, metrics and what the model was wrapped in to FOLDER/result.json, the model to
FOLDER/model and checkpoints to FOLDER/run.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed

from ascent_vit.training import ConceptMetrics
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification


torch.set_num_threads(1)
folder = Path(sys.argv[1])
settings = json.loads((folder / "settings.json").read_text())
fields, seed, resume = settings.pop("config"), settings.pop("seed", 0), settings.pop("resume", None)
set_seed(seed)
model = AscentViTForImageClassification(AscentViTConfig(**fields))
set_seed(0)
rows = [
    {
        "pixel_values": torch.randn(3, 32, 32),
        "labels": torch.tensor(i % 4),
        # Annotations that are not the same in each part of a batch.
        "concept_targets": torch.eye(3)[i % 3] if i % 5 else torch.full((3,), torch.nan),
        "spatial_concept_targets": torch.eye(4)[torch.randint(0, 4, (16,))],
    }
    for i in range(59)
]
metrics = ConceptMetrics(model.config, ["labels", "concept_targets", "spatial_concept_targets"])
arguments = TrainingArguments(
    str(folder / "run"),
    max_steps=3,
    learning_rate=1e-3,
    adam_epsilon=1e-3,
    logging_steps=1,
    per_device_eval_batch_size=2,
    label_names=metrics.label_names,
    remove_unused_columns=False,
    disable_tqdm=True,
    use_cpu=True,
    **{"save_strategy": "no", **settings},
)
if arguments.fsdp:
    # Accelerate shards on accelerators alone. What it does there runs on a CPU as well, once it takes this for one.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
trainer = Trainer(model, arguments, train_dataset=rows[:48], eval_dataset=rows[48:], compute_metrics=metrics)
trainer._get_train_sampler = lambda dataset=None: SequentialSampler(rows[:48])
trainer.train(resume_from_checkpoint=resume, ignore_keys_for_eval=metrics.ignore_keys)
values = trainer.evaluate(ignore_keys=metrics.ignore_keys)
trainer.save_model(str(folder / "model"))
if trainer.is_world_process_zero():
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    values = {name: value for name, value in values.items() if "second" not in name and "runtime" not in name}
    result = {"losses": losses, "metrics": values, "wrapper": type(trainer.model_wrapped).__name__}
    (folder / "result.json").write_text(json.dumps(result))
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
sys.stdout.flush()
# A thread of torch that asks for the interpreter while it shuts down would abort the process.
os._exit(0)
