# SPDX-License-Identifier: Apache-2.0
"""Doubt: calibrated probabilities, sets of classes with a guarantee, foreign images, and what to ask a person."""

from .doubt import Doubt, Outcome, Question
from .safeguard import Safeguard


__all__ = ["Doubt", "Outcome", "Question", "Safeguard"]
