# SPDX-License-Identifier: Apache-2.0
"""Annotation by an open-vocabulary detector, with tiny detectors of the real classes and random weights."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets import Image as ImageFeature
from huggingface_hub import DatasetCard
from PIL import Image
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

import ascent_vit
from ascent_vit.data import ConceptCollator, load_concept_dataset, validate_dataset
from ascent_vit.data.annotate import DetectedConcept, annotate_dataset, keep_boxes, read_concepts, shards
from ascent_vit.data.annotate import detection as detection_module
from ascent_vit.data.annotate.review import choose_review
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


LETTERS = "abcdefghijklmnopqrstuvwxyz'"
CONCEPTS = [
    DetectedConcept("beak", "a beak", 0.3),
    DetectedConcept("leg", "leg", 0.9),
    DetectedConcept("no", "no", 0.6),
]


def save_owl(folder: Path) -> None:
    tokens = ["<pad>", "<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<pad>", model_max_length=16)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Owlv2Config(
        text_config={**layers, **text, "max_position_embeddings": 16},
        vision_config={**layers, "image_size": 64, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)


def save_dino(folder: Path) -> None:
    letters = LETTERS[:26]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "'", *letters, *("##" + x for x in letters)]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1],
            num_heads=[1, 1, 1],
            image_size=64,
            window_size=4,
            out_features=["stage2", "stage3"],
        ),
        text_config=BertConfig(
            vocab_size=len(tokens), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=30,
        num_feature_levels=3,
        max_text_len=64,
    )
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """datasets tells folders with a card apart by their name and the card's header only: no cache outlives a test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def detectors(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("detectors")
    save_owl(folder / "owl")
    save_dino(folder / "dino")
    return {name: str(folder / name) for name in ("owl", "dino")}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """An imagefolder of 7 and 2 pictures of several sizes in two classes."""
    folder = tmp_path_factory.mktemp("birds") / "birds"
    rng = np.random.default_rng(0)
    for split, number in (("train", 7), ("test", 2)):
        for i in range(number):
            path = folder / split / ("robin", "wren")[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(30, 90, size=2)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path)
    return str(folder)


def rows_of(folder: Path) -> dict[str, list[dict]]:
    return {name: split["objects"][:] for name, split in load_dataset(str(folder)).items()}


def assert_same_boxes(one: Path, other: Path) -> None:
    """Equal boxes; scores up to rounding, as the order of a sum in a matrix product is not that of another run."""
    first, second = rows_of(one), rows_of(other)
    assert list(first) == list(second)
    for split in first:
        for a, b in zip(first[split], second[split], strict=True):
            assert (a["bbox"], a["category"]) == (b["bbox"], b["category"])
            np.testing.assert_allclose(a["score"], b["score"], rtol=0, atol=1e-6)


