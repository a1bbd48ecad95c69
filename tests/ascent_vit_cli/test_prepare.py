# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit prepare`, from an archive to a dataset that training takes."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest
from datasets import load_dataset
from PIL import Image

import ascent_vit
from ascent_vit_cli.app import run
from ascent_vit_cli.prepare import read_options


def one_error(capsys) -> str:
    """The last line on stderr, which is the error."""
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def files(folder: Path) -> set[str]:
    return without_digests(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def without_digests(names):
    """Names of files without the digest of their rows."""
    return {re.sub("-[0-9a-f]{16}.parquet$", "-DIGEST.parquet", name) for name in names}


DATA = {"README.md", "data/train-00000-of-00001-DIGEST.parquet", "data/test-00000-of-00001-DIGEST.parquet"}


def test_prepare(write_cub, tmp_path, capsys):
    source = write_cub(tmp_path / "source")
    output = tmp_path / "deep" / "cub"
    arguments = ["prepare", "cub", "--source", str(source), "--output", str(output)]
    assert run([*arguments, "--option", "seed=5", "--option", "validation-share=0"]) == 0
    assert capsys.readouterr().out.splitlines() == ["train: 2 images", "test: 2 images", f"Dataset: {output}"]
    assert files(output) == DATA
    assert files(tmp_path / "deep") == {f"cub/{name}" for name in DATA}
    loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2, "test": 2}
    assert len(loaded["train"].features["points"]["category"].feature.names) == 95
    assert loaded["train"][0]["image"].size == (40, 30)
    card = (output / "README.md").read_text()
    assert "--option seed=5 --option validation-share=0" in card and "| seed | 5 |" in card
    assert str(tmp_path) not in card

    assert run(arguments) == 2
    assert one_error(capsys) == f"The folder {output} is not empty: name another one."


def test_inspect(write_cub, tmp_path, capsys):
    output = tmp_path / "cub"
    arguments = ["prepare", "cub", "--source", str(write_cub(tmp_path / "source", per_image=True))]
    assert run([*arguments, "--output", str(output), "--inspect"]) == 0
    shown = capsys.readouterr().out
    assert files(output) == DATA | {"inspect.png", "inspect.json"}
    table = json.loads((output / "inspect.json").read_text())
    assert table["splits"]["train"]["images"] == 2 and table["splits"]["train"]["annotated_patches"] == 1
    assert "has_bill_shape::4" in shown and "annotated patches" in shown
    with Image.open(output / "inspect.png") as sheet:
        assert sheet.width > 1000 and len(sheet.convert("L").getcolors()) > 50
    # The extra files are no part of the data.
    for streaming in (False, True):
        loaded = load_dataset(str(output), streaming=streaming, cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == ["train", "test"] and len(list(loaded["train"])) == 2
        assert "unknown_concepts" in loaded["train"].features


def test_a_prepared_dataset_trains(write_cub, tmp_path, capsys):
    source = write_cub(tmp_path / "source")
    dataset, output = tmp_path / "cub", tmp_path / "run"
    assert run(["prepare", "cub", "--source", str(source), "--output", str(dataset)]) == 0
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        """
model:
  backbone_config: {model_type: vit, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
                    intermediate_size: 32, image_size: 32, patch_size: 8}
dataset_options: {cache_dir: CACHE}
num_train_epochs: 1
per_device_train_batch_size: 1
seed: 0
""".replace("CACHE", str(tmp_path / "cache"))
    )
    assert run(["train", "--recipe", str(recipe), "--dataset", str(dataset), "--output", str(output)]) == 0
    config = json.loads((output / "model" / "config.json").read_text())
    assert (len(config["global_concepts"]), len(config["spatial_concepts"])) == (13, 95)


