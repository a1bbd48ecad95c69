# SPDX-License-Identifier: Apache-2.0
"""What transformers' test mixins need before they are imported, see test_transformers_mixins.py; image processors."""

import os

import pytest


# transformers skips what it calls slow without this. Its tests bear the marker `slow` too, and here that decides.
os.environ.setdefault("RUN_SLOW", "1")

UPSTREAM_MARKERS = (
    "accelerate_tests",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "is_pipeline_test",
    "is_training_test",
    "order",
    "torch_compile_test",
)


def pytest_configure(config):
    for name in UPSTREAM_MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers' test mixins")


@pytest.fixture(params=["pil", "torchvision"])
def processor_class(request):
    """Each image processor that can run here."""
    if request.param == "pil":
        from modeling_ascent_vit import AscentViTImageProcessorPil

        return AscentViTImageProcessorPil
    pytest.importorskip("torchvision")
    from modeling_ascent_vit.image_processing_ascent_vit import AscentViTImageProcessor

    return AscentViTImageProcessor
