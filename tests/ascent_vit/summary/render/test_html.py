# SPDX-License-Identifier: Apache-2.0
"""Pages of summaries: what is in them, and what a real Chromium makes of them."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List
from PIL import Image

from ascent_vit.data import load_digits_dataset
from ascent_vit.summary import summarize
from ascent_vit.summary.pictures import MOST_BYTES, Pictures, patch_box
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification, AscentViTImageProcessor


ATTACKS = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "\"'&<!-- {{script}} \u2028", "$&\\"]
NAMES = [*ATTACKS, *(f"digit {i}" for i in range(4, 10))]


class Similar:
    """Stands for an index of cases, of which it finds two."""

    def similar(self, explanation, k):
        picture = Image.new("RGB", (32, 32), "red")
        case = SimpleNamespace(row=7, score=0.5, label=ATTACKS[1], prediction=ATTACKS[0], thumbnail=picture)
        return [case, SimpleNamespace(**vars(case) | {"row": 8, "thumbnail": None})]


@pytest.fixture(scope="module")
def summary():
    """A summary with names that would be dangerous if they were not escaped."""
    config = AscentViTConfig(
        backbone_config={
            "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "image_size": 32, "patch_size": 8,
        },
        fusion_levels=0, global_concepts=NAMES, spatial_concepts=NAMES, num_labels=2,
        id2label=dict(enumerate(ATTACKS[:2])), label2id={name: i for i, name in enumerate(ATTACKS[:2])},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AscentViTForImageClassification(config).eval()
    split = load_digits_dataset(copies=1, canvas=32)["test"].select(range(12))
    names = ClassLabel(names=NAMES)
    features = split.features.copy() | {"label": ClassLabel(names=ATTACKS[:2]), "concepts": List(names)}
    processor = AscentViTImageProcessor.from_model_config(config)
    return summarize(
        model, processor, split.cast(Features(features)), by=["sample"], index=Similar(), spatial_concepts=NAMES
    )


class Page(HTMLParser):
    """Elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.in_script = tag == "script"
        if self.in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] += data


def test_page_is_whole_and_loads_nothing(summary):
    text = summary.to_html(ATTACKS[1])
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "{{" not in re.sub(r"<script type=.*?</script>", "", text) and "http" not in text.replace("http-equiv", "")
    data, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert [tag for tag, _ in page.elements if tag == "img"] == []
    assert "share it only where these may be shared" in text
    found = json.loads(data)
    assert [item["name"] for item in found["classes"]] == ATTACKS[:2]
    effects = np.frombuffer(base64.b64decode(found["effects"]["all"]), dtype=np.float32).reshape(20, 2)
    np.testing.assert_allclose(effects, summary.effects["all"], rtol=1e-6)


def test_pictures_are_small_and_without_metadata(summary):
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    buffer = io.BytesIO()
    Image.new("RGB", (800, 400), "blue").save(buffer, "jpeg", exif=exif)
    pictures = Pictures()
    pictures.add(0, Image.open(buffer))
    assert b"secret" not in pictures.images[0]
    assert Image.open(io.BytesIO(pictures.images[0])).size == (96, 48)
    assert all(key in summary.pictures.images for pair in summary.confusions for key in pair["rows"])


def test_many_pictures_become_smaller(monkeypatch):
    monkeypatch.setattr("ascent_vit.summary.pictures.MOST_BYTES", 60_000)
    monkeypatch.setattr("ascent_vit.summary.pictures.MOST_PICTURES", 40)
    rng, pictures = np.random.default_rng(0), Pictures()
    for i in range(50):
        pictures.add(i, Image.fromarray(rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)))
    assert len(pictures.images) == 40 and pictures.side < 96
    assert 20_000 < sum(len(base64.b64encode(data)) for data in pictures.images.values()) <= 61_000
    assert MOST_BYTES < 15_000_000 * 2 / 3


def test_patches_are_outlined_where_they_lie():
    processor = AscentViTImageProcessor(size={"height": 24, "width": 32}, patch_size=8)
    assert patch_box(0, (3, 4), processor, (300, 200)) == pytest.approx([0, 0, 1 / 4, 1 / 3])
    assert patch_box(6, (3, 4), processor, (300, 200)) == pytest.approx([2 / 4, 1 / 3, 1 / 4, 1 / 3])
    # The middle 24x24 of 128x32 pixels, in patches of 6.
    crop = {"height": 24, "width": 24}
    cropping = AscentViTImageProcessor(size={"shortest_edge": 32}, do_center_crop=True, crop_size=crop, patch_size=6)
    box = patch_box(7, (4, 4), cropping, (256, 1024))
    assert box == pytest.approx([(52 + 18) / 128, (4 + 6) / 32, 6 / 128, 6 / 32])


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path):
    """Opens a summary's page; errors, dialogs and requests of anything else fail the test."""
    contexts, trouble = [], []

    def open_page(summary, **options):
        path = tmp_path / "index.html"
        path.write_text(summary.to_html(ATTACKS[0]), encoding="utf-8")
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                trouble.append(request.url)
                if request.url != path.as_uri() and not request.url.startswith("data:")
                else None
            ),
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def names(page, panel: str, column: int = 1) -> list[str]:
    return page.locator(f"#{panel} .list tbody tr:visible td:nth-child({column})").all_text_contents()


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_part_can_be_seen(show, summary, width, scheme):
    long = dataclasses.replace(summary, concepts=[item | {"name": item["name"] * 9} for item in summary.concepts])
    page = show(long, viewport={"width": width, "height": 700}, color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 27)"
    assert dark == (scheme == "dark")
    tabs = page.locator("[role=tab]")
    assert tabs.all_text_contents() == ["Overview", "Classes", "Concepts", "Errors", "Slices"]
    for tab in tabs.all():
        tab.click()
        assert page.locator("[role=tabpanel]:visible").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.scripts.length") == 2
    assert page.title() == ATTACKS[0]


