# SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest
import torch

from modeling_ascent_vit import AscentViTForImageClassification


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def edits():
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("edits", ROOT / "benchmarks" / "edits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fault_is_in_the_data_and_heads_train_on_given_tokens(edits, monkeypatch):
    trained = AscentViTForImageClassification.from_pretrained(ROOT / "hub" / "digits").eval()
    digits, targets = edits.load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8)
    faulty, sound = (edits.draw(trained, range(40), digits, targets, tied, [0]) for tied in (1.0, 0.5))
    assert torch.equal(faulty.grounds, faulty.labels) and not torch.equal(sound.grounds, sound.labels)
    assert torch.equal(faulty.concepts[:, :10].argmax(-1), torch.from_numpy(targets[:40]))
    assert torch.equal(faulty.concepts[:, 10:].argmax(-1), faulty.grounds)
    # Every patch is of the digit or of the ground, and red ground is red.
    assert torch.equal(faulty.places.sum(-1), torch.ones(40, 64))
    assert (faulty.pixels[faulty.grounds == 0, 0] > faulty.pixels[faulty.grounds == 0, 1]).double().mean() > 0.5

    model = edits.make_model(trained, 0, grounds=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(edits, "BATCH_SIZE", 8)
    edits.train(model, faulty, 2, 1e-2, 0, "test")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and not any(name.startswith("ascent_vit.") for name in changed)
    with torch.no_grad():
        torch.testing.assert_close(model.ascent_vit(faulty.pixels[:4]).last_hidden_state, faulty.tokens[:4])
    figures = edits.measure(model, sound)
    assert figures["worst_group"] == min(value for name, value in figures.items() if "ground" in name)
