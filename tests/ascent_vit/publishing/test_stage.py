# SPDX-License-Identifier: Apache-2.0
"""The folder that is published: what is in it, what never is, and what is refused."""

import json
import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from PIL import Image
from safetensors.torch import load_file, save_file

from ascent_vit.publishing import ModelCardContent, PublishOptions, stage, stage_space, write_model_card
from ascent_vit.training.reading import load_recipe
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


CODE = {
    "backbone_images_ascent_vit.py",
    "backbones_ascent_vit.py",
    "checks_ascent_vit.py",
    "class_scores_ascent_vit.py",
    "concept_pipeline_ascent_vit.py",
    "concept_targets_ascent_vit.py",
    "configuration_ascent_vit.py",
    "deformable_sampling_ascent_vit.py",
    "edits_ascent_vit.py",
    "fast_inference_ascent_vit.py",
    "image_inputs_ascent_vit.py",
    "image_processing_ascent_vit.py",
    "image_processing_pil_ascent_vit.py",
    "image_reading_ascent_vit.py",
    "image_settings_ascent_vit.py",
    "modeling_ascent_vit.py",
    "names_ascent_vit.py",
    "presence_ascent_vit.py",
    "suggestions_ascent_vit.py",
}
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
RECORDS = {"training/metrics.json", "training/recipe.yaml", "training/report.json"}
EXAMPLES = {f"examples/0{i}.png" for i in (1, 2, 3, 4)}


def staged(folder, tmp_path, repo_id="ann/birds", name="staged", **options):
    target = tmp_path / name
    target.mkdir()
    files = stage(folder, target, repo_id, PublishOptions(**options))
    assert {file.path: file.size for file in files} == {
        path.relative_to(target).as_posix(): path.stat().st_size for path in target.rglob("*") if path.is_file()
    }
    return target, {file.path for file in files}


