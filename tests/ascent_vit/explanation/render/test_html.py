# SPDX-License-Identifier: Apache-2.0
"""Pages of explanations: what is in them, and what a real Chromium makes of them."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ascent_vit.explanation import Explanation
from ascent_vit.explanation.render.html import axis_shares, explanation_to_html
from ascent_vit.explanation.render.rows import contribution_rows, signed
from modeling_ascent_vit import AscentViTImageProcessor


ATTACKS = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "\"'&<!-- {{script}} \u2028", "$&\\"]


def make_explanation(
    size: tuple[int, int] = (60, 40), spatial: int = 3, classes: int = 4, processor=None, grid=(3, 4), **kwargs
) -> Explanation:
    """An explanation with random numbers that add up: 2 heads, 2 global concepts."""
    rng = np.random.default_rng(0)
    names = {
        "global": ["day", "night"],
        "spatial": [f"part {i}" for i in range(spatial)],
        "unsupervised": [],
    } | kwargs.pop("concept_names", {})
    heads = rng.dirichlet(np.ones(max(spatial, 1)), (2, *grid))[..., :spatial].transpose(0, 3, 1, 2)
    table = rng.normal(size=(2, spatial, classes))
    added = np.concatenate([rng.normal(size=(2, classes)), np.einsum("as,ask->sk", heads.mean((2, 3)), table)])
    biases = rng.normal(size=classes)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    values = {
        "image": Image.fromarray(pixels),
        "label_id": 1,
        "labels": [f"class {i}" for i in range(classes)],
        "logits": added.sum(0) + biases,
        "class_biases": biases,
        "concept_names": names,
        "contributions": added,
        "head_attention": np.concatenate([np.full((2, 2), 0.5), heads.mean((2, 3))], axis=1),
        "patch_attention_heads": heads,
        "contribution_table": table,
    }
    values = {k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    processor = processor or AscentViTImageProcessor(size={"height": 24, "width": 32}, patch_size=8)
    return Explanation(**(values | kwargs), processor=processor)


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

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])

    @property
    def image(self) -> Image.Image:
        (source,) = [attributes["src"] for tag, attributes in self.elements if tag == "img"]
        return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))


def decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=np.float32)


def test_page_is_whole_and_loads_nothing():
    text = explanation_to_html(make_explanation())
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "{{" not in text and "http" not in text.replace("http-equiv", "")
    _, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_page_holds_the_numbers():
    explanation = make_explanation()
    data = Page(explanation.to_html()).data
    order = np.argsort(-explanation.logits).tolist()
    assert data["classes"] == [explanation.labels[i] for i in order]
    assert data["classes"][data["shown"]] == "class 1" and data["other"] == -1
    np.testing.assert_array_equal(decoded(data["logits"]), explanation.logits[order])
    np.testing.assert_array_equal(decoded(data["contributions"]), explanation.contributions[:, order].ravel())
    np.testing.assert_array_equal(decoded(data["patch_attention_heads"]), explanation.patch_attention_heads.ravel())
    heads, spatial, *_ = explanation.patch_attention_heads.shape
    tables = decoded(data["tables"]).reshape(heads, spatial, len(order))
    maps = np.einsum("ashw,as->shw", explanation.patch_attention_heads, tables[..., data["shown"]])
    np.testing.assert_allclose(maps, explanation.patch_contributions, rtol=1e-6, atol=1e-7)
    names = [concept["name"] for concept in data["concepts"]]
    assert names == ["day", "night", "part 0", "part 1", "part 2"]


def test_of_many_classes_those_of_the_highest_scores_are_there():
    explanation = make_explanation(classes=200)
    last = int(explanation.logits.argmin())
    text = explanation.for_class(last).to_html(classes=5)
    data = Page(text).data
    best = np.argsort(-explanation.logits)[:4]
    assert data["classes"] == [*(explanation.labels[i] for i in best), explanation.labels[last]]
    assert "Of the 200 classes" in text and "Of the" not in make_explanation().to_html()
    two = explanation.contrast(last, int(best[2])).to_html(classes=1)
    assert Page(two).data["classes"] == [explanation.labels[i] for i in (best[0], best[2], last)]


def test_small_images_keep_their_pixels_and_large_ones_are_reduced():
    small = make_explanation((28, 28))
    assert Page(small.to_html()).image.format == "PNG"
    np.testing.assert_array_equal(Page(small.to_html()).image, small.image)
    large = make_explanation(image=Image.new("RGB", (6000, 1000)))
    image = Page(large.to_html()).image
    assert image.width * image.height <= 2**20 and image.width / image.height == pytest.approx(6, rel=0.01)
    assert Page(make_explanation(image=Image.new("RGB", (8000, 50))).to_html()).image.size == (8000, 50)


@pytest.mark.parametrize(("arguments", "message"), [({"classes": 0}, "classes must be"), ({"top": 0}, "top must be")])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_explanation().to_html(**arguments)


def test_names_stay_names():
    explanation = make_explanation(labels=ATTACKS, concept_names={"spatial": ATTACKS[:3]})
    text = explanation.to_html(truth=ATTACKS[1])
    page = Page(text)
    assert page.data["classes"] == [ATTACKS[i] for i in np.argsort(-explanation.logits)]
    assert len(page.scripts) == 2 and sum(tag == "img" for tag, _ in page.elements) == 1
    assert text.count("<script") == 2 and "<!--" not in text


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.sampled_from(["resize", "crop", "large crop"]),
)
def test_geometry_is_that_of_the_maps(size, kind):
    options = {"size": {"height": 24, "width": 32}}
    if kind != "resize":
        side = 24 if kind == "crop" else 40
        options = {"size": {"height": 30, "width": 36}, "do_center_crop": True}
        options["crop_size"] = {"height": side, "width": side}
    processor = AscentViTImageProcessor(patch_size=8, **options)
    grid = {"resize": (3, 4), "crop": (3, 3), "large crop": (5, 5)}[kind]
    explanation = make_explanation(size, grid=grid, processor=processor)
    values = explanation.patch_attention[0]

    # As the page's script does it, in numpy.
    weights = []
    for axis, side, count in zip(axis_shares(explanation), size[::-1], grid, strict=True):
        position = (np.arange(side) + 0.5) / side
        place = np.clip((position - axis["start"]) / axis["patch"] - 0.5, 0, count - 1)
        hats = np.maximum(1 - np.abs(place[:, None] - np.arange(count)), 0)
        seen = (position >= axis["seen"][0]) & (position < axis["seen"][1])
        weights.append(hats * seen[:, None])
    drawn = weights[0] @ values @ weights[1].T
    np.testing.assert_allclose(drawn, explanation.attention_maps[0], atol=1e-5)


# In a browser


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path):
    """Opens an explanation's page; in the end nothing may have been complained about, executed or requested."""
    trouble, contexts = [], []

    def open_page(explanation, context_options=None, **kwargs):
        path = tmp_path / f"{len(contexts)}.html"
        explanation.save(path, **kwargs)
        context = chromium.new_context(**(context_options or {"viewport": {"width": 1200, "height": 900}}))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: trouble.append(request.url) if is_foreign(request.url, path) else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def is_foreign(url: str, path) -> bool:
    return url != path.as_uri() and not url.startswith("data:")


