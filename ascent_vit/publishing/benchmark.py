# SPDX-License-Identifier: Apache-2.0
"""Results for the leaderboards of the Hub's benchmarks, which are datasets with a file `eval.yaml`."""

from collections.abc import Mapping
from typing import Any


TASKS_FILE = "eval.yaml"
METRIC = "accuracy"


def benchmark_tasks(dataset_id: str) -> list[str]:
    """
    Ids of the tasks of a benchmark of the Hub, whose `eval.yaml` is fetched.

    Raises:
        ValueError: for a dataset that is no benchmark, or cannot be reached.
    """
    import yaml
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import HfHubHTTPError, httpx

    try:
        with open(hf_hub_download(dataset_id, TASKS_FILE, repo_type="dataset"), encoding="utf-8") as file:
            return [task["id"] for task in yaml.safe_load(file)["tasks"]]
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ValueError(f"--benchmark: there is no {TASKS_FILE} of {dataset_id} to be had from the Hub.") from error
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"--benchmark: the {TASKS_FILE} of {dataset_id} names no tasks.") from error


def benchmark_result(benchmark: str, figures: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """
    Writes a model's accuracy as a result of a benchmark, in the YAML of `.eval_results/`.

    Args:
        benchmark: `USER/NAME:TASK`, the benchmark and the id of one of its tasks.
        figures: measured figures of the model.
        facts: what else the metrics file says, as `split` and `seed`.

    Raises:
        ValueError: for a task that the benchmark does not have, or figures without accuracy.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    dataset_id, _, task_id = benchmark.partition(":")
    if METRIC not in figures:
        raise ValueError(f"--benchmark needs {METRIC} among the figures of the run, and it is not there.")
    tasks = benchmark_tasks(dataset_id)
    if task_id not in tasks:
        raise ValueError(f"--benchmark: {dataset_id} has no task {task_id!r}; it has {', '.join(map(str, tasks))}.")
    notes = [METRIC, *(f"{key} {facts[key]}" for key in ("split", "seed") if facts.get(key) is not None)]
    entry = EvalResultEntry(dataset_id=dataset_id, task_id=task_id, value=figures[METRIC], notes=", ".join(notes))
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)


__all__ = ["benchmark_result"]
