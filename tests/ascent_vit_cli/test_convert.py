# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit convert`, with the weights of a tiny ViT in timm's layout."""

import json
import os

import pytest
import torch
from transformers import AutoModelForImageClassification

from ascent_vit_cli.app import run


@pytest.fixture
def checkpoint(tmp_path):
    shapes = {"cls_token": (1, 1, 64), "pos_embed": (1, 5, 64), "patch_embed.proj.weight": (64, 3, 8, 8)}
    layers = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (96, 64), "mlp.fc2": (64, 96)}
    for name, shape in {f"blocks.0.{n}": s for n, s in layers.items()}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        shapes |= {f"{name}.weight": (64,), f"{name}.bias": (64,)}
    shapes |= {"patch_embed.proj.bias": (64,), "head.weight": (3, 64), "head.bias": (3,)}
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def one_error(capsys) -> str:
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: "))
    return line


def test_convert(checkpoint, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"labels": ["a", "b", "c"], "num_spatial_concepts": 4, "image_mean": [0.4] * 3}))
    words = ["convert", str(checkpoint), "--from", "timm", "--output", str(tmp_path / "out")]
    assert run([*words, "--config", str(config), "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "Assumed, as neither the checkpoint nor --config tells: backbone.num_heads = 1" in shown
    assert "image_std = [0.5, 0.5, 0.5]" in shown and "image_mean" not in shown
    assert "Dropped, as no output depends on it: head.bias" in shown
    assert "Note: The concept head is new and not trained" in shown and f"Model: {tmp_path / 'out'}" in shown
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    state = torch.load(checkpoint)
    keys = model.ascent_vit.backbone.layers[0].attention.k_proj.weight
    torch.testing.assert_close(keys, state["blocks.0.attn.qkv.weight"][64:128], rtol=0, atol=0)
    assert {"README.md", "config.json", "conversion.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (report["source"], report["seed"], report["dropped"]) == ("tiny.pth", 3, ["head.weight", "head.bias"])
    written = "".join(p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix in (".md", ".json"))
    assert str(tmp_path) not in written

    assert run(words) == 2
    assert "is not empty: name another one" in one_error(capsys)


def test_an_empty_folder_is_taken(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    assert run(["convert", str(checkpoint), "--from", "timm", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_input(checkpoint, tmp_path, capsys):
    def error_of(*changes):
        words = ["convert", str(checkpoint), "--from", "timm", "--output", str(tmp_path / "out")]
        assert run([*words, *map(str, changes)]) == 2
        shown = one_error(capsys)
        assert not (tmp_path / "out").exists() and "Traceback" not in shown
        return shown

    assert "not in the authors' layout" in error_of("--from", "authors")
    assert "'keras' is not one of 'authors', 'timm'" in error_of("--from", "keras")
    assert "There is no file" in error_of("--config", tmp_path / "none.json")
    torch.save({"state_dict": Payload(tmp_path / "trace")}, checkpoint)
    assert "system beside tensors" in error_of() and not (tmp_path / "trace").exists()
    torch.save({"cls_token": torch.ones(1, 1, 4), "head.bias": torch.ones(3)}, checkpoint)
    assert "missing: pos_embed, patch_embed.proj.weight" in error_of()
    checkpoint.unlink()
    assert f"There is no file {checkpoint}" in error_of()


def test_a_failed_write_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("ascent_vit.conversion.checkpoint.write_json", full)
    assert run(["convert", str(checkpoint), "--from", "timm", "--output", str(tmp_path / "out")]) == 1
    assert "the disk is full" in one_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pth"]
