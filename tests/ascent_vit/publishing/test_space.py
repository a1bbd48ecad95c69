# SPDX-License-Identifier: Apache-2.0
"""Spaces: what is in their repository, and what a visitor sees in a real Chromium."""

import ast
import asyncio
import configparser
import html
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline

from ascent_vit import ConceptIndex
from ascent_vit.explanation import explain, intervene
from ascent_vit.explanation.render.rows import signed
from ascent_vit.inference import load_model
from ascent_vit.publishing import PublishOptions, stage_space
from ascent_vit.publishing.examples import MAX_EXAMPLES
from ascent_vit.publishing.source import find_source
from ascent_vit.publishing.space import REQUIREMENTS, SDK_VERSION
from ascent_vit_cli.app import USAGE_ERROR, run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


ROOT = Path(__file__).parents[3]
ATTACK = "<img src=x onerror=window.attacked=1>"
LABELS = ["wren", f"crow {ATTACK}", "tern", "gull & co", "owl"]
GLOBAL, SPATIAL = ["small", "wing", "red </script>"], ["wing", f"beak {ATTACK}", "tail", "eye"]

# Runs code as `python -c` does, and says on stderr where else than on this machine it would connect to.
WATCHED = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "0.0.0.0", "::1", None):
            print("CONNECTS", address, file=sys.stderr, flush=True)