def canvas(page) -> np.ndarray:
    """Colours and opacity of the map, `(H, W, 4)`."""
    source = page.evaluate("document.getElementById('map').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))))


def rows(page) -> list[tuple[str, str]]:
    """Names and numbers of the list, from the top."""
    names = page.locator("#list .concept .name, #list .others .label").all_inner_texts()
    values = [text.replace("−", "-") for text in page.locator("#list .value").all_inner_texts()]
    return list(zip(names, values, strict=True))


def python_rows(explanation, top: int = 12) -> list[tuple[str, str]]:
    return [(row.name, signed(row.contribution)) for row in contribution_rows([explanation], top)]


def row(page, name: str):
    return page.locator(".concept", has=page.locator(f".name:text-is({json.dumps(name)})"))


def numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−] ?\d+\.\d\d", text.replace("+ ", "+"))]


def check_map(drawn: np.ndarray, maps: np.ndarray, index: int, colors: str):
    """The canvas shows map `index` in its colours; the scale is that of all maps."""
    values = maps[index] / np.abs(maps).max()
    np.testing.assert_allclose(drawn[..., 3], 255 * np.sqrt(np.abs(values)), atol=2)
    place = values if colors == "cividis" else (values + 1) / 2
    expected = matplotlib.colormaps[colors](np.round(place * 128) / 128, bytes=True)[..., :3].astype(int)
    opaque = drawn[..., 3] > 100
    assert opaque.any()
    np.testing.assert_allclose(drawn[opaque][:, :3], expected[opaque], atol=12)


