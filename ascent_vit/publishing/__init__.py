# SPDX-License-Identifier: Apache-2.0
"""Models as others get them: the model card, the folder that is published, the Hub."""

from .card import ModelCardContent, model_card, write_model_card
from .publish import PublishedModel, PublishError, publish
from .source import PublishOptions
from .space import publish_space, run_space, stage_space
from .stage import StagedFile, stage


__all__ = [
    "ModelCardContent",
    "PublishError",
    "PublishOptions",
    "PublishedModel",
    "StagedFile",
    "model_card",
    "publish",
    "publish_space",
    "run_space",
    "stage",
    "stage_space",
    "write_model_card",
]
