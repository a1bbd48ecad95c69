# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What logits say by the problem that a model solves: one class of an image, several, or values. All that shows a score asks here."""

from typing import Any, Literal

import torch


ScoreFunction = Literal["softmax", "sigmoid", "none"]


def score_function(config: Any) -> ScoreFunction:
    """
    The function that makes scores of logits, as transformers' own image-classification pipeline chooses it.

    Args:
        config (`PreTrainedConfig`): configuration of the model.

    Returns:
        `"none"` for regression, whose logits are the values; `"sigmoid"` where an image has several classes, or the model
        has one logit; `"softmax"` otherwise.
    """
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def class_scores(logits: torch.Tensor, function: ScoreFunction) -> torch.Tensor:
    """Scores of logits `(..., K)` by the function that [`score_function`] gives."""
    if function == "none":
        return logits
    return logits.sigmoid() if function == "sigmoid" else logits.softmax(-1)


def chosen_classes(logits: torch.Tensor, function: ScoreFunction) -> torch.Tensor:
    """
    The class of each image that stands for its prediction, `(..., K) -> (...)`: that of the highest score. Values of a
    regression are not compared: of these it is the first.
    """
    return logits.argmax(-1) if function != "none" else torch.zeros_like(logits[..., 0], dtype=torch.long)


__all__ = ["ScoreFunction", "chosen_classes", "class_scores", "score_function"]