def crop_processor() -> AscentViTImageProcessor:
    """Sees the middle 192x192 pixels of 1024x256 pixels, in 4x4 patches."""
    crop = {"height": 24, "width": 24}
    return AscentViTImageProcessor(size={"shortest_edge": 32}, do_center_crop=True, crop_size=crop, patch_size=6)


@pytest.mark.slow
def test_pointing_draws_the_map_where_the_patch_is(show):
    heads = np.zeros((2, 3, 4, 4), dtype=np.float32)
    heads[:, 1, 1, 3] = 1
    explanation = make_explanation((1024, 256), grid=(4, 4), processor=crop_processor(), patch_attention_heads=heads)
    page = show(explanation)
    row(page, "part 1").hover()
    drawn = canvas(page)
    assert drawn.shape == (256, 1024, 4)
    # Patches are 48 pixels; the first one begins at 32 from the top and 416 from the left.
    strongest = np.argwhere(drawn[..., 3] > 250)
    assert len(strongest)
    assert (strongest >= [80, 560]).all() and (strongest < [128, 608]).all()
    assert not drawn[:32, :, 3].any() and not drawn[:, 608:, 3].any()
    assert page.locator("#seen").is_visible()
    frame, seen = (page.locator(name).bounding_box() for name in ("#frame", "#seen"))
    assert seen["x"] - frame["x"] == pytest.approx(frame["width"] * 416 / 1024, abs=1.5)
    assert seen["width"] == pytest.approx(frame["width"] * 192 / 1024, abs=1.5)
    row(page, "part 0").hover()
    assert not canvas(page)[..., 3].any()
    row(page, "day").hover()
    assert page.locator("#map").is_hidden() and "as a whole" in page.inner_text("#caption")


@pytest.mark.slow
def test_maps_and_numbers_are_those_of_the_explanation(show):
    explanation = make_explanation((1024, 256), classes=12)
    page = show(explanation, classes=12)
    assert page.inner_text("#question") == page.title() == "Why class 1?"

    def check(reference, contribution_label):
        assert rows(page) == python_rows(reference)
        total, bias, logit = numbers(page.inner_text("#sum"))[:3]
        assert total + bias == pytest.approx(logit, abs=0.016)
        assert [bias, logit] == pytest.approx([reference.class_bias, reference.logit], abs=0.006)
        folded = page.locator(".others").count()
        if folded:
            page.click("#more")
        row(page, "part 2").hover()
        check_map(canvas(page), reference.contribution_maps, 2, "PuOr")
        assert contribution_label in page.inner_text("#caption")
        limit = np.abs(reference.patch_contributions).max()
        assert float(page.inner_text("#high")) == pytest.approx(limit, rel=0.01)
        if folded:
            page.click("#more")

    check(explanation, "contribution to class 1")
    assert page.inner_text("#unit") == "logit per patch"
    page.select_option("#class", label=page.locator("#class option", has_text="class 7 ").inner_text())
    check(explanation.for_class(7), "contribution to class 7")
    page.select_option("#other", label=page.locator("#other option", has_text="class 3 ").inner_text())
    check(explanation.contrast(7, 3), "class 7 rather than class 3")
    assert page.inner_text("#question") == "Why class 7 and not class 3?"
    assert page.inner_text("#unit") == "difference of logits per patch"
    page.check("input[value=attention]")
    row(page, "part 2").hover()
    check_map(canvas(page), explanation.attention_maps, 2, "cividis")
    page.check("#own")
    row(page, "part 1").hover()
    check_map(canvas(page), explanation.attention_maps[1:2], 0, "cividis")

    page = show(explanation.contrast(2, 9), classes=12)
    assert page.inner_text("#question") == page.title() == "Why class 2 and not class 9?"
    check(explanation.contrast(2, 9), "class 2 rather than class 9")


@pytest.mark.slow
def test_bars_run_from_a_common_line_to_their_side(show):
    explanation = make_explanation()
    page = show(explanation)
    zero = page.locator(".zero").first.bounding_box()["x"]
    widths = []
    for concept in explanation.concepts:
        bar = row(page, concept.name).locator(".bar").bounding_box()
        end = bar["x"] + (bar["width"] if concept.contribution < 0 else 0)
        assert end == pytest.approx(zero, abs=1.5)
        widths.append(bar["width"] / abs(concept.contribution))
    assert max(widths) == pytest.approx(min(widths), rel=0.1)


