# SPDX-License-Identifier: Apache-2.0
"""Models and datasets on their way to a Hub and back, and what is left when the way is cut."""

import json
import re

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List
from safetensors.torch import load_file, save_file

from ascent_vit.publishing import PublishOptions, stage
from ascent_vit.publishing.publish import explain_failure
from ascent_vit.publishing.source import check_repo_id


COMMAND = "from ascent_vit_cli import main\nsys.argv[0] = 'ascent-vit'\nmain()\n"

# Sends a staged folder to each of some repositories, and says what came of it.
COMMIT = """
import json
from pathlib import Path
from huggingface_hub import HfApi
from ascent_vit.publishing import StagedFile
from ascent_vit.publishing.publish import commit_folder
folder = Path(sys.argv[1])
files = [StagedFile(str(p.relative_to(folder)), p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()]
answers = {}
for name in sys.argv[3:]:
    try:
        answers[name] = ["commit", commit_folder(HfApi(), folder, files, name, sys.argv[2], False)]
    except Exception as error:
        answers[name] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""

REMOTE = """
import json
for name in ("ascent_vit", "modeling_ascent_vit"):
    sys.modules[name] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
where = {"revision": sys.argv[2], "trust_remote_code": True}
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], **where)
processor = AutoImageProcessor.from_pretrained(sys.argv[1], **where)
image = Image.new("RGB", (70, 50), (200, 100, 30))
logits = model(**processor(image, return_tensors="pt")).logits
scores = pipeline("image-classification", model=sys.argv[1], **where)(image)
if len(sys.argv) > 3:
    model.push_to_hub(sys.argv[3])
    processor.push_to_hub(sys.argv[3])
print(json.dumps([logits[0].tolist(), scores]))
"""


def answer(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def staged(folder, tmp_path, name="staged", **options):
    target = tmp_path / name
    target.mkdir()
    stage(folder, target, "ann/birds", PublishOptions(**options))
    return target


def test_publish_and_dry_run_agree(hub, client, run_folder, tmp_path):
    done = client(COMMAND, "publish", run_folder, "--repo-id", "ann/birds", "--private")
    assert done.returncode == 0, done.stderr
    dry = staged(run_folder, tmp_path)
    expected = {path.relative_to(dry).as_posix(): path.read_bytes() for path in dry.rglob("*") if path.is_file()}
    files = hub.files("ann/birds", revision="v1")
    assert files.pop(".gitattributes") and files == expected
    for name, data in expected.items():
        assert re.search(rf"^{re.escape(name)} +{len(data):,} bytes$", done.stdout, flags=re.M), name
    repository = hub.find("model", "ann/birds")
    assert repository.private and len(repository.commits) == 2 and repository.main == repository.tags["v1"]
    assert repository.main in done.stdout and f"{hub.endpoint}/ann/birds" in done.stdout


@pytest.mark.slow
def test_push_pull_update_push_again(hub, client, run_folder, tmp_path):
    first = answer(client(COMMIT, staged(run_folder, tmp_path), "v1", "ann/birds"))["ann/birds"]
    assert first[0] == "commit"
    logits, scores = answer(client(REMOTE, "ann/birds", "v1"))
    assert {entry["label"] for entry in scores} == {"wren", "crow", "tern"}

    weights = load_file(run_folder / "model" / "model.safetensors")
    biases = [name for name in weights if name.endswith("_stream.projection.bias")]
    num_streams = len(biases)
    for name in biases:
        weights[name] += 1.0
    save_file(weights, run_folder / "model" / "model.safetensors", metadata={"format": "pt"})
    (run_folder / "explanations.png").unlink()
    update = staged(run_folder, tmp_path, "update", tag="v2")
    taken = answer(client(COMMIT, update, "v1", "ann/birds"))["ann/birds"]
    assert taken[0] == "ValueError" and "has the tag v1 on other files" in taken[1]
    assert hub.find("model", "ann/birds").main == first[1]
    second = answer(client(COMMIT, update, "v2", "ann/birds"))["ann/birds"]
    repository = hub.find("model", "ann/birds")
    assert repository.tags == {"v1": first[1], "v2": second[1]} and len(repository.commits) == 3
    # What is not sent any more is gone, and the old revision is as it was.
    assert "explanations.png" in hub.files("ann/birds", revision="v1")
    assert "explanations.png" not in hub.files("ann/birds")
    again, _ = answer(client(REMOTE, "ann/birds", "v1"))
    changed, _ = answer(client(REMOTE, "ann/birds", "v2", "ann/copy"))
    # One more for each stream's bias.
    assert again == pytest.approx(logits, abs=1e-5)
    assert np.allclose(np.subtract(changed, logits), num_streams, atol=1e-4)

    # A model that was loaded as remote code pushes the code, all of it, and the card keeps standing.
    copy = hub.files("ann/copy")
    code = {name for name in update.iterdir() if name.suffix == ".py"}
    assert all(copy[path.name] == path.read_bytes() for path in code) and len(code) == 19
    assert json.loads(copy["config.json"])["auto_map"] == json.loads((update / "config.json").read_text())["auto_map"]
    assert "torchvision" in copy["preprocessor_config.json"].decode()
    copied, _ = answer(client(REMOTE, "ann/copy", "main"))
    assert copied == pytest.approx(changed, abs=1e-5)
    card = hub.files("ann/birds")["README.md"]
    answer(client(REMOTE, "ann/birds", "v2", "ann/birds"))
    assert (
        hub.files("ann/birds")["README.md"].decode().partition("---\n\n#")[2] == card.decode().partition("---\n\n#")[2]
    )
    assert hub.files("ann/birds")["model.safetensors"] == (update / "model.safetensors").read_bytes()


FAULTS = {
    "ann/cut": (("PUT", "/lfs/ann/cut/", {"cut_after": 20_000}), "the connection to the Hub failed"),
    "ann/storage": (("PUT", "/lfs/ann/storage/", {"status": 500}), r"answered with an error \(500"),
    "ann/refused": (("POST", "/ann/refused/preupload", {"status": 403}), r"may not write there \(403\)"),
    "ann/closed": (("POST", "/ann/closed/commit/", {"status": 503}), r"answered with an error \(503"),
    "ann/raced": (("POST", "/ann/raced/commit/", {"status": 409}), r"changed the repository meanwhile \(409\)"),
    "ann/halved": (("POST", "/ann/halved/commit/", {"cut_after": 1000}), "the connection to the Hub failed"),
}


@pytest.mark.slow
def test_a_guard_goes_and_comes(hub, client, run_folder, tmp_path):
    """It is loaded from the Hub with the model of the same tag, and there is none where none was sent."""
    fit = """
