# SPDX-License-Identifier: Apache-2.0
"""One model that many threads use at once: each gets what it would get alone, bit by bit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from ascent_vit import explain, intervene
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


THREADS, ROUNDS = 8, 2


@pytest.fixture
def model_and_processor(make_config):
    config = make_config(none_concept=True, global_token="cls_mean")
    model = AscentViTForImageClassification(config).eval()
    with torch.no_grad():
        model.ascent_vit.fusion.gamma.fill_(0.5)
        for stream in model.streams().values():
            stream.projection.bias.normal_()
            stream.concepts.mul_(20)
    return model, AscentViTImageProcessor.from_model_config(config)


def images(number: int = THREADS) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + i, 70 - i, 3), dtype=np.uint8)) for i in range(number)]


def numbers(value) -> list[np.ndarray]:
    """Every number of a result, in a fixed order."""
    if isinstance(value, torch.Tensor):
        return [value.numpy()]
    if isinstance(value, dict):
        return [array for key in value for array in numbers(value[key])]
    if isinstance(value, list | tuple):
        return [array for item in value for array in numbers(item)]
    if hasattr(value, "before"):
        return numbers([value.before, value.after])
    if hasattr(value, "patch_contributions"):
        maps = [value.logits, value.contributions, value.head_attention, value.patch_attention_heads]
        return [*maps, value.contribution_maps]
    return [] if value is None or isinstance(value, str) else [np.asarray(value)]


def calls(model, processor) -> dict:
    """Uses of a model, each a function of the number of its thread."""
    pictures = images()
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    classify = pipeline("image-classification", model=model, image_processor=processor)
    explain_all = pipeline("concept-image-classification", model=model, image_processor=processor)
    nan = float("nan")

    def forward(i, **options):
        with torch.no_grad():
            return dict(model(pixels[i : i + 1], return_dict=True, **options))

    return {
        "forward": forward,
        "contributions": lambda i: forward(i, output_contributions=True, output_concept_heads=True),
        "fusion and backbone": lambda i: {
            key: value
            for key, value in forward(i, output_fusion=True, output_hidden_states=True).items()
            if key != "hidden_states" or len(value) == 3
        },
        "override": lambda i: forward(i, global_concept_override=torch.tensor([[i / THREADS, nan, 0.0]])),
        "another size": lambda i: dict(
            model(torch.ones(2, 3, 8 * (6 + i), 64), interpolate_pos_encoding=True, return_dict=True)
        ),
        "gradient": lambda i: torch.autograd.grad(
            model(pixels[i : i + 1], labels=torch.tensor([i % 5])).loss, model.global_stream.concepts
        ),
        "contribution maps": lambda i: model.contribution_maps(pixels[i : i + 1], [0, i % 5]).detach(),
        "explain": lambda i: explain(model, processor, pictures[i], i % 5),
        "intervene": lambda i: intervene(
            model, processor, pictures[i], {("global", model.config.global_concepts[i % 3]): "absent"}
        ),
        "pipeline": lambda i: classify(pictures[i], top_k=5),
        "concept pipeline": lambda i: explain_all(pictures[i], top_k=1 + i % 5, top_concepts=None, maps=True),
    }


def as_plain(value):
    """Without what a tensor remembers of how it was made."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, list | tuple) else value


def assert_threads_get_what_one_gets(work):
    """Results of `work(0)` to `work(7)` one after another, and in threads that start together, are the same bits."""
    barrier = threading.Barrier(THREADS)

    def start(i: int):
        barrier.wait()
        return [as_plain(work(i)) for _ in range(ROUNDS)]

    alone = [numbers(as_plain(work(i))) for i in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(start, range(THREADS)))
    for results, expected in zip(together, alone, strict=True):
        for result in map(numbers, results):
            assert len(result) == len(expected) > 0
            for left, right in zip(result, expected, strict=True):
                np.testing.assert_array_equal(left, right)


def test_eight_threads_get_what_one_gets(model_and_processor):
    for work in calls(*model_and_processor).values():
        assert_threads_get_what_one_gets(work)


def test_threads_that_do_different_things_do_not_disturb_each_other(model_and_processor):
    uses = list(calls(*model_and_processor).values())
    # Each thread goes through all uses, beginning with another one.
    assert_threads_get_what_one_gets(lambda i: [as_plain(uses[(i + j) % len(uses)](i)) for j in range(len(uses))])