@pytest.mark.slow
def test_keyboard_touch_and_opacity(show):
    page = show(make_explanation())
    strongest = next(c for c in make_explanation().top(1, "spatial"))
    assert row(page, strongest.name).get_attribute("aria-pressed") == "true"
    other = next(f"part {i}" for i in range(3) if f"part {i}" != strongest.name)
    before = canvas(page)
    row(page, other).focus()
    assert (canvas(page) != before).any() and page.inner_text("#caption").startswith(other)
    page.keyboard.press("Enter")
    assert row(page, other).get_attribute("aria-pressed") == "true"
    assert row(page, strongest.name).get_attribute("aria-pressed") == "false"
    page.locator("#opacity").fill("30")
    assert page.locator("#map").evaluate("map => getComputedStyle(map).opacity") == "0.3"

    phone = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
    page = show(make_explanation(), phone)
    row(page, other).tap()
    assert page.inner_text("#caption").startswith(other)
    assert row(page, other).get_attribute("aria-pressed") == "true"


@pytest.mark.slow
def test_many_concepts_open_on_request(show):
    names = {"spatial": ["night", "day", *(f"part {i}" for i in range(93))]}
    explanation = make_explanation(spatial=95, concept_names=names)
    page = show(explanation)
    assert rows(page) == python_rows(explanation)
    assert rows(page)[-1][0] == "85 others"
    for shown, other in ((0, 3), (2, 0)):
        page.select_option("#class", index=shown)
        page.select_option("#other", index=1 + other)
        ranked = np.argsort(-explanation.logits).tolist()
        assert rows(page) == python_rows(explanation.contrast(ranked[shown], ranked[other]))
    page.click("#more")
    names = [name for name, _ in rows(page)]
    assert len(names) == 97 and abs(names.index("day") - (96 - names[::-1].index("day"))) == 1
    page.click("#more")
    assert rows(page)[-1][0] == "85 others"


@pytest.mark.slow
def test_small_contributions_are_summed_until_all_are_asked_for(show):
    contributions = np.array([[3.0], [0.02], [-1e-7], [-2.0], [0.0]], dtype=np.float32)
    explanation = make_explanation(classes=1, label_id=0, contributions=contributions)
    page = show(explanation)
    assert rows(page) == [("day", "+3.00"), ("part 1", "-2.00"), ("3 others", "+0.02")]
    page.click("#more")
    assert [number for _, number in rows(page)] == ["+3.00", "-2.00", "+0.02", "0.00", "0.00"]
    page = show(make_explanation(classes=1, label_id=0, contributions=contributions * 0))
    assert rows(page) == [(concept, "0.00") for concept in ("day", "night", "part 0", "part 1", "part 2")]
    assert page.locator("#more").is_hidden()


@pytest.mark.slow
def test_nothing_in_a_name_is_executed(show):
    page = show(make_explanation(labels=ATTACKS, concept_names={"spatial": ATTACKS[:3]}), truth=ATTACKS[0])
    names = page.locator(".name").evaluate_all("names => names.map(name => name.textContent)")
    assert set(ATTACKS[:3]) <= set(names)
    assert page.title() == f"Why {ATTACKS[1]}?"
    for button in page.locator(".concept").all():
        button.hover()
    page.select_option("#other", index=1)
    assert page.evaluate("document.scripts.length") == 2 and page.locator("img").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (2000, 20), (20, 2000)])
@pytest.mark.parametrize("width", [320, 1200])
def test_images_of_any_shape_can_be_seen(show, size, width):
    long_name = "x" * 300
    explanation = make_explanation(size, labels=[long_name] * 4, concept_names={"global": [long_name, "y z " * 99]})
    page = show(explanation, {"viewport": {"width": width, "height": 700}, "color_scheme": "dark"})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    image = page.locator("#image").bounding_box()
    assert min(image["width"], image["height"]) >= 40
    assert image["width"] / image["height"] == pytest.approx(size[0] / size[1], rel=0.05)
    if max(size) <= 28:
        assert image["width"] > 200
        assert page.locator("#image").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    assert page.locator("#map").bounding_box() == image
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 27)"


@pytest.mark.slow
def test_models_without_spatial_concepts_have_no_map(show):
    page = show(make_explanation(spatial=0))
    assert page.locator("#map").is_hidden() and page.locator("#map-controls").is_hidden()
    assert "no maps" in page.inner_text("#caption")
    row(page, "night").hover()
    assert len(rows(page)) == 2
