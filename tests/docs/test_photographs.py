# SPDX-License-Identifier: Apache-2.0
"""The page from a folder of photographs and a backbone's folder to a published model, from top to bottom."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file


PAGE = Path(__file__).parents[2] / "docs" / "photographs.md"
# The page's commands as they stand, with these at the end so that they take seconds.
SHORTER = {
    "train": "--set num_train_epochs=2 --set warmup_epochs=0 --set feature_views=1",
    "evaluate": "--images 2",
}
IMAGES_OF_A_CLASS = 6


def fewer_images(archive: Path, folder: Path) -> None:
    """The archive with the first images of each class: its lists cut short, its pictures where they are."""
    rows = [line.split() for line in (archive / "image_class_labels.txt").read_text().splitlines()]
    classes: dict[str, list[str]] = {}
    for image, label in rows:
        classes.setdefault(label, []).append(image)
    kept = {image for images in classes.values() for image in images[:IMAGES_OF_A_CLASS]}
    for path in archive.rglob("*.txt"):
        target = folder / path.relative_to(archive)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True)
        of_images = path.name in (
            *("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "part_locs.txt"),
        )
        target.write_text("".join(line for line in lines if not of_images or line.split()[0] in kept))
    (folder / "images").symlink_to(archive / "images")


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(shared_folder, tmp_path):
    archive, backbone = shared_folder / "data" / "cub" / "CUB_200_2011", shared_folder / "weights" / "deit-tiny"
    if not (archive.is_dir() and backbone.is_dir()):
        pytest.skip(f"{archive} or {backbone} is not there")
    fewer_images(archive, tmp_path / "CUB_200_2011")
    (tmp_path / "attributes.txt").symlink_to(archive.parent / "attributes.txt")
    (tmp_path / "deit-tiny").symlink_to(backbone)
    (tmp_path / "photo.jpg").symlink_to(next((archive / "images").rglob("*.jpg")))
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()
    ]
    assert [command.split()[:2] for command in commands] == [
        ["ascent-vit", name] for name in ("prepare", "check", "train", "evaluate", "explain", "publish")
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for command in commands:
        name = command.split()[1]
        words = f"{command} {SHORTER.get(name, '')}".split()[1:]
        done = subprocess.run(
            [sys.executable, "-m", "ascent_vit_cli", *(word.strip('"') for word in words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "data" / "birds" / "inspect.png").stat().st_size > 1000
    figures = json.loads((tmp_path / "runs" / "birds" / "evaluation.json").read_text())
    assert figures["concept_map"] > 0 and figures["additivity_error"] < 1e-3
    sent = tmp_path / "to-be-sent"
    assert any("spatial_stream" in name for name in load_file(next(sent.rglob("model.safetensors"))))
    assert not list(sent.rglob("*.jpg")) and next(sent.rglob("README.md")).stat().st_size > 1000
