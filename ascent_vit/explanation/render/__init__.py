# SPDX-License-Identifier: Apache-2.0
"""Draws explanations: figures, pages and tables."""
