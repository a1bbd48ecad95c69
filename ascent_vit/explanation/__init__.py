# SPDX-License-Identifier: Apache-2.0
"""Why the model says what it says: signed contributions of concepts, and where they were seen."""

from .explanation import ConceptContribution, Explanation, explain


__all__ = ["ConceptContribution", "Explanation", "explain"]
