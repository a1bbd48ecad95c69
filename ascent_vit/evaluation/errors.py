# SPDX-License-Identifier: Apache-2.0
"""What an evaluation raises."""


class NotApplicableError(ValueError):
    """An evaluator cannot judge this model on this data; the message says why."""


__all__ = ["NotApplicableError"]