import numpy as np, sys
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from ascent_vit import Safeguard
from ascent_vit.inference.load import load_model
pixels = np.random.default_rng(0).integers(0, 256, (30, 48, 48, 3), dtype=np.uint8)
features = Features({"image": Image(), "label": ClassLabel(names=["wren", "crow", "tern"])})
rows = Dataset.from_dict({"image": list(map(Picture.fromarray, pixels)), "label": [0, 1, 2] * 10}, features=features)
Safeguard.fit(*load_model(sys.argv[1]), rows, alpha=0.2).save_pretrained(sys.argv[1])
"""
    load = """
from ascent_vit import Safeguard
guard = Safeguard.from_pretrained("ann/birds", revision="v1")
print(guard.judge.facts["images"], guard.model.config.num_labels)
"""
    ran = client(COMMAND, "publish", run_folder, "--repo-id", "ann/birds")
    assert ran.returncode == 0, ran.stderr
    assert "There is no guard in ann/birds" in client(load).stderr
    assert client(fit, run_folder / "model").returncode == 0
    ran = client(COMMAND, "publish", run_folder, "--repo-id", "ann/birds", "--tag", "v2")
    assert ran.returncode == 0, ran.stderr
    ran = client(load.replace("v1", "v2"))
    assert ran.stdout.split() == ["30", "3"], ran.stderr


@pytest.mark.nightly
def test_faults_leave_the_repository_as_it_was(hub, client, run_folder, tmp_path):
    target = staged(run_folder, tmp_path)
    answer(client(COMMIT, target, "v1", *FAULTS))
    before = {name: hub.files(name) for name in FAULTS}
    # Content that the Hub does not have yet.
    spoiled = load_file(run_folder / "model" / "model.safetensors")
    spoiled["spatial_stream.projection.bias"] += 1
    save_file(spoiled, run_folder / "model" / "model.safetensors", metadata={"format": "pt"})
    update = staged(run_folder, tmp_path, "update", tag="v2")
    for oid in [oid for oid, data in hub.contents.items() if data == (update / "model.safetensors").read_bytes()]:
        del hub.contents[oid]
    # One at a time, as content that arrived for one repository is there for all.
    for name, ((method, pattern, what), cause) in FAULTS.items():
        hub.faults.clear()
        hub.fail(method, pattern, times=100, **what)
        kind, message = answer(client(COMMIT, update, "v2", name))[name]
        assert kind == "PublishError" and re.search(cause, message), (name, message)
        assert f"{name} is as it was" in message and "Run the same command again" in message
        assert hub.files(name) == before[name] and "v2" not in hub.find("model", name).tags
        assert re.match(r"[^.]*\bfailed\b", message)
    hub.faults.clear()
    hub.requests.clear()
    for name, (kind, commit) in answer(client(COMMIT, update, "v2", *FAULTS)).items():
        assert kind == "commit" and hub.find("model", name).tags["v2"] == commit
        assert hub.files(name)["model.safetensors"] == (update / "model.safetensors").read_bytes()
    # The weights arrived before the commit of "ann/raced" was refused, and are not sent a second time.
    assert not [path for method, path in hub.requests if method == "PUT"]


@pytest.mark.slow
def test_what_the_command_says(hub, client, run_folder):
    command = ("publish", run_folder, "--repo-id", "ann/birds")
    denied = client(COMMAND, *command, token="hf_wrong")
    assert denied.returncode == 1 and "(401): log in with hf auth login" in denied.stderr
    assert not hub.repositories
    hub.fail("POST", "/tag/", status=500)
    untagged = client(COMMAND, *command)
    assert untagged.returncode == 1 and "has the new files, but not yet the tag v1" in untagged.stderr
    mended = client(COMMAND, *command)
    assert mended.returncode == 0 and hub.find("model", "ann/birds").tags
    for process in (denied, untagged):
        lines = [line for line in process.stderr.splitlines() if "Error" in line]
        assert len(lines) == 1 and "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_corrupted_download_is_no_model(hub, client, run_folder, tmp_path):
    answer(client(COMMIT, staged(run_folder, tmp_path), "v1", "ann/birds"))
    hub.fail("GET", "/resolve/.*/model.safetensors", times=100, alter=lambda data: data[: len(data) // 2])
    cut = client(REMOTE, "ann/birds", "v1", home="elsewhere")
    assert cut.returncode and not cut.stdout and "Error" in cut.stderr.splitlines()[-1]
    hub.faults.clear()
    answer(client(REMOTE, "ann/birds", "v1", home="elsewhere"))


DATASET = """
import json
from datasets import load_dataset
from huggingface_hub import HfApi
stream = load_dataset(sys.argv[1], split="test", streaming=True)
rows = [(row["label"], row["concepts"], row["image"].size) for row in stream]
whole = load_dataset(sys.argv[1])
print(json.dumps([rows, {name: len(split) for name, split in whole.items()}, whole["train"].features["label"].names,
                  HfApi().dataset_info(sys.argv[1]).sha]))
