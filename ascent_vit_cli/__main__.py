# SPDX-License-Identifier: Apache-2.0
"""`python -m ascent_vit_cli`, for launchers such as torchrun that start a module."""

from .app import main


main()
