# SPDX-License-Identifier: Apache-2.0
"""Draws summaries as a page."""