"""

PUSH = """
from datasets import DatasetDict
DatasetDict.load_from_disk(sys.argv[1]).push_to_hub(sys.argv[2], private=True)
print("null")
"""


@pytest.mark.slow
def test_a_dataset_goes_and_comes(hub, client, tmp_path):
    features = Features(
        {"image": Image(), "label": ClassLabel(names=["wren", "crow"]), "concepts": List(ClassLabel(names=["small"]))}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    rows = {"image": list(pixels), "label": [0, 1, 0, 1], "concepts": [[0], None, [], [0]]}
    dataset = Dataset.from_dict(rows, features=features)
    splits = {"train": dataset, "test": dataset.select([1, 2])}
    DatasetDict(splits).save_to_disk(tmp_path / "first")
    answer(client(PUSH, tmp_path / "first", "ann/bird-concepts"))
    streamed, sizes, classes, sha = answer(client(DATASET, "ann/bird-concepts"))
    assert streamed == [[1, None, [8, 6]], [0, [], [8, 6]]]
    assert sizes == {"train": 4, "test": 2} and classes == ["wren", "crow"]
    DatasetDict(splits | {"test": dataset}).save_to_disk(tmp_path / "second")
    answer(client(PUSH, tmp_path / "second", "ann/bird-concepts"))
    streamed, sizes, _, updated = answer(client(DATASET, "ann/bird-concepts"))
    assert len(streamed) == 4 and sizes == {"train": 4, "test": 4} and updated != sha
    hub.fail("POST", "/commit/", times=100, status=500)
    files = hub.files("ann/bird-concepts", "dataset")
    assert client(PUSH, tmp_path / "first", "ann/bird-concepts").returncode
    assert hub.files("ann/bird-concepts", "dataset") == files


@pytest.mark.parametrize("name", ["birds", "ann/birds/x", "ann/..", "ann/-birds", ""])
def test_bad_repository_ids(name):
    with pytest.raises(ValueError):
        check_repo_id(name)


def test_causes_without_an_answer_are_named():
    assert explain_failure(ConnectionError("no route.")) == (
        "the connection to the Hub failed (ConnectionError: no route)"
    )
