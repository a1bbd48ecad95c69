# SPDX-License-Identifier: Apache-2.0
"""Models as others get them: the model card."""

from .card import ModelCardContent, model_card, write_model_card


__all__ = ["ModelCardContent", "model_card", "write_model_card"]
