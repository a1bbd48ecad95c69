# SPDX-License-Identifier: Apache-2.0
"""Explanations drawn: figures, pages and tables."""
