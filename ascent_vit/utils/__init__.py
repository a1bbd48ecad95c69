# SPDX-License-Identifier: Apache-2.0
"""Files, formats and text that several rooms need: no knowledge of models or datasets."""
