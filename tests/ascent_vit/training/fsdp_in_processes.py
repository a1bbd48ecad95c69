# SPDX-License-Identifier: Apache-2.0
"""Trains 3 steps by Accelerate's FSDP2 in two processes, and saves the model to FOLDER/model.

Accelerate shards on accelerators alone. What it does there runs on a CPU as well, once its state says so.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, set_seed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification


torch.set_num_threads(1)
folder = Path(sys.argv[1])
settings = json.loads((folder / "settings.json").read_text())
accelerator = Accelerator(cpu=True)
if accelerator.num_processes > 1:
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type="SHARDED_STATE_DICT",
        activation_checkpointing=settings["activation_checkpointing"],
        cpu_ram_efficient_loading=False,
    )
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
set_seed(0)
model = AscentViTForImageClassification(AscentViTConfig(**settings["config"])).train()
rows = [(torch.randn(3, 32, 32), torch.tensor(i % 4), torch.eye(4)[torch.randint(0, 4, (16,))]) for i in range(48)]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
loader = torch.utils.data.DataLoader(rows, 16 // accelerator.num_processes)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)


def train_steps(batches) -> list[float]:
    losses = []
    for pixels, labels, targets in batches:
        loss = model(pixels, labels=labels, spatial_concept_targets=targets).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    return losses


losses = train_steps(loader)
bare = accelerator.unwrap_model(model)
weights = accelerator.get_state_dict(model)
if accelerator.is_main_process:
    bare.save_pretrained(folder / "model", state_dict=weights)
accelerator.wait_for_everyone()
accelerator.save_state(str(folder / "checkpoint"))
once = train_steps(loader)
accelerator.load_state(str(folder / "checkpoint"))
again = train_steps(loader)
sharded = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
pieces = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
if accelerator.is_main_process:
    result = {
        "losses": losses,
        "once": once,
        "again": again,
        "sharded": sharded,
        "local": sum(piece.to_local().numel() for piece in pieces),
        "all": sum(parameter.numel() for parameter in model.parameters()),
    }
    (folder / "result.json").write_text(json.dumps(result))
accelerator.wait_for_everyone()
accelerator.end_training()
sys.stdout.flush()
# A thread of torch that asks for the interpreter while it shuts down would abort the process.
os._exit(0)