@pytest.mark.slow
def test_the_page_says_the_numbers(show, summary):
    page = show(summary)
    assert f"{summary.figures['accuracy']:.1%}" in page.inner_text("#overview")
    page.click("#tab-concepts")
    by_attention = sorted(range(20), key=lambda i: -summary.concepts[i]["attention"])
    assert names(page, "concepts") == [summary.concepts[i]["name"] for i in by_attention]
    first = summary.concepts[by_attention[0]]
    assert first["name"] in page.inner_text("#concepts h2")
    pictures = page.locator("#concepts .images img")
    assert pictures.count() == 9
    spatial = next(item for item in summary.concepts if item["stream"] == "spatial")
    page.locator("#concepts tbody tr", has_text="spatial").filter(has_text=spatial["name"]).first.click()
    outline, frame = (page.locator(f"#concepts .frame{inner}").first.bounding_box() for inner in (" b", ""))
    exemplar = spatial["exemplars"][0]
    left, top, *_ = summary.boxes[exemplar["row"]][exemplar["patch"]]
    assert outline["x"] - frame["x"] == pytest.approx(frame["width"] * left, abs=1.5)
    assert outline["y"] - frame["y"] == pytest.approx(frame["height"] * top, abs=1.5)
    drawn = page.evaluate("document.querySelector('#concepts canvas').getContext('2d').getImageData(0, 0, 4, 4).data")
    brightest = np.array(list(drawn)).reshape(16, 4)[:, 0].argmax()
    assert brightest == np.argmax(spatial["mean_map"])
    page.click("#tab-errors")
    pair = summary.confusions[0]
    assert f"{pair['images']} images" in page.inner_text("#errors")
    assert page.locator("#errors li.wide").count() == len(pair["rows"])
    assert f"Similar: case 7, {ATTACKS[1]}, predicted {ATTACKS[0]}" in page.inner_text("#errors")


@pytest.mark.slow
def test_search_and_sort(show, summary):
    page = show(summary)
    page.click("#tab-concepts")
    page.fill("#concepts .list input", "DIGIT 7")
    assert names(page, "concepts") == ["digit 7", "digit 7"]
    page.fill("#concepts .list input", "nothing of the kind")
    assert names(page, "concepts") == [] and page.locator("#concepts .empty").first.is_visible()
    page.fill("#concepts .list input", "")
    page.click("#concepts .list th button:text-is('attention')")
    attention = [float(text.rstrip("%")) for text in names(page, "concepts", 3)]
    assert attention == sorted(attention) and len(attention) == 20
    assert page.locator("#concepts .list th").nth(2).get_attribute("aria-sort") == "ascending"
    page.click("#tab-slices")
    values = [float(text.rstrip("%")) for text in page.locator("#slices td:nth-child(4)").all_text_contents()]
    assert values == sorted(values) and len(values) == len(summary.slices)


@pytest.mark.slow
def test_keyboard(show, summary):
    page = show(summary)
    page.keyboard.press("Tab")
    for key, name in (
        ("ArrowRight", "Classes"),
        ("End", "Slices"),
        ("ArrowRight", "Overview"),
        ("ArrowLeft", "Slices"),
    ):
        page.keyboard.press(key)
        assert page.locator("[aria-selected=true][role=tab]").inner_text() == name
        assert page.evaluate("document.activeElement.textContent") == name
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    listed = names(page, "concepts")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "search"
    while page.evaluate("document.activeElement.tagName") != "TR":
        page.keyboard.press("Tab")
    for key, place in (("ArrowDown", 1), ("End", 19), ("ArrowUp", 18), ("PageUp", 8), ("Home", 0), ("ArrowUp", 0)):
        page.keyboard.press(key)
        chosen = page.locator("#concepts tr[aria-selected=true] td:first-child").text_content()
        assert chosen == listed[place] and listed[place] in page.inner_text("#concepts h2")
    # One row is reached by the tab key, then what is said of it.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('section[aria-label]') !== null")
    page.locator("#concepts section .link").first.focus()
    name = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert page.locator("#classes h2").inner_text() == name
    assert page.evaluate("document.activeElement.tagName") == "TR"