def test_a_bad_archive_leaves_nothing(write_cub, tmp_path, capsys):
    source = write_cub(tmp_path / "source")
    (source / "CUB_200_2011" / "images" / "002.Bird" / "Bird_4.jpg").unlink()
    arguments = ["prepare", "cub", "--source", str(source), "--output", str(tmp_path / "out" / "cub")]
    assert run(arguments) == 2
    assert "Bird_4.jpg is missing: unpack the whole archive." in one_error(capsys)
    assert not (tmp_path / "out").exists()
    # A new run in the same place works as soon as the archive is whole.
    write_cub(tmp_path / "whole")
    assert run([*arguments[:3], str(tmp_path / "whole"), *arguments[4:]]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["birds", "--source", ".", "--output", "x"], "There is no adapter 'birds'; there are cub, apy"),
        (["cub", "--source", "nowhere", "--output", "x"], "There is no folder nowhere"),
        (["cub", "--source", ".", "--output", "x"], "attributes.txt is missing"),
        (["cub", "--source", "."], "Give either --output, a folder, or --push-to-hub"),
        (["cub", "--source", ".", "--output", "x", "--push-to-hub", "a/b"], "Give either --output"),
        (["cub", "--output", "x"], "Missing option '--source'."),
        (["cub", "--source", ".", "--output", __file__], "is a file: name a folder"),
        (
            ["cub", "--source", ".", "--output", "x", "--option", "sede=1"],
            "cub has no option sede; did you mean 'seed'?",
        ),
        (
            ["cub", "--source", ".", "--output", "x", "--option", "zzz=1"],
            "cub has no option zzz; known are concepts, global_concepts",
        ),
        (
            ["cub", "--source", ".", "--output", "x", "--option", "seed"],
            "--option takes KEY=VALUE, for example seed=1; got",
        ),
        (["cub", "--source", ".", "--output", "x", "--option", "seed=x"], "seed of cub takes a whole number; got 'x'"),
        (
            ["cub", "--source", ".", "--output", "x", "--option", "concepts=108"],
            "concepts of cub takes ct108 or cbm112 or threshold; got 108",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["prepare", *arguments]) == 2
    assert message in one_error(capsys)
    assert not list(tmp_path.iterdir())


def test_options_are_typed_as_the_adapter_declares():
    def adapter(
        source: Path,
        *,
        share: float = 0.5,
        ink: bool = True,
        images: str | None = None,
        level: Literal["low", "high"] = "low",
        size: int | None = None,
        spatial: list[str] | None = None,
    ):
        pass

    pairs = ["share=5e-1", "ink=false", "images=a/b", "level=high", "size=null", "spatial=[horns, stripes]"]
    assert read_options("some", adapter, pairs) == {
        "share": 0.5,
        "ink": False,
        "images": "a/b",
        "level": "high",
        "size": None,
        "spatial": ["horns", "stripes"],
    }
    with pytest.raises(ValueError, match="--option share is given twice"):
        read_options("some", adapter, ["share=1", "share=2"])
    for value in ("horns", "[1]"):
        with pytest.raises(ValueError, match="The option spatial of some takes a list of text or null; got"):
            read_options("some", adapter, [f"spatial={value}"])
    with pytest.raises(ValueError, match="The option ink of some takes true or false; got 'maybe'"):
        read_options("some", adapter, ["ink=maybe"])
    with pytest.raises(ValueError, match="some has no option source"):
        read_options("some", adapter, ["source=x"])


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that a commit to a dataset repository takes, over a dict of files."""

    files: dict[str, bytes] = {}
    objects: dict[str, bytes] = {}
    commits: list[list[dict]] = []

    def log_message(self, *args):
        pass

    def answer(self, data=None, status=200):
        content = json.dumps(data if data is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_GET(self):
        if "/tree/" in self.path:
            entries = [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in self.files.items()]
            return self.answer(entries)
        self.answer({"id": "someone/birds", "sha": "0" * 40, "siblings": [{"rfilename": p} for p in self.files]})

    def do_PUT(self):
        self.objects[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer()

    def do_POST(self):
        body = self.body()
        if self.path.startswith("/api/repos/create"):
            return self.answer({"url": f"{self.address}/datasets/someone/birds", "name": "someone/birds"})
        if "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            return self.answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": modes[file["path"].endswith((".parquet", ".png"))],
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        if self.path.endswith("/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.address}/put/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            self.commits.append(lines)
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del self.files[value["path"]]
            url = f"{self.address}/datasets/someone/birds/commit/{'1' * 40}"
            return self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": url})
        self.answer({"errors": [], "warnings": []})


@pytest.fixture
def hub():
    Hub.files, Hub.objects, Hub.commits = {}, {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_to_hub(write_cub, tmp_path, hub):
    Hub.files["data/train-00000-of-00002.parquet"] = b"of an earlier commit"
    source = write_cub(tmp_path / "source")
    # The client reads where the Hub is while it is imported.
    environment = os.environ | {
        "PYTHONPATH": str(Path(ascent_vit.__file__).parents[1]),
        "HF_ENDPOINT": hub,
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "ascent_vit_cli", "prepare", "cub", "--source", str(source), "--inspect"]
    result = subprocess.run(
        [*command, "--push-to-hub", "someone/birds"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"Dataset: {hub}/datasets/someone/birds"
    assert len(Hub.commits) == 1
    assert without_digests(Hub.files) == DATA | {"inspect.png", "inspect.json"}
    assert 'load_dataset("someone/birds")' in Hub.files["README.md"].decode()
    for name, content in Hub.files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    loaded = load_dataset(str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))
    assert loaded["test"]["image_id"][:] == [2, 4]
    assert not list(tmp_path.glob("tmp*"))
