# SPDX-License-Identifier: Apache-2.0
"""Files that are read, and files that must not run anything."""

import argparse
import collections
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ascent_vit.conversion.reading import read_settings, read_state_dict
from ascent_vit_cli.app import USAGE_ERROR, run


WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(4)}


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Settings:
    """An object of a training script."""


def check_weights(state):
    assert set(state) == set(WEIGHTS)
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in state.items())


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_bare_state_dict(ending, zipped, tmp_path):
    path = tmp_path / f"weights.{ending}"
    torch.save(collections.OrderedDict(WEIGHTS), path, _use_new_zipfile_serialization=zipped)
    check_weights(read_state_dict(path))


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    check_weights(read_state_dict(tmp_path / "weights.safetensors"))


def test_lightning_checkpoint(tmp_path):
    """What Lightning saves: progress, states of optimizers and callbacks, hyper-parameters."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": collections.OrderedDict(WEIGHTS),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'mode': 'max'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [1e-3], "last_epoch": 3}],
        "hparams_name": "hparams",
        "hyper_parameters": {"arguments": argparse.Namespace(psi=1.0), "folder": Path("data"), "lr": 5e-5},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    check_weights(read_state_dict(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_does_not_run(zipped, tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": WEIGHTS, "x": Payload(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"holds (posix|nt)\.system beside tensors"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Payload(trace), protocol=2))
    with pytest.raises(ValueError):
        read_state_dict(path)
    assert not trace.exists()
    # The payload is a real one.
    pickle.loads(path.read_bytes())
    assert trace.exists()


def test_other_objects_are_refused_with_a_way_out(tmp_path):
    torch.save({"state_dict": WEIGHTS, "settings": Settings()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="Settings beside tensors.*safetensors.torch.save_file"):
        read_state_dict(tmp_path / "weights.pt")


def test_allowed_types_are_allowed_no_longer_afterwards(tmp_path):
    torch.save({"state_dict": WEIGHTS, "x": argparse.Namespace()}, tmp_path / "weights.pt")
    read_state_dict(tmp_path / "weights.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "weights.pt", weights_only=True)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_damaged_files(name, kept, tmp_path):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cannot be read as a PyTorch checkpoint|is no whole safetensors file"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"a": torch.ones(1), "b": 3, "c": "x"}, "b, c are no tensors"),
        ({"state_dict": {"a": {}}}, "a are no tensors"),
    ],
)
def test_files_without_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "weights.pt")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_state_dict(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is a folder"):
        read_state_dict(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_settings(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON file"),
        ("[1]", "must be a JSON object; got list"),
        ('{"backbone": {"heads": 3}}', "backbone has unknown keys: heads"),
        ('{"backbone": 3}', "backbone must be of type dict; got 3"),
        ('{"fusion_heads": 2.5}', "fusion_heads must be of type int; got 2.5"),
        ('{"fusion_heads": true}', "fusion_heads must be of type int; got true"),
        ('{"labels": ["a", 3]}', "labels must be a list of names"),
        ('{"image_mean": ["a"]}', "image_mean must be a list of numbers"),
        ('{"image_std": [0, 1, 1]}', "image_std must hold finite numbers above 0"),
        ('{"psi": Infinity}', "psi must be a finite number"),
    ],
)
def test_settings_that_are_refused(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(tmp_path / "config.json")


def test_settings(tmp_path):
    settings = {"psi": 1, "backbone": {"layer_norm_eps": 1e-06, "image_size": [32, 64]}, "labels": ["a"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_settings(tmp_path / "config.json") == settings
    assert read_settings(None) == {}


def repacked(path, change):
    """An archive of torch.save, of which `change` gives what is written in place of each entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, *change(name, data))


def bomb(path):
    torch.save(WEIGHTS, path)
    repacked(path, lambda name, data: (bytes(10**8) if "/data/" in name else data, zipfile.ZIP_DEFLATED))


def shared(path):
    """The directory names the same bytes again and again, so that they are more than the file."""
    torch.save({"a": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        entry = max(archive.infolist(), key=lambda item: item.file_size)
        archive.filelist += [entry] * 1000
        archive._didModify = True


def spread(path):
    torch.save({"a": torch.zeros(1).expand(10**12), "b": torch.zeros(2)}, path)


HOSTILE = {
    "packed bytes": (bomb, "unpacks to more than it holds"),
    "shared bytes": (shared, "unpacks to more than it holds"),
    "a value for all": (spread, "a is no plain tensor"),
    "a sparse tensor": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "a is no plain tensor"),
    "no storage": (lambda path: torch.save({"a": torch.empty(10**9, device="meta")}, path), "a is no plain tensor"),
    "no archive": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "cannot be read as a PyTorch"),
    "a payload": (
        lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("trace")))),
        "cannot be read|beside",
    ),
    "a payload within": (lambda path: torch.save({"model": Payload(path.with_name("trace"))}, path), "beside tensors"),
}


@pytest.mark.parametrize("ending", ["pt", "ckpt"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoints_give_one_error(name, ending, tmp_path, capsys):
    write, message = HOSTILE[name]
    path = tmp_path / f"weights.{ending}"
    write(path)
    for layout in ("authors", "timm"):
        assert run(["convert", str(path), "--from", layout, "--output", str(tmp_path / "out")]) == USAGE_ERROR
        text = capsys.readouterr().err
        assert text.startswith("Error: ") and text.count("\n") == 1
        with pytest.raises(ValueError, match=message):
            read_state_dict(path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("content", ['{"a":' * 100_000, "[" * 100_000, "1" * 5000, "NaN"])
def test_hostile_settings(content, tmp_path):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match="c.json"):
        read_settings(tmp_path / "c.json")