def test_everything_that_is_needed_and_nothing_else(run_folder, tmp_path):
    # A report of the model holds photographs.
    for name in ("report/index.html", "model/report/images.parquet", "model/index.html", "model/images.parquet"):
        (run_folder / name).parent.mkdir(exist_ok=True)
        (run_folder / name).write_text("<img>")
    target, files = staged(run_folder, tmp_path)
    assert files == CODE | MODEL | RECORDS | EXAMPLES | {"explanations.png"}
    before, after = (load_file(folder / "model.safetensors") for folder in (run_folder / "model", target))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((target / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForImageClassification"}
    processor = json.loads((target / "preprocessor_config.json").read_text())
    assert set(processor["auto_map"]["AutoImageProcessor"]) == {"torchvision", "pil"}


def test_weights_stored_as_float16(run_folder, tmp_path):
    """Half the bytes, loaded as float32, and rounded to the nearest."""
    whole, _ = staged(run_folder, tmp_path, name="whole")
    target, files = staged(run_folder, tmp_path, float16=True)
    assert files >= MODEL
    stored, before = load_file(target / "model.safetensors"), load_file(whole / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    loaded = AscentViTForImageClassification.from_pretrained(target)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert all(
        torch.equal(stored[name], tensor.half() if tensor.is_floating_point() else tensor)
        for name, tensor in before.items()
    )

    model = AscentViTForImageClassification.from_pretrained(whole)
    with torch.no_grad():
        model.spatial_stream.concepts[0, 0] = 1e6
    large = tmp_path / "large"
    model.save_pretrained(large)
    AscentViTImageProcessor.from_pretrained(whole).save_pretrained(large)
    with pytest.raises(ValueError, match="too large for float16: leave --float16 out"):
        staged(large, tmp_path, name="refused", float16=True, dataset_name="x")


def test_edits_are_published_and_named(run_folder, tmp_path):
    """In float16 too, where the file has 0.3 rounded and the loaded model has it exactly."""
    model = AscentViTForImageClassification.from_pretrained(run_folder / "model")
    edits = [
        {"class": "wren", "concept": name, "stream": "spatial", "factor": 0.3} for name in ("beak", "<b>tail</b>")
    ]
    model.edit_concepts([*edits, {"class": None, "concept": "wing", "stream": "spatial", "factor": 0.0}])
    model.save_pretrained(run_folder / "model")
    target, _ = staged(run_folder, tmp_path, float16=True)
    loaded = AscentViTForImageClassification.from_pretrained(target)
    assert torch.equal(loaded.spatial_stream.concept_factors, model.spatial_stream.concept_factors)
    assert loaded.config.concept_edits == model.config.concept_edits
    card = (target / "README.md").read_text()
    assert "| wren | beak, \\<b\\>tail\\</b\\> | times 0.3 |" in card and "| all | wing | removed |" in card


def test_nothing_tells_of_the_user(run_folder, tmp_path):
    target, files = staged(run_folder, tmp_path)
    for name in files:
        data = (target / name).read_bytes()
        for private in (b"ann.private", b"secret project", b"secret_project", str(tmp_path).encode(), b"/tmp/"):
            assert private not in data, (name, private)
    report = json.loads((target / "training" / "report.json").read_text())
    assert report["log"] == "read birds and y.png" and report["metrics"]["accuracy"] == 0.75


def test_the_recipe_is_one_to_train_by(run_folder, tmp_path):
    target, _ = staged(run_folder, tmp_path)
    recipe = load_recipe(target / "training" / "recipe.yaml")
    assert recipe.learning_rate == 1e-3 and recipe.dataset == "digits" and recipe.name == "birds"
    assert "ascent-vit train --recipe training/recipe.yaml --output DIR\n" in (target / "README.md").read_text()


def test_the_card_pins_its_examples(run_folder, tmp_path):
    target, _ = staged(run_folder, tmp_path, tag="v7")
    card = ModelCard.load(target / "README.md")
    assert card.text.count('"ann/birds", revision="v7"') == 5 and card.text.count('"ann/birds"') == 5
    assert {result.metric_name: result.metric_value for result in card.data.eval_results}["accuracy"] == 0.75
    assert "(explanations.png)" in card.text and "cc-by-4.0" in card.text and "<b>" not in card.text
    assert "competition between concepts" in card.text


def test_figures_of_an_evaluation_stand_over_those_of_training(run_folder, tmp_path):
    (run_folder / "evaluation.json").write_text(json.dumps({"accuracy": 0.5, "insertion_auc": 0.875, "seed": 9}))
    (tmp_path / "other").mkdir()
    for name, record in (("metrics", {"accuracy": 0.1, "seed": 1}), ("evaluation", {"accuracy": 0.7, "seed": 9})):
        (tmp_path / "other" / f"{name}.json").write_text(json.dumps(record))
    target, files = staged(run_folder, tmp_path, other_metrics=[tmp_path / "other" / "metrics.json"])
    card = (target / "README.md").read_text()
    assert "| `accuracy` | 0.5000 | 0.6000 ± 0.1414 |" in card and "| `insertion_auc` | 0.8750 |" in card
    assert "seed (0, 1)" in card and "training/evaluation.json" in files
    assert "interval" not in card


def test_intervals_of_an_evaluation_stand_beside_its_figures(run_folder, tmp_path):
    ends = {"accuracy_low": 0.4, "accuracy_high": 0.5625, "macro_f1_low": 0.1, "macro_f1_high": None}
    (run_folder / "evaluation.json").write_text(json.dumps({"accuracy": 0.5, "insertion_auc": 0.875} | ends))
    target, _ = staged(run_folder, tmp_path)
    card = (target / "README.md").read_text()
    assert "| metric | value | 95 % interval | what it is |" in card and "by bootstrap over the images" in card
    assert "| `accuracy` | 0.5000 | 0.4000 to 0.5625 |" in card and "| `insertion_auc` | 0.8750 |  |" in card


def test_spread_over_seeds(run_folder, tmp_path):
    for seed, accuracy in ((1, 0.85), (2, 0.95)):
        metrics = {"accuracy": accuracy, "pixel_tpr": 0.25, "seed": seed}
        (tmp_path / f"{seed}.json").write_text(json.dumps(metrics))
    target, _ = staged(run_folder, tmp_path, other_metrics=[tmp_path / "1.json", tmp_path / "2.json"])
    text = (target / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| [^|]+ \|$", text, flags=re.M))
    # Mean 0.85 and standard deviation 0.1 of 0.75, 0.85, 0.95.
    assert rows["accuracy"] == "0.7500 | 0.8500 ± 0.1000" and rows["pixel_tpr"] == "0.2500 | 0.2500 ± 0.0000"
    assert rows["macro_f1"] == "0.5000 | not measured in all"
    assert "3 runs that differ in their seed (0, 1, 2)" in " ".join(text.split())
    with pytest.raises(ValueError, match="differ in their seed"):
        staged(run_folder, tmp_path, name="again", other_metrics=[tmp_path / "1.json", tmp_path / "1.json"])


def test_the_hub_takes_the_card(run_folder, tmp_path):
    config = json.loads((run_folder / "model" / "config.json").read_text())
    config["backbone_config"]["_name_or_path"] = "facebook/dinov2-small"
    (run_folder / "model" / "config.json").write_text(json.dumps(config))
    target, files = staged(run_folder, tmp_path, dataset_id="ann/bird-concepts", new_version="ann/birds-2")
    text = (target / "README.md").read_text()
    assert sys.modules["hub_double"].card_errors(text) == []
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation) == ("facebook/dinov2-small", "finetune")
    assert data.new_version == "ann/birds-2" and data.datasets == ["ann/bird-concepts"]
    assert {result.metric_type for result in data.eval_results} == {"accuracy", "f1"}
    assert "[training/metrics.json](training/metrics.json)" in text and "| `pixel_tpr` | 0.2500 |" in text
    # Results are shown for benchmarks alone, which a dataset of somebody's is not.
    assert not [name for name in files if name.startswith(".eval_results")]


def test_examples_show_what_the_model_gives(run_folder, tmp_path):
    target, _ = staged(run_folder, tmp_path)
    card = ModelCard.load(target / "README.md")
    assert [example["src"] for example in card.data.widget] == sorted(EXAMPLES) and "Handwritten Digits" in card.text
    model = AscentViTForImageClassification.from_pretrained(target)
    processor = AscentViTImageProcessor.from_pretrained(target)
    for example in card.data.widget:
        with Image.open(target / example["src"]) as image:
            logits = model(**processor(image.convert("RGB"), return_tensors="pt")).logits
        scores = dict(zip(("wren", "crow", "tern"), logits.softmax(-1)[0].tolist(), strict=True))
        shown = {each["label"]: each["score"] for each in example["output"]}
        assert shown == pytest.approx(scores, abs=1e-4) and len(shown) == 3
        assert list(shown.values()) == sorted(shown.values(), reverse=True)


def test_examples_that_somebody_chose(write_run, tmp_path):
    run = write_run(tmp_path / "run", dataset="birds")
    Image.new("RGB", (900, 600), (200, 100, 30)).save(tmp_path / "ann.private.jpg")
    with pytest.raises(ValueError, match="--examples sends images, and no licence is known"):
        stage(run, tmp_path / "none", "ann/birds", PublishOptions(), [tmp_path / "ann.private.jpg"])
    (tmp_path / "staged").mkdir()
    options = PublishOptions(data_license="mit", dataset_name="Birds of Ann")
    files = {
        file.path for file in stage(run, tmp_path / "staged", "ann/birds", options, [tmp_path / "ann.private.jpg"])
    }
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    assert "examples/01.png" in files and len(card.data.widget) == 1 and "ann.private" not in str(card)
    assert "images of Birds of Ann, licence mit." in card.text
    with Image.open(tmp_path / "staged" / "examples" / "01.png") as image:
        assert image.size == (512, 341)


@pytest.mark.parametrize("spoil", ["licence", "missing", "elsewhere"])
def test_examples_of_a_card_that_is_kept(run_folder, tmp_path, spoil):
    first, _ = staged(run_folder, tmp_path)
    message = "must be a file in"
    if spoil == "licence":
        message = "no licence is known"
        (first / "training" / "recipe.yaml").write_text("dataset: birds\n")
        (first / "training" / "metrics.json").write_text("{}")
    elif spoil == "missing":
        (first / "examples" / "02.png").unlink()
    else:
        text = (first / "README.md").read_text()
        (first / "README.md").write_text(text.replace("src: examples/02.png", "src: ../secret.png"))
    with pytest.raises(ValueError, match=message):
        staged(first, tmp_path, name="again")
    if spoil == "licence":
        _, files = staged(first, tmp_path, name="allowed", data_license="mit")
        assert files >= EXAMPLES


BENCHMARK = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("ann/bench", repo_type="dataset")
tasks = b"name: Birds\\nevaluation_framework: ours\\ntasks: [{id: default, config: default, split: test}]\\n"
api.upload_file(path_or_fileobj=tasks, path_in_repo="eval.yaml", repo_id="ann/bench", repo_type="dataset")
"""


@pytest.mark.slow
def test_results_of_a_benchmark(hub, client, run_folder, tmp_path):
    made = client(BENCHMARK)
    assert made.returncode == 0, made.stderr
    command = "from ascent_vit_cli import main\nsys.argv[0] = 'ascent-vit'\nmain()\n"
    output = tmp_path / "output"
    arguments = ("publish", run_folder, "--repo-id", "ann/birds", "--dry-run", "--output", output, "--benchmark")
    for wrong, message in (("ann/bench:other", "no task 'other'; it has default"), ("ann/none:x", "no eval.yaml of")):
        refused = client(command, *arguments, wrong)
        assert refused.returncode == 2 and message in refused.stderr and not output.exists()
    done = client(command, *arguments, "ann/bench:default")
    assert done.returncode == 0, done.stderr
    (entry,) = parse_eval_result_entries(yaml.safe_load((output / ".eval_results" / "bench.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ann/bench", "default", 0.75)
    assert entry.notes == "accuracy, split test, seed 0"


@pytest.mark.parametrize(
    ("licence", "options", "sent"),
    [
        (None, {}, False),
        ("other", {}, False),
        ("cc-by-nc-sa-4.0", {}, False),
        ("cc0-1.0", {}, True),
        ("other", {"include_images": True}, True),
        (None, {"data_license": "mit"}, True),
    ],
)
def test_pictures_where_the_licence_allows(write_run, tmp_path, licence, options, sent):
    data = tmp_path / "data" / "birds"
    data.mkdir(parents=True)
    if licence is not None:
        (data / "README.md").write_text(f"---\nlicense: {licence}\n---\n# Birds\n")
    run = write_run(tmp_path / "run", dataset=str(data))
    target, files = staged(run, tmp_path, **options)
    assert ("explanations.png" in files) == sent == ("explanations.png" in (target / "README.md").read_text())
    if sent:
        with Image.open(target / "explanations.png") as image, Image.open(run / "explanations.png") as before:
            assert image.tobytes() == before.tobytes() and image.info == {} and before.info


def test_a_card_that_is_there_is_kept(run_folder, tmp_path):
    content = ModelCardContent.from_model_dir(
        run_folder / "model", model_name="Birds of Ann", dataset_name="Birds", repo_id="PATH/TO/model"
    )
    path = write_model_card(run_folder / "model", content)
    path.write_text(path.read_text().replace("## Limits", "From /home/ann.private/notes.\n\n## Limits"))
    target, _ = staged(run_folder, tmp_path)
    text = (target / "README.md").read_text()
    assert text.count('"ann/birds", revision="v1"') == 5 and "PATH/TO/model" not in text
    assert "# Birds of Ann" in text and "From notes." in text
    with pytest.raises(ValueError, match="is the card already"):
        staged(run_folder, tmp_path, name="again", license="mit")


def test_what_was_published_can_be_published_again(run_folder, tmp_path):
    first, files = staged(run_folder, tmp_path)
    second, again = staged(first, tmp_path, repo_id="bob/birds", name="second", include_images=True, tag="v2")
    assert again == files
    for name in files - {"README.md"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    text = (second / "README.md").read_text()
    assert text == (first / "README.md").read_text().replace(
        '"ann/birds", revision="v1"', '"bob/birds", revision="v2"'
    )


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_weights_are_refused(run_folder, tmp_path):
    weights = run_folder / "model" / "pytorch_model.bin"
    weights.write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises(ValueError, match="pytorch_model.bin holds pickled data"):
        staged(run_folder, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_links_that_leave_the_folder_are_refused(run_folder, tmp_path):
    outside = tmp_path / "outside.json"
    (run_folder / "report.json").rename(outside)
    (run_folder / "report.json").symlink_to(outside)
    with pytest.raises(ValueError, match="report.json is a link that leaves"):
        staged(run_folder, tmp_path)


def spoil_type(run):
    path = run / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "vit"}))


def spoil_weights(run, change):
    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_type, ValueError, "a model of type 'vit'"),
        (lambda run: (run / "model" / "config.json").unlink(), FileNotFoundError, "has no model"),
        (lambda run: (run / "model" / "model.safetensors").unlink(), OSError, "has no model.safetensors"),
        (
            lambda run: spoil_weights(run, lambda w: w.popitem()),
            ValueError,
            "do not fit its config.json: missing keys",
        ),
        (
            lambda run: spoil_weights(run, lambda w: w["spatial_stream.concepts"].fill_(float("nan"))),
            ValueError,
            "spatial_stream.concepts .* not finite",
        ),
        (lambda run: (run / "metrics.json").write_text("{"), ValueError, "metrics.json cannot be read"),
        (
            lambda run: (run / "report.json").write_text(json.dumps({"log": "hf_" + "a1B2" * 8})),
            ValueError,
            "training/report.json holds what looks like a token",
        ),
    ],
)
def test_what_must_not_go_out_is_refused(run_folder, tmp_path, spoil, error, message):
    spoil(run_folder)
    with pytest.raises(error, match=message):
        staged(run_folder, tmp_path)


def test_a_bare_model_needs_a_name_for_its_data(run_folder, tmp_path):
    with pytest.raises(ValueError, match="give --dataset-name"):
        staged(run_folder / "model", tmp_path)
    target, files = staged(run_folder / "model", tmp_path, name="named", dataset_name="My birds", license="mit")
    assert files == CODE | MODEL
    card = ModelCard.load(target / "README.md")
    assert card.data.license == "mit" and card.data.eval_results is None and "## Figures" not in card.text


@pytest.mark.parametrize(
    "options",
    [
        {"tag": "a b"},
        {"tag": ""},
        {"dataset_id": "birds"},
        {"new_version": "birds"},
        {"benchmark": "birds:x"},
        {"benchmark": "ann/birds"},
    ],
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"--{next(iter(options)).replace('_', '-')} must be"):
        PublishOptions(**options)


@pytest.mark.parametrize(
    "name",
    [
        "model/model.safetensors",
        "model/config.json",
        "model/preprocessor_config.json",
        "model/README.md",
        "model/notes.txt",
        "metrics.json",
        "recipe.json",
        "evaluation.json",
        "explanations.png",
        "model/examples/01.png",
    ],
)
@pytest.mark.parametrize("space", [False, True])
def test_nothing_goes_out_by_a_link(name, space, run_folder, tmp_path):
    outside = tmp_path / "outside" / Path(name).name
    outside.parent.mkdir()
    path = run_folder / name
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("{}")
    path.symlink_to(outside)
    with pytest.raises(ValueError, match="is a link that leaves"):
        if space:
            stage_space(run_folder, tmp_path / "space", "ann/birds")
        else:
            staged(run_folder, tmp_path)
    assert not (tmp_path / "space").exists()
    assert not (tmp_path / "staged").exists() or not list((tmp_path / "staged").iterdir())


def test_a_model_folder_that_is_a_link(run_folder, tmp_path):
    (run_folder / "model").rename(tmp_path / "elsewhere")
    (run_folder / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link that leaves"):
        staged(run_folder, tmp_path)


def test_examples_do_not_go_out_by_a_link(run_folder, tmp_path):
    (tmp_path / "examples").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "examples" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="a.png is a link that leaves"):
        stage_space(
            run_folder,
            tmp_path / "space",
            "ann/birds",
            PublishOptions(include_images=True),
            [tmp_path / "examples"],
        )


def test_code_that_a_folder_names_is_not_passed_on(run_folder, tmp_path):
    for name, key in (
        ("config.json", "AutoModelForImageClassification"),
        ("preprocessor_config.json", "AutoImageProcessor"),
    ):
        path = run_folder / "model" / name
        data = json.loads(path.read_text())
        evil = {"auto_map": {key: "evil.Evil", "AutoTokenizer": "ann/evil--evil.Evil"}}
        if name == "config.json":
            evil["custom_pipelines"] = {"image-classification": {"impl": "evil.Evil"}}
        path.write_text(json.dumps(data | evil))
    (run_folder / "model" / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    target, files = staged(run_folder, tmp_path)
    assert "evil" not in (target / "config.json").read_text() + (target / "preprocessor_config.json").read_text()
    assert files == CODE | MODEL | RECORDS | EXAMPLES | {"explanations.png"} and not (tmp_path / "ran").exists()


def test_records_that_stand_for_endless_values(run_folder, tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (run_folder / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="more than 1,000,000 values"):
        staged(run_folder, tmp_path)


def guard_of(folder, names, number=40):
    """A guard of a model's folder, fitted on noise."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    from ascent_vit import Safeguard
    from ascent_vit.inference.load import load_model

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(number)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    labels = [i % len(names) if i else 0 for i in range(number)]
    rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
    return Safeguard.fit(*load_model(str(folder)), rows, alpha=0.2, dataset="my_birds", split="validation")


def test_the_guard_goes_along(run_folder, tmp_path):
    from ascent_vit import Safeguard

    guard_of(run_folder / "model", ["wren", "crow", "tern"]).save_pretrained(run_folder / "model")
    target, files = staged(run_folder, tmp_path)
    assert files == CODE | MODEL | RECORDS | EXAMPLES | {
        "explanations.png",
        "guard/guard.json",
        "guard/guard.safetensors",
    }
    assert Safeguard.from_pretrained(target).judge.facts["images"] == 40
    card = (target / "README.md").read_text()
    assert "## Doubt" in card and "Calibrated on 40 images (validation of my\\_birds)" in card
    assert "for a share of 0.8 at least, of each class by itself" in card
    with pytest.raises(ValueError, match="guard was calibrated for another model: its weights are others"):
        staged(run_folder, tmp_path, name="rounded", float16=True)
    # A Space loads it too, at the model's tag.
    stage_space(run_folder, tmp_path / "space", "ann/birds")
    app = (tmp_path / "space" / "app.py").read_text()
    assert "guard = Safeguard.from_pretrained(MODEL, model, processor, REVISION)" in app
    assert "guard/guard.json,guard/guard.safetensors v1" in (tmp_path / "space" / "README.md").read_text()