sys.addaudithook(watch)
"""
COMMAND = "from ascent_vit_cli import main\nsys.argv[0] = 'ascent-vit'\nmain()\n"


def save_model(config, folder: Path) -> Path:
    model = AscentViTForImageClassification(config)
    # Classes far enough apart that concepts decide.
    for stream in (model.global_stream, model.spatial_stream):
        stream.projection.weight.data *= 30
    model.save_pretrained(folder)
    AscentViTImageProcessor.from_model_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model_dir(make_config, tmp_path) -> Path:
    config = make_config(
        global_concepts=GLOBAL, spatial_concepts=SPATIAL, num_labels=5, id2label=dict(enumerate(LABELS))
    )
    return save_model(config, tmp_path / "model")


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Two photographs with a camera's notes, and a file that is none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x013B] = "ann.private"
    paths = [folder / "first.jpg", folder / "second.jpg"]
    for path, size in zip(paths, [(640, 480), (60, 80)], strict=True):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path, exif=exif)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    return [*paths, broken]


def test_requirements_are_the_package_s_own():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    own = {line for line in parser["options"]["install_requires"].splitlines() if line}
    own |= {line for line in parser["options.extras_require"]["space"].splitlines() if line}
    assert {line.replace("[mcp]", "") for line in REQUIREMENTS} <= own
    assert f"gradio[mcp] >= {SDK_VERSION.rpartition('.')[0]}" in REQUIREMENTS


def test_stage_writes_a_whole_repository(model_dir, images, tmp_path):
    target = tmp_path / "space"
    options = PublishOptions("v3", data_license="cc-by-4.0", dataset_name="Birds")
    files = stage_space(model_dir, target, "ann/birds", options, images[:1])
    paths = {path.relative_to(target).as_posix(): path.stat().st_size for path in target.rglob("*") if path.is_file()}
    assert paths == {file.path: file.size for file in files}
    assert {"app.py", "requirements.txt", "README.md", "examples/01.png"} <= set(paths)
    assert not [
        path for path in paths if path.startswith(("ascent_vit_cli", "ascent_vit/data", "ascent_vit/training"))
    ]

    header, text = (target / "README.md").read_text().split("---\n", 2)[1:]
    settings = yaml.safe_load(header)
    assert settings["sdk"] == "gradio" and settings["sdk_version"] == SDK_VERSION and settings["title"] == "birds"
    assert settings["models"] == ["ann/birds"] and settings["app_file"] == "app.py"
    assert isinstance(settings["python_version"], str)
    assert settings["preload_from_hub"] == ["ann/birds config.json,model.safetensors,preprocessor_config.json v3"]
    assert 0 < len(settings["short_description"]) <= 60 and settings["suggested_hardware"] == "cpu-basic"
    assert (
        "mcp-server" in settings["tags"]
        and sys.modules["hub_double"].card_errors((target / "README.md").read_text()) == []
    )
    assert "competition between concepts, not the probability" in text and "images of Birds, licence cc-by-4.0" in text
    constants = [
        node.value for node in ast.walk(ast.parse((target / "app.py").read_text())) if type(node) is ast.Constant
    ]
    assert "ann/birds" in constants and "v3" in constants
    with Image.open(target / "examples" / "01.png") as example:
        assert example.size == (512, 384) and not example.getexif() and set(example.info) == set()


def test_settings_of_a_space_that_somebody_chose(model_dir, tmp_path):
    options = PublishOptions(space_description="Which bird: why?", space_hardware="zero-a10g")
    stage_space(model_dir, tmp_path / "space", "ann/birds", options, private=True)
    settings = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---\n")[1])
    assert settings["short_description"] == "Which bird: why?" and settings["suggested_hardware"] == "zero-a10g"
    assert settings["python_version"] == "3.12.12"
    # It is built without the secret that opens the model.
    assert "preload_from_hub" not in settings and settings["models"] == ["ann/birds"]
    with pytest.raises(ValueError, match="--space-description must have at most 60 characters; got 61"):
        PublishOptions(space_description="x" * 61)
    with pytest.raises(ValueError, match="--space-hardware must be one of cpu-basic, .*; got 'gpu'"):
        PublishOptions(space_hardware="gpu")


def test_the_code_of_a_space_needs_no_other_room(model_dir, tmp_path):
    target = tmp_path / "space"
    stage_space(model_dir, target, "ann/birds")
    packages = {"ascent_vit", "modeling_ascent_vit"}
    imported = set()
    for path in target.rglob("*.py"):
        place = path.relative_to(target).with_suffix("").parts
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                start = place[: len(place) - node.level] if node.level else ()
                name = ".".join((*start, *([node.module] if node.module else [])))
                imported.add(name)
    own = {name for name in imported if name.split(".")[0] in packages}
    assert len(own) > 15
    for name in own:
        path = target.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_digits_are_examples_of_the_demo(write_run, tmp_path):
    run_folder = write_run(tmp_path / "run")
    recipe = json.loads((run_folder / "recipe.json").read_text())
    (run_folder / "recipe.json").write_text(json.dumps(recipe | {"dataset_options": {"canvas": 48, "copies": 3}}))
    stage_space(run_folder, tmp_path / "space", "ann/digits")
    examples = sorted((tmp_path / "space" / "examples").iterdir())
    assert len(examples) == 8
    for path in examples:
        with Image.open(path) as image:
            assert image.size == (48, 48) and np.asarray(image).max() > 200
    assert "Handwritten Digits" in (tmp_path / "space" / "README.md").read_text()
    assert find_source(run_folder).model_dir == run_folder / "model"


def test_what_must_not_go_out_does_not(model_dir, images, tmp_path, monkeypatch):
    target = tmp_path / "space"
    refused = [
        ((images[:1], PublishOptions()), ValueError, "no licence is known that allows it"),
        ((images[:1], PublishOptions(data_license="cc-by-nc-4.0")), ValueError, "no licence is known"),
        ((images[2:], PublishOptions(include_images=True)), ValueError, "broken.png cannot be read"),
        (([tmp_path / "none.png"], PublishOptions(include_images=True)), FileNotFoundError, "none.png does not exist"),
        ((images[:1] * (MAX_EXAMPLES + 1), PublishOptions(include_images=True)), ValueError, "At most 24 examples"),
    ]
    for (examples, options), kind, message in refused:
        with pytest.raises(kind, match=message):
            stage_space(model_dir, target, "ann/birds", options, examples)
        assert not target.exists()
    monkeypatch.setenv("SOME_TOKEN", "competition between concepts")
    with pytest.raises(ValueError, match="holds the value of SOME_TOKEN"):
        stage_space(model_dir, target, "ann/birds")
    assert not target.exists()
    monkeypatch.delenv("SOME_TOKEN")
    with pytest.raises(ValueError, match="must be USER/NAME"):
        stage_space(model_dir, target, "birds")
    with pytest.raises(FileExistsError, match="not empty"):
        stage_space(model_dir, tmp_path, "ann/birds")


def test_dry_run_with_space_writes_both_repositories(write_run, tmp_path, capsys):
    arguments = ["publish", str(write_run(tmp_path / "run")), "--repo-id", "ann/birds"]
    output = tmp_path / "output"
    assert run([*arguments, "--space", "--dry-run", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["model", "space"]
    assert (output / "model" / "model.safetensors").is_file() and (output / "space" / "app.py").is_file()
    assert re.search(r"^app\.py +\d", shown, re.M) and re.search(r"^model\.safetensors +\d", shown, re.M)
    # A card that is there has its own examples.
    arguments[1] = str(output / "model")
    assert run([*arguments, "--examples", str(output / "space" / "examples")]) == USAGE_ERROR
    assert "is the card already: --examples goes with --space then" in capsys.readouterr().err


def test_bad_usage_of_the_local_app(model_dir, tmp_path, capsys):
    assert run(["space", str(tmp_path / "nowhere")]) == USAGE_ERROR
    assert run(["space", str(model_dir), "--examples", str(tmp_path / "none.png")]) == USAGE_ERROR
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["space", str(model_dir), "--port", str(taken.getsockname()[1])]) == USAGE_ERROR
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 3
    for error, message in zip(errors, ["There is no folder", "does not exist", "cannot be used"], strict=True):
        assert message in error


def test_table_adds_up_and_escapes(model_dir, images):
    app = pytest.importorskip("ascent_vit.publishing.space_app")
    model = AscentViTForImageClassification.from_pretrained(model_dir)
    processor = AscentViTImageProcessor.from_pretrained(model_dir)
    concepts = app.model_concepts(model.config)
    assert [concept.title for concept in concepts][:2] == ["small (global)", "wing (global)"]
    corrections = app.make_corrections(concepts, [1], [4])
    assert corrections == {("global", "wing"): "present", ("spatial", SPATIAL[1]): "absent"}
    intervention = app.explain_both(model, processor, images[0], corrections)
    assert intervention.after.concept("wing", "global").attention == pytest.approx(1)
    assert intervention.after.concept(SPATIAL[1]).attention == 0
    for other in (app.AUTOMATIC, 2):
        before, after = app.choose_explanations(intervention, 1, other)
        table = app.contributions_table(before, after, changed=True)
        assert ATTACK not in table and html.escape(ATTACK) in table
        numbers = [float(value) for value in re.findall(r'<td class="number">([^<]+)</td>', table)]
        for column in (numbers[::2], numbers[1::2]):
            assert sum(column[:-1]) == pytest.approx(column[-1], abs=5e-3 * len(column) + 1e-5)
        expected = after.logits[1] - (after.logits[2] if other == 2 else 0)
        assert numbers[-2] == pytest.approx(float(expected), abs=6e-3)
        wing = [table.index(f'wing <span class="soft">{stream}</span>') for stream in ("global", "spatial")]
        assert table[min(wing) : max(wing)].count("<tr>") == 1  # one after the other
    with pytest.raises(ValueError, match="both present and absent"):
        app.make_corrections(concepts, [1], [0, 1])
    with pytest.raises(ValueError, match="cannot be read as an image: give") as caught:
        app.explain_both(model, processor, images[2], {})
    assert "broken" not in str(caught.value)


def test_a_local_app_has_nothing_for_programs(model_dir):
    app = pytest.importorskip("ascent_vit.publishing.space_app")
    model = AscentViTForImageClassification.from_pretrained(model_dir)
    processor = AscentViTImageProcessor.from_pretrained(model_dir)
    assert app.build_app(model, processor, "birds").get_api_info()["named_endpoints"] == {}
    endpoints = app.build_app(model, processor, "birds", tool=True).get_api_info()["named_endpoints"]
    assert list(endpoints) == ["/explain_image"]


@pytest.mark.slow
def test_programs_can_call_a_published_app(model_dir, images, monkeypatch):
    app = pytest.importorskip("ascent_vit.publishing.space_app")
    gradio_client = pytest.importorskip("gradio_client")
    pytest.importorskip("mcp")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    model = AscentViTForImageClassification.from_pretrained(model_dir)
    processor = AscentViTImageProcessor.from_pretrained(model_dir)
    built = app.build_app(model, processor, "birds", tool=True)
    address = app.launch_app(built, wait=False, tool=True)
    try:
        client = gradio_client.Client(address, verbose=False)
        answer = client.predict(gradio_client.handle_file(images[0]), 3, api_name="/explain_image")
        with pytest.raises(gradio_client.exceptions.AppError, match="cannot be read as an image"):
            client.predict(gradio_client.handle_file(images[2]), 3, api_name="/explain_image")
        # A file of the server that nobody uploaded.
        secret = {"path": str(ROOT / "docs" / "images" / "digit.png"), "meta": {"_type": "gradio.FileData"}}
        event = httpx.post(f"{address}gradio_api/call/explain_image", json={"data": [secret, 3]}).json()["event_id"]
        refused = httpx.get(f"{address}gradio_api/call/explain_image/{event}", timeout=60).text
        assert "event: error" in refused and "label" not in refused
        tools = asyncio.run(mcp_tools(f"{address}gradio_api/mcp/"))
    finally:
        built.close()
    classifier = pipeline("concept-image-classification", model=model, image_processor=processor)
    (expected,) = classifier(str(images[0]), top_k=1, top_concepts=3)
    assert answer.keys() == expected.keys() and len(answer["concepts"]) == 3
    assert answer["label"] == expected["label"] and answer["logit"] == pytest.approx(expected["logit"], abs=1e-5)
    assert [each["name"] for each in answer["concepts"]] == [each["name"] for each in expected["concepts"]]
    (tool,) = tools
    assert tool.name.endswith("explain_image") and "which human concepts" in tool.description
    assert set(tool.inputSchema["properties"]) == {"image", "num_concepts"}


async def mcp_tools(address: str) -> list:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async with streamablehttp_client(address) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        return (await session.list_tools()).tools


def test_an_app_has_a_gpu_where_spaces_lend_one(model_dir, images):
    app = pytest.importorskip("ascent_vit.publishing.space_app")
    pytest.importorskip("spaces")
    model = AscentViTForImageClassification.from_pretrained(model_dir)
    processor = AscentViTImageProcessor.from_pretrained(model_dir)

    @app.on_gpu
    def explained(path):
        return app.explain_both(model, processor, path, {})

    # On ZeroGPU the function runs in a process of its own, and its result comes back pickled.
    answer = pickle.loads(pickle.dumps(explained(images[0])))
    assert answer.after.logit == pytest.approx(explain(model, processor, images[0]).logit, abs=1e-6)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Served:
    """An app in its own process, with what it wrote."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str]):
        self.output, self.errors = cwd / "output.txt", cwd / "errors.txt"
        plain = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,localhost"}
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                stdout=output,
                stderr=errors,
                env=os.environ | plain | environment,
            )

    def __enter__(self) -> "Served":
        end = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", self.output.read_text())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                pytest.fail(f"The app did not start: {self.errors.read_text()}")
            time.sleep(0.2)
        self.address = found[0]
        return self

    def __exit__(self, *exception) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def page():
    """A page of a real Chromium that reaches this machine alone; what went wrong in it is in `page.faults`."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("gradio")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1200})
        page.faults = []
        page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.faults.append(str(error)))

        def local_only(route):
            if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
                return route.continue_()
            page.faults.append(f"asks for {route.request.url}")
            return route.abort()

        page.route("**/*", local_only)
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def choose(page, element: str, option: str) -> None:
    page.click(f"{element} input")
    page.get_by_role("option", name=option, exact=True).click()
    page.keyboard.press("Escape")


def wait_for_text(page, element: str, text: str) -> None:
    page.locator(element).filter(has_text=text).first.wait_for()


def flip(model, processor, image) -> tuple[str, str, str]:
    """A spatial or global concept whose presence changes the prediction: stream, name, and the new prediction."""
    for stream, names in (("global", GLOBAL), ("spatial", SPATIAL)):
        for name in names:
            result = intervene(model, processor, image, {(stream, name): "present"})
            if result.changes_prediction and ATTACK not in name:
                return stream, name, result.after.predicted_label
    raise AssertionError("no concept changes the prediction of this model: take another seed")


@pytest.mark.slow
def test_a_visitor_explains_changes_and_compares(model_dir, images, tmp_path, page):
    model = AscentViTForImageClassification.from_pretrained(model_dir)
    processor = AscentViTImageProcessor.from_pretrained(model_dir)
    alone = explain(model, processor, images[0])
    stream, name, changed = flip(model, processor, images[0])
    other = next(label for label in LABELS if label not in (changed, alone.predicted_label))
    arguments = ["space", str(model_dir), "--port", str(free_port()), "--examples", str(images[1])]
    with Served(["-c", WATCHED + COMMAND, *arguments], tmp_path, {"PYTHONPATH": str(ROOT)}) as served:
        page.goto(served.address)
        page.set_input_files("#image input[type=file]", images[0])
        page.wait_for_selector("#contributions tbody tr")
        assert page.inner_text("#before h2, #before [data-testid=label-output-value]").strip() == alone.predicted_label
        shown = page.inner_text("#contributions")
        assert f"What speaks for {alone.predicted_label}" in shown and signed(alone.logit) in shown
        page.wait_for_selector("#maps img")
        maps = page.get_attribute("#maps img", "src")
        assert page.locator("#after").count() == 0 or not page.is_visible("#after")
        assert "It is not the probability that a concept is present" in page.inner_text("body")

        choose(page, "#present", f"{name} ({stream})")
        wait_for_text(page, "#outcome", f"changes from {alone.predicted_label} to {changed}")
        wait_for_text(page, "#contributions", f"What speaks for {changed}")
        assert changed in page.inner_text("#after") and page.is_visible("#after")
        assert "before" in page.inner_text("#contributions thead")

        choose(page, "#absent", f"{name} ({stream})")
        wait_for_text(page, "#outcome", f"{name} ({stream}) is set to both present and absent")
        page.click("#absent button[aria-label='Remove'], #absent .token-remove >> nth=0")
        wait_for_text(page, "#outcome", "changes from")

        choose(page, "#other", other)
        wait_for_text(page, "#contributions", f"Why {changed} and not {other}")
        contrast = intervene(model, processor, images[0], {(stream, name): "present"}).after.contrast(changed, other)
        assert signed(contrast.logit) in page.inner_text("#contributions")
        choose(page, "#label", other)
        wait_for_text(page, "#contributions", "A contrast needs two classes")
        choose(page, "#other", "no other class")
        choose(page, "#concept", SPATIAL[1])
        page.wait_for_function("before => document.querySelector('#maps img')?.src != before", arg=maps)

        page.click("#image button[aria-label='Remove Image'], #image button[aria-label='Clear']")
        page.set_input_files("#image input[type=file]", images[2])
        wait_for_text(page, "#outcome", "This file cannot be read as an image")
        page.wait_for_function("() => !document.querySelector('#contributions table')")
        page.locator(".gallery-item, .thumbnail-item, .gallery button").first.click()
        wait_for_text(page, "#contributions", f"What speaks for {other}")
        assert page.evaluate("window.attacked") is None
        faults, errors = page.faults, served.errors.read_text()
    # The preview of a file that is no image is empty, which Chromium does not count as an error.
    assert faults == []
    assert "CONNECTS" not in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_visitor_sees_similar_images(model_dir, images, tmp_path, page):
    pytest.importorskip("faiss")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=LABELS)})
    files = [str(path) for path in images[:2]]
    dataset = Dataset.from_dict({"image": files, "label": [1, 3]}, features=features)
    index = ConceptIndex.build(*load_model(str(model_dir)), dataset, thumbnails=True)
    index.save(model_dir / "index")
    query = explain(*load_model(str(model_dir)), images[0])
    (other,) = (case for case in index.similar(query) if case.row == 1)
    arguments = ["-c", WATCHED + COMMAND, "space", str(model_dir), "--port", str(free_port())]
    with Served(arguments, tmp_path, {"PYTHONPATH": str(ROOT)}) as served:
        page.goto(served.address)
        page.set_input_files("#image input[type=file]", images[0])
        wait_for_text(page, "#similar", "1.000")
        assert page.locator("#similar tbody tr").count() == page.locator("#similar img").count() == 2
        shown = page.inner_text("#similar")
        assert LABELS[1] in shown and LABELS[3] in shown and f"{other.score:.3f}" in shown
        choose(page, "#similar-by", "the attention to concepts")
        (other,) = (case for case in index.similar(query, by="attention") if case.row == 1)
        wait_for_text(page, "#similar", f"{other.score:.3f}")
        choose(page, "#similar-class", "of the predicted class")
        number = len(index.similar(query, same_class=True))
        page.wait_for_function("n => document.querySelectorAll('#similar tbody tr').length == n", arg=number)
        assert page.evaluate("window.attacked") is None
        faults, errors = page.faults, served.errors.read_text()
    assert faults == [] and "CONNECTS" not in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_visitor_settles_the_doubt(model_dir, images, tmp_path, page):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    from ascent_vit import Safeguard
    from ascent_vit.inference.load import load_model

    pixels = np.random.default_rng(0).integers(0, 256, (30, 48, 48, 3), dtype=np.uint8)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=LABELS)})
    rows = {"image": [Image.fromarray(values) for values in pixels], "label": [i % 5 for i in range(30)]}
    guard = Safeguard.fit(*load_model(str(model_dir)), Dataset.from_dict(rows, features=features), alpha=0.2)
    # Every image is of the right kind, and any class may be it.
    guard.judge.facts["limits"] = dict.fromkeys(guard.judge.facts["limits"], 1e9)
    guard.judge.arrays["thresholds"] = np.full(5, 0.05)
    guard.save_pretrained(model_dir)
    doubt = guard(images[0])
    assert doubt.verdict == "abstain"
    arguments = ["space", str(model_dir), "--port", str(free_port())]
    with Served(["-c", WATCHED + COMMAND, *arguments], tmp_path, {"PYTHONPATH": str(ROOT)}) as served:
        page.goto(served.address)
        page.set_input_files("#image input[type=file]", images[0])
        wait_for_text(page, "#doubt", "I don't know: " + " or ".join(doubt.labels))
        wait_for_text(page, "#doubt", f"is there {doubt.ask[0].concept}?")
        page.click("#answer-not")
        wait_for_text(page, "#doubt", f"is there {doubt.ask[1].concept}?")
        page.click("#answer-yes")
        after = doubt.answer({doubt.ask[1].concept: "yes"})
        wait_for_text(page, "#doubt", f"{doubt.ask[1].concept}: yes.")
        wait_for_text(page, "#doubt", " or ".join(after.labels))
        wait_for_text(page, "#doubt", "no share of right ones is promised")
        page.screenshot(path=tmp_path / "doubt.png", full_page=True)
        page.click("#answer-take")
        wait_for_text(page, "#doubt", f"is there {doubt.ask[1].concept}?")
        assert page.evaluate("window.attacked") is None
        assert page.faults == [] and "Traceback" not in served.errors.read_text()


# On the Hub, a Space's addresses differ from a dataset's in this word alone.
def serve_spaces(hub_double, monkeypatch):
    """Makes the Hub's double keep Spaces too, beside the datasets."""
    handler = hub_double.RequestHandler
    route, create = handler.route, handler.create

    def route_space(self, path, data):
        return route(self, re.sub(r"^(/api)?/spaces/", r"\1/datasets/", path), data)

    def create_space(self, data):
        wanted = json.loads(data)
        if wanted.get("type") == "space":
            assert wanted["sdk"] == "gradio"
            data = json.dumps(wanted | {"type": "dataset"}).encode()
        return create(self, data)

    monkeypatch.setattr(handler, "route", route_space)
    monkeypatch.setattr(handler, "create", create_space)