def overlap(a: list[int], b: list[int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def expected_boxes(detector, image: Image.Image, prompts: list[str], counts: dict[str, int]) -> set[tuple]:
    """Concept and box of what stays, by the definitions, each image and prompt on its own."""
    kept = set()
    for number, (concept, prompt) in enumerate(zip(CONCEPTS, prompts, strict=True)):
        found: list[list[int]] = []
        for detection in detector(image, candidate_labels=[prompt], threshold=0.0):
            x0, y0, x1, y1 = (detection["box"][side] for side in ("xmin", "ymin", "xmax", "ymax"))
            box = [max(x0, 0), max(y0, 0), min(x1, image.width), min(y1, image.height)]
            if detection["score"] <= concept.threshold:
                counts["low"] += 1
            elif box[0] >= box[2] or box[1] >= box[3]:
                counts["outside"] += 1
            elif any(overlap(box, other) > 0.5 for other in found):
                counts["overlapping"] += 1
            else:
                counts["clipped"] += box != [x0, y0, x1, y1]
                found.append(box)
        kept |= {(number, x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in found}
    return kept


@pytest.mark.parametrize("name", ["owl", "dino"])
def test_boxes_are_those_of_the_detector(name, detectors, dataset, tmp_path):
    found = annotate_dataset(dataset, CONCEPTS, detectors[name], tmp_path / "out", batch_size=4)
    detector = pipeline("zero-shot-object-detection", model=detectors[name])
    prompts = ["a beak.", "leg.", "no."] if name == "dino" else ["a beak", "leg", "no"]
    counts = dict.fromkeys(("low", "outside", "overlapping", "clipped"), 0)
    total = 0
    for split in load_dataset(str(tmp_path / "out")).values():
        for row in split:
            objects = row["objects"]
            boxes = {(c, *map(int, b)) for c, b in zip(objects["category"], objects["bbox"], strict=True)}
            assert boxes == expected_boxes(detector, row["image"].convert("RGB"), prompts, counts)
            assert objects["score"] == sorted(objects["score"], reverse=True)
            total += len(boxes)
    assert total == sum(found.boxes.values()) > 20
    # Random weights exercise every rule; Grounding DINO's boxes happen not to overlap.
    assert counts["low"] and (name == "dino" or all(counts.values()))


def test_each_concept_has_its_own_threshold(detectors, dataset, tmp_path):
    stricter = [CONCEPTS[0], CONCEPTS[1], DetectedConcept("no", "no", 0.95)]
    first = annotate_dataset(dataset, CONCEPTS, detectors["owl"], tmp_path / "first")
    second = annotate_dataset(dataset, stricter, detectors["owl"], tmp_path / "second")
    for i, (a, b) in enumerate(zip(first.boxes.values(), second.boxes.values(), strict=True)):
        assert a > b > 0 if i == 2 else a == b > 0
    for concepts, folder in ((CONCEPTS, "first"), (stricter, "second")):
        for rows in rows_of(tmp_path / folder).values():
            for row in rows:
                for category, score in zip(row["category"], row["score"], strict=True):
                    assert score > concepts[category].threshold


def detection(label: str, score: float, *box: int) -> dict:
    return {"label": label, "score": score, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}


def test_keep_boxes():
    found = [
        detection("leg", 0.9, 0, 0, 10, 10),
        detection("beak", 0.8, 0, 0, 10, 10),
        detection("beak", 0.7, 0, 0, 10, 9),  # overlaps the one of the same concept above
        detection("beak", 0.6, -5, 15, 5, 40),  # leaves the image
        detection("beak", 0.6, 30, 0, 40, 10),  # wholly right of it
        detection("beak", 0.6, 5, 20, 9, 30),  # wholly below it
        detection("beak", 0.5, 12, 3, 12, 9),  # no width
        detection("leg", 0.5, 15, 0, 20, 5),  # not above its threshold
        detection("beak", 0.4, 15, 0, 20, 5),
    ]
    kept = keep_boxes(found, (20, 30), ["beak", "leg"], [0.3, 0.5])
    assert kept["bbox"] == [[0, 0, 10, 10], [0, 0, 10, 10], [0, 15, 5, 5], [15, 0, 5, 5]]
    assert kept["category"] == [1, 0, 0, 0]
    assert kept["score"] == [0.9, 0.8, 0.6, 0.4]
    assert len(keep_boxes(found, (20, 30), ["beak", "leg"], [0.3, 0.5], iou=0.95)["bbox"]) == 5
    assert keep_boxes([], (20, 30), ["beak"], [0.0]) == {"bbox": [], "category": [], "score": []}


def test_output_is_a_concept_dataset_that_trains(detectors, dataset, tmp_path):
    output = tmp_path / "out"
    found = annotate_dataset(dataset, CONCEPTS, detectors["owl"], output)
    loaded = load_concept_dataset(str(output))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 7, "test": 2}
    objects = loaded["train"].features["objects"]
    assert objects["category"] == List(ClassLabel(names=["beak", "leg", "no"]))
    assert objects["bbox"] == List(List(Value("float32"), length=4))
    assert objects["score"] == List(Value("float32"))
    assert loaded["train"].features["label"].names == ["robin", "wren"]
    for name, split in loaded.items():
        sources = sorted(Path(dataset, name).rglob("*.png"))
        cells = split.cast_column("image", ImageFeature(decode=False))["image"]
        assert [cell["bytes"] for cell in cells] == [path.read_bytes() for path in sources]

    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = AscentViTForImageClassification(
        ascent_vit.AscentViTConfig(
            backbone_config={"model_type": "vit", **config, "image_size": 32, "patch_size": 8},
            spatial_concepts=["beak", "leg", "no"],
            num_labels=2,
        )
    )
    collate = ConceptCollator(AscentViTImageProcessor.from_model_config(model.config))
    shown = [row for row in loaded["train"] if row["objects"]["bbox"]]
    batch = collate(shown[:4])
    targets = batch["spatial_concept_targets"]
    assert targets.shape == (4, 16, 3) and (targets == 1).any(dim=(1, 2)).all()
    before = model(**batch)
    before.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    assert before.alignment_loss > 0 and model(**batch).loss < before.loss
    assert sum(found.boxes.values()) == sum(len(row["bbox"]) for rows in rows_of(output).values() for row in rows)


def test_card_says_that_a_model_made_the_annotations(detectors, dataset, tmp_path):
    found = annotate_dataset(dataset, CONCEPTS, detectors["owl"], tmp_path / "out")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "other"
    assert "A model made the annotations" in card.text and "`owl`" in card.text
    assert str(tmp_path) not in card.content and str(Path(dataset).parent) not in card.content
    for concept in CONCEPTS:
        boxes, images = found.boxes[concept.name], found.images_with[concept.name]
        assert f"| {concept.name} | {concept.prompt} | {concept.threshold:g} | {boxes} | {images} |" in card.text
    without = sum(not row["bbox"] for row in rows_of(tmp_path / "out")["train"])
    assert f"| train | 7 | {without} |" in card.text


def test_review_sheet_spreads_over_concepts_and_scores(detectors, dataset, tmp_path):
    found = annotate_dataset(dataset, CONCEPTS, detectors["owl"], tmp_path / "out")
    chosen = choose_review(found.dataset, len(CONCEPTS))
    assert len(set(chosen)) == len(chosen) == 24
    scores: dict[int, list[float]] = {}
    for split, row, place in chosen:
        objects = found.dataset[split][row]["objects"]
        scores.setdefault(objects["category"][place], []).append(objects["score"][place])
    for i in range(len(CONCEPTS)):
        every = [
            score
            for rows in rows_of(tmp_path / "out").values()
            for row in rows
            for category, score in zip(row["category"], row["score"], strict=True)
            if category == i
        ]
        assert len(scores[i]) == 8 and (scores[i][0], scores[i][-1]) == (min(every), max(every))
    with Image.open(tmp_path / "out" / "review.png") as sheet:
        assert sheet.width > 1500
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (pixels == (0xE6, 0x61, 0x01)).all(axis=1).sum() > 1000


def test_nothing_found(detectors, dataset, tmp_path):
    found = annotate_dataset(dataset, [DetectedConcept("beak", "beak", 1.0)], detectors["owl"], tmp_path / "out")
    assert found.boxes == {"beak": 0} and found.empty == found.images
    assert (tmp_path / "out" / "review.png").is_file()
    rows = rows_of(tmp_path / "out")
    assert rows["test"] == [{"bbox": [], "category": [], "score": []}] * 2
    load_concept_dataset(str(tmp_path / "out"))


class Stopped(Exception):
    pass


def stop_after(monkeypatch, number: int) -> list[int]:
    """Lets detection fail after so many shards; gives the list of the first rows of the shards it went over."""
    started: list[int] = []
    detect_rows = shards._detect_rows

    def counted(split, start, *arguments):
        if len(started) == number:
            raise Stopped
        started.append(start)
        return detect_rows(split, start, *arguments)

    monkeypatch.setattr(shards, "_detect_rows", counted)
    return started


def test_resume_after_an_error(detectors, dataset, tmp_path, monkeypatch):
    arguments = (dataset, CONCEPTS, detectors["owl"])
    annotate_dataset(*arguments, tmp_path / "whole", rows_per_shard=3)
    with monkeypatch.context() as patch:
        started = stop_after(patch, 2)
        with pytest.raises(Stopped):
            annotate_dataset(*arguments, tmp_path / "out", rows_per_shard=3)
    assert started == [0, 3] and sorted(os.listdir(tmp_path)) == [".out.annotate", "whole"]

    with pytest.raises(FileExistsError, match="--resume"):
        annotate_dataset(*arguments, tmp_path / "out", rows_per_shard=3)
    with pytest.raises(ValueError, match="another iou"):
        annotate_dataset(*arguments, tmp_path / "out", rows_per_shard=3, iou=0.7, resume=True)
    with pytest.raises(ValueError, match="another concepts"):
        annotate_dataset(dataset, CONCEPTS[:2], *arguments[2:], tmp_path / "out", rows_per_shard=3, resume=True)
    with pytest.raises(ValueError, match="another detector and another detector_version"):
        annotate_dataset(*arguments[:2], detectors["dino"], tmp_path / "out", rows_per_shard=3, resume=True)

    with monkeypatch.context() as patch:
        started = stop_after(patch, 99)
        annotate_dataset(*arguments, tmp_path / "out", rows_per_shard=3, resume=True)
    assert started == [6, 0]
    assert_same_boxes(tmp_path / "out", tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_resume_refuses_changed_images(detectors, dataset, tmp_path, monkeypatch):
    copy = tmp_path / "birds"
    shutil.copytree(dataset, copy)
    arguments = (str(copy), CONCEPTS, detectors["owl"], tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 1)
        annotate_dataset(*arguments, rows_per_shard=3)
    first = sorted((copy / "train").rglob("*.png"))[0]
    Image.new("RGB", (40, 40)).save(first)
    with pytest.raises(ValueError, match="rows 0 to 2 of the split train have changed"):
        annotate_dataset(*arguments, rows_per_shard=3, resume=True)


def test_resume_after_a_kill(detectors, dataset, tmp_path):
    annotate_dataset(dataset, CONCEPTS, detectors["owl"], tmp_path / "whole", rows_per_shard=1)
    code = (
        "from ascent_vit.data.annotate import *\n"
        f"concepts = {CONCEPTS!r}\n"
        f"annotate_dataset({dataset!r}, concepts, {detectors['owl']!r}, {str(tmp_path / 'out')!r}, rows_per_shard=1)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(ascent_vit.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    work = tmp_path / ".out.annotate"
    deadline = time.monotonic() + 120
    while not list(work.glob("train-*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(list(work.glob("t*.json"))) < 9 and not (tmp_path / "out").exists()
    annotate_dataset(dataset, CONCEPTS, detectors["owl"], tmp_path / "out", rows_per_shard=1, resume=True)
    assert_same_boxes(tmp_path / "out", tmp_path / "whole")
    assert not work.exists()


def test_spatial_annotations_are_replaced_on_request_only(detectors, tmp_path):
    image = {"bytes": png(np.full((40, 30, 3), 99, np.uint8)), "path": None}
    features = Features(
        {
            "image": ImageFeature(),
            "label": ClassLabel(names=["robin", "wren"]),
            "concepts": List(ClassLabel(names=["small", "brown"])),
            "points": {"xy": List(List(Value("float32"), length=2)), "category": List(ClassLabel(names=["eye"]))},
            "photographer": Value("string"),
        }
    )
    columns = {
        "image": [image] * 3,
        "label": [0, 1, 0],
        "concepts": [[0], [], None],
        "points": [{"xy": [[1.0, 2.0]], "category": [0]}] * 3,
        "photographer": ["x", "y", "z"],
    }
    DatasetDict(train=Dataset.from_dict(columns, features=features)).save_to_disk(tmp_path / "data")
    arguments = (str(tmp_path / "data"), CONCEPTS, detectors["owl"], tmp_path / "out")
    with pytest.raises(ValueError, match="already has points: --replace"):
        annotate_dataset(*arguments)
    annotate_dataset(*arguments, replace=True)
    (split,) = load_concept_dataset(str(tmp_path / "out")).values()
    assert split.column_names == ["image", "label", "concepts", "objects", "photographer"]
    assert split["concepts"][:] == columns["concepts"] and split["photographer"][:] == columns["photographer"]


class TestLists:
    """A dataset that says which concepts each image shows, and not where."""

    PRESENT = [[0, 2], None, [], [1], [2], [0, 1, 2], [0]]
    UNKNOWN = [None, [0], [1], None, [2, 1], None, []]

    @pytest.fixture
    def listed(self, dataset, tmp_path) -> str:
        split = load_dataset(dataset)["train"]
        names = List(ClassLabel(names=[concept.name for concept in CONCEPTS]))
        split = split.add_column("present", self.PRESENT, feature=names)
        split = split.add_column("unknown_present", self.UNKNOWN, feature=names)
        DatasetDict(train=split).save_to_disk(tmp_path / "listed")
        return str(tmp_path / "listed")

    @pytest.mark.parametrize("name", ["owl", "dino"])
    def test_are_all_that_the_detector_is_asked_for(self, name, detectors, dataset, listed, tmp_path, monkeypatch):
        asked = []
        detections = detection_module._detections

        def noted(detector, inputs, *arguments):
            for one in inputs:
                asked.append(one["candidate_labels"])
                yield from detections(detector, [one], *arguments)

        monkeypatch.setattr(detection_module, "_detections", noted)
        annotate_dataset(dataset, CONCEPTS, detectors[name], tmp_path / "all")
        del asked[:]
        annotate_dataset(listed, CONCEPTS, detectors[name], tmp_path / "out")
        allowed = [{0, 2}, {0, 1, 2}, {1}, {1}, {1, 2}, {0, 1, 2}, {0}]
        assert [len(prompts) for prompts in asked] == [len(ids) for ids in allowed]
        whole, found = rows_of(tmp_path / "all")["train"], rows_of(tmp_path / "out")["train"]
        for every, kept, ids in zip(whole, found, allowed, strict=True):
            places = [i for i, category in enumerate(every["category"]) if category in ids]
            assert kept["category"] == [every["category"][i] for i in places]
            assert kept["bbox"] == [every["bbox"][i] for i in places]
        card = DatasetCard.load(tmp_path / "out" / "README.md").text
        assert "that an image may show by `present` and `unknown_present`" in card
        # Places and lists never contradict each other.
        validate_dataset(load_concept_dataset(str(tmp_path / "out")))

    def test_of_nothing(self, detectors, listed, tmp_path):
        split = load_concept_dataset(listed)["train"].select([2]).remove_columns("unknown_present")
        DatasetDict(train=split).save_to_disk(tmp_path / "nothing")
        annotate_dataset(str(tmp_path / "nothing"), CONCEPTS, detectors["owl"], tmp_path / "out")
        assert rows_of(tmp_path / "out")["train"] == [{"bbox": [], "category": [], "score": []}]

    def test_must_be_of_the_concepts_to_look_for(self, detectors, listed, tmp_path):
        message = "lists in present which of the concepts beak, leg, no each image shows: look for the same"
        with pytest.raises(ValueError, match=message):
            annotate_dataset(listed, CONCEPTS[::-1], detectors["owl"], tmp_path / "out")

    def test_that_change_do_not_go_on(self, detectors, listed, tmp_path, monkeypatch):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(patch, 1)
            annotate_dataset(listed, CONCEPTS, detectors["owl"], tmp_path / "out", rows_per_shard=3)
        split = load_concept_dataset(listed)["train"].remove_columns("unknown_present")
        listed = str(tmp_path / "later" / "listed")
        DatasetDict(train=split).save_to_disk(listed)
        with pytest.raises(ValueError, match="had another lists"):
            annotate_dataset(listed, CONCEPTS, detectors["owl"], tmp_path / "out", rows_per_shard=3, resume=True)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_concepts_of_a_text_file(tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_text("\ufeffbeak\n\n  red   crown \nbird's foot\n", encoding="utf-8")
    assert read_concepts(path, 0.4) == [
        DetectedConcept("beak", "beak", 0.4),
        DetectedConcept("red crown", "red crown", 0.4),
        DetectedConcept("bird's foot", "bird's foot", 0.4),
    ]


def test_concepts_of_a_yaml_file(tmp_path):
    path = tmp_path / "concepts.yaml"
    path.write_text('beak: {prompt: "a bird\'s beak", threshold: 0.3}\nno:\n1: {threshold: 1}\n')
    assert read_concepts(path) == [
        DetectedConcept("beak", "a bird's beak", 0.3),
        DetectedConcept("no", "no", 0.2),
        DetectedConcept("1", "1", 1.0),
    ]
    path.write_text("- beak\n- yes\n")
    assert [concept.name for concept in read_concepts(path)] == ["beak", "yes"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "names no concept"),
        ("a.txt", b" \n\n", "names no concept"),
        ("a.yaml", b"# nothing\n", "names no concept"),
        ("a.txt", b"beak\nleg\nbeak\n", "concept 'beak' is there twice"),
        ("a.yaml", b"beak: {threshold: 0.1}\nbeak: {threshold: 0.2}\n", "concept 'beak' is there twice"),
        ("a.yaml", b"beak: {prompt: Bill}\nbill:\n", "prompt 'bill' is there twice"),
        ("a.yaml", b"beak: {threshold: 1.2}\n", "threshold of 'beak' must be a number from 0 to 1; got 1.2"),
        ("a.yaml", b"beak: {threshold: .nan}\n", "threshold of 'beak' must be"),
        ("a.yaml", b"beak: {threshold: high}\n", "threshold of 'beak' must be a number from 0 to 1; got 'high'"),
        ("a.yaml", b"beak: {prompt: 3}\n", "prompt of 'beak' must be text; got 3"),
        ("a.yaml", b"beak: {promt: bill}\n", "'beak' may have prompt and threshold"),
        ("a.yaml", b"beak: 0.3\n", "'beak' may have prompt and threshold"),
        ("a.yaml", b"beak: [\n", "no valid YAML"),
        ("a.yaml", b"beak\n", "must map each concept"),
        ("a.txt", "schnäbel".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_bad_concept_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_concepts(tmp_path / name)


def test_bad_thresholds_and_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected concepts"):
        read_concepts(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="threshold must be a number from 0 to 1; got 1.5"):
        read_concepts(tmp_path / "none.txt", 1.5)


def test_bad_detectors_and_settings(detectors, dataset, tmp_path):
    def refused(error, message, concepts=CONCEPTS, detector=detectors["owl"], source=dataset, **options):
        with pytest.raises(error, match=message):
            annotate_dataset(source, concepts, detector, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists() and not (tmp_path / ".out.annotate").exists()

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**tiny)).save_pretrained(tmp_path / "vit")
    (tmp_path / "empty").mkdir()
    shutil.copytree(detectors["owl"], tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    shutil.copytree(detectors["owl"], tmp_path / "speechless")
    for path in (tmp_path / "speechless").glob("tokenizer*"):
        path.unlink()

    refused(FileNotFoundError, "There is no detector folder", detector=str(tmp_path / "nowhere"))
    refused(FileNotFoundError, "cannot be read", detector=str(tmp_path / "empty"))
    refused(FileNotFoundError, "cannot be read", detector=str(tmp_path / "weightless"))
    refused(ValueError, "a model of type vit; expected an open-vocabulary", detector=str(tmp_path / "vit"))
    refused(ValueError, "knows no word of the prompt", detector=str(tmp_path / "speechless"))
    refused(
        ValueError, "has 21 tokens; .* at most 16", concepts=[DetectedConcept("x", "a very long bird's beak", 0.1)]
    )
    refused(FileNotFoundError, "There is no dataset folder", source=str(tmp_path / "nothing"))
    refused(ValueError, "iou must be", iou=1.5)
    refused(ValueError, "batch_size must be 1 or more", batch_size=0)
    refused(ValueError, "at least one concept", concepts=[])


def test_a_broken_image_is_named(detectors, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "birds")
    path = sorted((tmp_path / "birds" / "train").rglob("*.png"))[3]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="image of row 3 of the split train cannot be read"):
        annotate_dataset(str(tmp_path / "birds"), CONCEPTS, detectors["owl"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_is_there_is_left_alone(detectors, dataset, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        annotate_dataset(dataset, CONCEPTS, detectors["owl"], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]
