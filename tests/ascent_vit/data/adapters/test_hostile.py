# SPDX-License-Identifier: Apache-2.0
"""Archives of others, unpacked: texts that name files elsewhere, images and volumes that are not what they say."""

import gzip
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ascent_vit.data import load_concept_dataset
from ascent_vit.data.adapters.kits19 import read_volume
from ascent_vit_cli.app import USAGE_ERROR, run


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def picture_bomb(path):
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))))


def names(old, new):
    def spoil(root, secret):
        path = root / "images.txt"
        path.write_text(path.read_text().replace(old, new.format(secret=secret)))

    return spoil


def instead(make):
    """Something else in the place of the first image."""

    def spoil(root, secret):
        path = root / "images" / "001.Bird" / "Bird_1.jpg"
        path.unlink()
        make(path)

    return spoil


CASES = {
    "a name that climbs": (names("001.Bird/Bird_1.jpg", "../../../secret.png"), "leads out of"),
    "a name that climbs later": (names("001.Bird/Bird_1.jpg", "001.Bird/../../../../secret.png"), "leads out of"),
    "an absolute name": (names("001.Bird/Bird_1.jpg", "{secret}"), "leads out of"),
    "a name of Windows": (names("001.Bird/Bird_1.jpg", "..\\..\\secret.png"), "leads out of"),
    "a name with a null": (names("001.Bird/Bird_1.jpg", "001.Bird/\0.jpg"), "Error: "),
    "a pipe": (instead(os.mkfifo), "Bird_1.jpg is missing"),
    "a folder": (instead(os.mkdir), "Bird_1.jpg is missing"),
    "a link to a device": (instead(lambda path: path.symlink_to("/dev/zero")), "Bird_1.jpg is missing"),
    "a link to itself": (instead(lambda path: path.symlink_to(path)), "Error: "),
    "a picture bomb": (instead(picture_bomb), "as a decompression bomb would"),
    "no image": (instead(lambda path: path.write_bytes(b"\xff\xd8\xff" + bytes(50))), "cannot be read"),
    "endless numbers": (names("1 001", "9" * 5000 + " 001"), "Error: "),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_cub_gives_one_error(name, write_cub, tmp_path, capsys):
    spoil, message = CASES[name]
    source = write_cub(tmp_path / "source")
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    spoil(source / "CUB_200_2011", tmp_path / "secret.png")
    before = sorted(tmp_path.rglob("*"))
    assert run(["prepare", "cub", "--source", str(source), "--output", str(tmp_path / "out")]) == USAGE_ERROR
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in text and re.search(message, errors[0]), errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_volume_whose_header_is_of_a_thousand_others(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "imaging.nii.gz"
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((32_000, 32_000, 32_000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4) + bytes(10_000))
    with pytest.raises(ValueError, match="32,768,000,000,000 voxels"):
        read_volume(path)


@pytest.mark.parametrize(
    "name", ["../secret.png", "{folder}/secret.png", "train/../../secret.png", "file://{folder}/secret.png"]
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_of_an_image_folder_stays_in_the_folder(name, kind, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    name = name.format(folder=tmp_path)
    if kind == "jsonl":
        lines = ['{"file_name": "a.png", "label": "x"}', f'{{"file_name": "{name}", "label": "y"}}']
    else:
        lines = ["file_name,label", "a.png,x", f"{name},y"]
    (folder / f"metadata.{kind}").write_text("\n".join(lines))
    with pytest.raises(Exception) as error:
        load_concept_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    reasons = f"{error.value} {error.value.__cause__}"
    refusals = ("must be a relative path", "must be relative", "doesn't exist", "is missing")
    assert any(refusal in reasons for refusal in refusals), reasons
