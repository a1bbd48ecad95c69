# SPDX-License-Identifier: Apache-2.0
"""
Attempts at a training run, each in a process of its own that has all imports from its parent.

Arguments are a folder with a recipe and a dataset, and the output folder. Each line of standard input starts an
attempt and is answered with its process id, then, when it has ended, with its exit code.
"""

import os
import sys
from pathlib import Path

import torch
from datasets import load_from_disk

from ascent_vit.training import load_recipe, train


def main() -> None:
    torch.set_num_threads(1)
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    recipe, dataset = load_recipe(folder / "recipe.yaml"), load_from_disk(str(folder / "data"))
    for _ in sys.stdin:
        attempt = os.fork()
        if attempt == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            train(recipe, output, dataset, resume=True)
            os._exit(0)
        print(attempt, flush=True)
        _, status = os.waitpid(attempt, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
