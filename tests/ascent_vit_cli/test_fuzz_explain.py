# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit explain` on a folder of odd files: each is explained or left out with a sentence."""

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import strategies as st

from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from transformers import ViTConfig

    from modeling_ascent_vit import AscentViTConfig

    backbone = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    config = AscentViTConfig(backbone_config=backbone, num_spatial_concepts=2, fusion_levels=0, num_labels=2)
    folder = tmp_path_factory.mktemp("model")
    AscentViTForImageClassification(config).save_pretrained(folder)
    AscentViTImageProcessor.from_model_config(config).save_pretrained(folder)
    return folder


def no_such_number(name):
    pytest.fail(f"{name} is no JSON")


@pytest.mark.parametrize("examples", [2, pytest.param(12, marks=pytest.mark.nightly)])
def test_a_folder_of_odd_files(fuzz, model_folder, tmp_path, capsys, examples):
    def check(files):
        number = sum(1 for _ in tmp_path.iterdir())
        source, output = tmp_path / f"in{number}", tmp_path / f"out{number}"
        source.mkdir()
        for i, content in enumerate(files):
            (source / f"{i:02d}.png").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = run(
                ["explain", str(source), "--model", str(model_folder), "--output", str(output), "--format", "json"]
            )
        err = capsys.readouterr().err
        left_out = [line for line in err.splitlines() if line.startswith("Left out: ")]
        written = sorted(output.glob("*.json"))
        assert "Traceback" not in err
        if code == 2:
            assert not output.exists() and err.count("Error: ") == 1
            return
        assert len(left_out) + len(written) == len(files) and written
        assert code == (1 if left_out else 0)
        assert all(line.endswith(".") for line in left_out)
        for path in written:
            json.loads(path.read_text(encoding="utf-8"), parse_constant=no_such_number)

    damaged = fuzz.damaged_images().filter(lambda odd: odd.kind.startswith("file"))
    contents = st.one_of(
        damaged.map(lambda odd: Path(odd.value).read_bytes()), fuzz.encoded_images().map(lambda image: image[1])
    )
    bombs = st.sampled_from([fuzz.png_that_claims(60_000, 60_000), fuzz.gif_that_claims(10_000, 10_000), b""])
    files = st.tuples(st.lists(contents, min_size=6, max_size=10), st.lists(bombs, min_size=1, max_size=3))
    fuzz.run("folders", examples, files.map(lambda lists: lists[0] + lists[1]), check)


@pytest.mark.parametrize("name", ["empty.png", "text.png", "bomb.png", "folder.png"])
def test_one_odd_file(fuzz, model_folder, tmp_path, capsys, name):
    path = tmp_path / name
    contents = {"empty.png": b"", "text.png": b"hello", "bomb.png": fuzz.png_that_claims(60_000, 60_000)}
    path.write_bytes(contents[name]) if name in contents else path.mkdir()
    before = fuzz.peak_mebibytes()
    code = run(["explain", str(path), "--model", str(model_folder), "--output", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and not (tmp_path / "out").exists()
    assert name in err and fuzz.peak_mebibytes() < before + 256


@pytest.mark.parametrize(
    "file, key, value",
    [
        ("config.json", "psi", "x"),
        ("config.json", "num_unsupervised_concepts", 10**12),
        ("config.json", "backbone_config", {"model_type": "nope"}),
        ("config.json", "spatial_concepts", ["a", "a"]),
        ("preprocessor_config.json", "size", {"height": "x", "width": 3}),
        ("preprocessor_config.json", "size", [1]),
        ("preprocessor_config.json", "image_std", [0, 0, 0]),
        ("preprocessor_config.json", "rescale_factor", "x"),
        ("preprocessor_config.json", "resample", 99),
    ],
)
def test_a_model_folder_with_a_wrong_field(model_folder, tmp_path, capsys, file, key, value):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**content, key: value}), encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"")
    assert run(["explain", str(tmp_path / "a.png"), "--model", str(folder), "--output", str(tmp_path / "out")]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: "))
    assert key in line and not (tmp_path / "out").exists()