@pytest.mark.slow
def test_publish_sends_a_space_that_runs(write_run, hub, client, tmp_path, monkeypatch, page):
    pytest.importorskip("mcp")
    serve_spaces(sys.modules["hub_double"], monkeypatch)
    run_folder = write_run(tmp_path / "run")
    sent = client(COMMAND, "publish", run_folder, "--repo-id", "ann/birds", "--space")
    assert sent.returncode == 0, sent.stderr
    assert "/spaces/ann/birds" in sent.stdout
    files = hub.files("ann/birds", "dataset")
    assert set(files) == set(hub.files("ann/birds", "dataset", "v1")) >= {"app.py", "examples/08.png"}
    again = client(COMMAND, "publish", run_folder, "--repo-id", "ann/birds", "--space")
    assert again.returncode == 0 and len(hub.find("dataset", "ann/birds").commits) == 2
    hub.fail("POST", "/api/spaces/ann/birds/commit", status=500, times=9)
    failed = client(COMMAND, "publish", run_folder, "--repo-id", "ann/birds", "--space", "--tag", "v2")
    assert failed.returncode == 1 and "ann/birds is as it was" in failed.stderr
    assert hub.files("ann/birds", "dataset") == files
    assert set(hub.find("dataset", "ann/birds").tags) == {"v1"}

    folder = tmp_path / "space"
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    environment = hub.environment(tmp_path / "visitor") | {"GRADIO_SERVER_PORT": str(free_port())}
    with Served(["app.py"], folder, environment) as served:
        page.goto(served.address)
        page.wait_for_selector("#image")
        page.locator(".gallery-item, .thumbnail-item, .gallery button").first.click()
        page.wait_for_selector("#contributions tbody tr")
        assert "<b>tail</b>" in page.inner_text("#contributions")
    assert page.faults == []
