# SPDX-License-Identifier: Apache-2.0
"""`train(RECIPE, OUTPUT, DATA)` in one of several processes, sharded with ACCELERATE_USE_FSDP=true."""

import os
import sys

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import load_from_disk

from ascent_vit.training import load_recipe, train


torch.set_num_threads(1)
if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    # Accelerate shards on accelerators alone. What it does there runs on a CPU as well, once it takes this for one.
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
train(load_recipe(sys.argv[1]), sys.argv[2], load_from_disk(sys.argv[3]), resume="resume" in sys.argv[4:])
sys.stdout.flush()
# A thread of torch that asks for the interpreter while it shuts down would abort the process.
os._exit(0)
