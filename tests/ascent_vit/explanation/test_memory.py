# SPDX-License-Identifier: Apache-2.0
"""Memory of explaining a large picture: maps stay on the patch grid, and are drawn no larger than a figure shows."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascent_vit import explain


pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak as Linux tells it")

PROGRAM = """
import sys
from pathlib import Path
from PIL import Image
from ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor, explain

def megabytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))

folder = Path(sys.argv[1])
model = AscentViTForImageClassification.from_pretrained(folder / "model").eval()
processor = AscentViTImageProcessor.from_pretrained(folder / "model")
# What is loaded at the first use, on a small picture.
small = explain(model, processor, Image.new("RGB", (60, 50)))
small.save(folder / "small.png"), small.save(folder / "small.html")
before = megabytes("VmRSS")
explanation = explain(model, processor, folder / "large.jpg")
print(megabytes("VmHWM") - before)
explanation.save(folder / "large.png"), explanation.save(folder / "large.html")
explanation.save(folder / "large.json", maps=True), explanation.plot_heads()
print(megabytes("VmHWM") - before)
name = explanation.concept_names["spatial"][0]
assert explanation.attention_map(name).shape == explanation.contribution_map(name).shape == (8000, 11000)
print(megabytes("VmHWM") - before)
"""


def peak_megabytes(act) -> float:
    """By how much memory rises while something is done."""

    def megabytes(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    act()
    return megabytes("VmHWM") - before


def test_drawing_takes_no_more_than_the_figure(model_and_processor, tmp_path):
    """One map in the pixels of this picture takes 60 MB, and three are drawn side by side."""
    large = Image.new("RGB", (5000, 3000), "white")
    explanation = explain(*model_and_processor, large)
    explain(*model_and_processor, large.resize((500, 300))).save(tmp_path / "first.png")
    assert peak_megabytes(lambda: explanation.save(tmp_path / "large.png")) < 120
    assert peak_megabytes(explanation.plot_heads) < 120


def test_one_map_is_that_of_all(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    for index, name in enumerate(explanation.concept_names["spatial"]):
        np.testing.assert_allclose(explanation.attention_map(name), explanation.attention_maps[index], atol=1e-6)
        np.testing.assert_allclose(explanation.contribution_map(name), explanation.contribution_maps[index], atol=1e-6)
    with pytest.raises(ValueError, match="no such thing"):
        explanation.attention_map("no such thing")


def test_a_reduced_map_is_a_part_of_the_whole(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    for step in (2, 3, 7):
        part = explanation.attention_maps[:, step // 2 :: step, step // 2 :: step]
        np.testing.assert_allclose(explanation.resize(explanation.patch_attention, step), part, atol=1e-6)


@pytest.mark.slow
def test_the_largest_picture_stays_below_a_gigabyte(model_and_processor, tmp_path):
    """Beyond the picture itself, of 264 MB, of which Pillow keeps four bytes a pixel."""
    for part in model_and_processor:
        part.save_pretrained(tmp_path / "model")
    Image.new("RGB", (11000, 8000), "white").save(tmp_path / "large.jpg")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert len(said) == 3 and max(map(float, said)) < 264 + 1000
