# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints in the authors' layout, with random sizes and weights.

What they must give is computed here in float64 from the published description of their arithmetic, with torch's own
`scaled_dot_product_attention` and `grid_sample`, and none of the model's code.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ascent_vit.conversion import convert


SIZES = {
    "hidden": 32,
    "depth": 2,
    "heads": 4,
    "mlp": 64,
    "image": (64, 64),
    "patch": 16,
    "classes": 3,
    "streams": (3, 4, 0),
    "concept_heads": 2,
    "fusion_heads": 4,
    "points": 2,
    "psi": 1.0,
}


def make_state(
    hidden, depth, mlp, image, patch, classes, streams, fusion_heads, points, qkv_bias=True, **_
) -> dict[str, torch.Tensor]:
    """A state dict in the authors' layout with random weights; empty streams keep their idle weights."""
    state = {}

    def add(name: str, *shape: int, scale: float = 0.3):
        state[name] = scale * torch.randn(shape)

    def linear(name: str, outputs: int, inputs: int, bias: bool = True):
        add(f"{name}.weight", outputs, inputs, scale=1.5 * inputs**-0.5)
        if bias:
            add(f"{name}.bias", outputs)

    def norm(name: str, size: int):
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.2 * torch.randn(size), 0.2 * torch.randn(size)

    def convolution(name: str, index: int, outputs: int, inputs: int):
        add(f"{name}.{index}.weight", outputs, inputs, 3, 3, scale=(2 / 9 / inputs) ** 0.5)
        layer = f"{name}.{index + 1}"
        norm(layer, outputs)
        state[f"{layer}.running_mean"] = 0.2 * torch.randn(outputs)
        state[f"{layer}.running_var"] = 0.5 + torch.rand(outputs)
        state[f"{layer}.num_batches_tracked"] = torch.tensor(7)

    vit = "feature_extractor"
    num_patches = (image[0] // patch) * (image[1] // patch)
    add(f"{vit}.cls_token", 1, 1, hidden)
    add(f"{vit}.pos_embed", 1, num_patches + 1, hidden)
    add(f"{vit}.patch_embed.proj.weight", hidden, 3, patch, patch, scale=0.05)
    add(f"{vit}.patch_embed.proj.bias", hidden)
    for i in range(depth):
        norm(f"{vit}.blocks.{i}.norm1", hidden)
        linear(f"{vit}.blocks.{i}.attn.qkv", 3 * hidden, hidden, qkv_bias)
        linear(f"{vit}.blocks.{i}.attn.proj", hidden, hidden)
        norm(f"{vit}.blocks.{i}.norm2", hidden)
        linear(f"{vit}.blocks.{i}.mlp.fc1", mlp, hidden)
        linear(f"{vit}.blocks.{i}.mlp.fc2", hidden, mlp)
    norm(f"{vit}.norm", hidden)

    channels = (64, 128, 256, 256)
    for i in range(3):
        convolution("spm.stem", 3 * i, 64, 64 if i else 3)
        convolution(f"spm.conv{i + 2}", 0, channels[i + 1], channels[i])
    for i in range(4):
        add(f"spm.fc{i + 1}.weight", hidden, channels[i], 1, 1, scale=channels[i] ** -0.5)
        add(f"spm.fc{i + 1}.bias", hidden)
    add("level_embed", 3, hidden)
    norm("injector.query_norm", hidden)
    norm("injector.feat_norm", hidden)
    add("injector.gamma", hidden, scale=1.0)
    samples = fusion_heads * 3 * points
    linear("injector.attn.sampling_offsets", 2 * samples, hidden)
    linear("injector.attn.attention_weights", samples, hidden)
    linear("injector.attn.value_proj", hidden, hidden)
    linear("injector.attn.output_proj", hidden, hidden)
    linear("map_spatial_vit.0", 6, 5)

    for name, count in zip(("concepts", "spatial_concepts", "unsup_concepts"), streams, strict=True):
        add(f"classifier.{name}", 1, count, hidden, scale=1.0)
    for head in ("concept_tranformer", "spatial_concept_tranformer"):
        linear(f"classifier.{head}.q", hidden, hidden, bias=False)
        linear(f"classifier.{head}.kv", 2 * hidden, hidden, bias=False)
        linear(f"classifier.{head}.proj", classes, hidden)
    return state


def attend(queries, keys, values, heads):
    """Multi-head attention `(B, T, D)`, and its weights `(B, T, S)`, mean over heads."""
    queries, keys, values = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (queries, keys, values))
    scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
    attended = F.scaled_dot_product_attention(queries, keys.expand_as(keys), values)
    return attended.transpose(-3, -2).flatten(-2), scores.softmax(-1).mean(-3)


def reference(state, pixels, patch, depth, heads, hidden, concept_heads, fusion_heads, points, psi, streams, **_):
    """Logits and attention of the authors' arithmetic, in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}
    pixels = pixels.double()

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, x):
        return F.layer_norm(x, (hidden,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def convolution(name, index, x, stride):
        x = F.conv2d(x, state[f"{name}.{index}.weight"], stride=stride, padding=1)
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{index + 1}.{kind}"] for kind in kinds)).relu()

    vit = "feature_extractor"
    projection = f"{vit}.patch_embed.proj"
    patches = F.conv2d(pixels, state[f"{projection}.weight"], state[f"{projection}.bias"], stride=patch)
    grid = patches.shape[-2:]
    patches = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([state[f"{vit}.cls_token"].expand(len(pixels), -1, -1), patches], 1) + state[f"{vit}.pos_embed"]
    for i in range(depth):
        block = f"{vit}.blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens)).chunk(3, -1)
        tokens = tokens + linear(f"{block}.attn.proj", attend(*qkv, heads)[0])
        inner = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
        tokens = tokens + linear(f"{block}.mlp.fc2", inner)
    tokens = norm(f"{vit}.norm", tokens)

    features = pixels
    for i in range(3):
        features = convolution("spm.stem", 3 * i, features, 1 if i else 2)
    features = F.max_pool2d(features, 3, stride=2, padding=1)
    samples = 0
    # CLS and every patch but the last, at the places of the patches.
    queries = norm("injector.query_norm", tokens[:, :-1])
    offsets = linear("injector.attn.sampling_offsets", queries).unflatten(-1, (fusion_heads, 3, points, 2))
    weights = linear("injector.attn.attention_weights", queries).unflatten(-1, (fusion_heads, 3 * points)).softmax(-1)
    weights = weights.unflatten(-1, (3, points))
    y, x = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid)
    places = torch.stack([x.repeat(grid[0]), y.repeat_interleave(grid[1])], -1)
    for level in range(3):
        features = convolution(f"spm.conv{level + 2}", 0, features, 2)
        name = f"spm.fc{level + 2}"
        values = F.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"]).relu().movedim(1, -1)
        values = norm("injector.feat_norm", values + state["level_embed"][level])
        values = linear("injector.attn.value_proj", values).unflatten(-1, (fusion_heads, -1))
        size = torch.tensor([values.shape[2], values.shape[1]])
        spots = 2 * (places[:, None, None] + offsets[:, :, :, level] / size) - 1
        # Heads beside images: (B M, D / M, H, W) seen from (B M, N, T).
        seen = F.grid_sample(
            values.permute(0, 3, 4, 1, 2).flatten(0, 1), spots.transpose(1, 2).flatten(0, 1), align_corners=False
        )
        seen = seen.unflatten(0, (len(pixels), fusion_heads))
        samples = samples + torch.einsum("bmdnt,bnmt->bnmd", seen, weights[:, :, :, level])
    attention = linear("injector.attn.output_proj", samples.flatten(-2))
    # The residual is there before the fusion and again in it; the last patch is put behind what is fused.
    fused = torch.cat([tokens[:, :-1] + state["injector.gamma"] * attention, tokens[:, -1:]], 1)
    tokens = tokens + psi * fused

    logits, attentions = 0, []
    heads_of_streams = ("concept_tranformer", "spatial_concept_tranformer", "concept_tranformer")
    names = ("concepts", "spatial_concepts", "unsup_concepts")
    for name, head, count in zip(names, heads_of_streams, streams, strict=True):
        if count == 0:
            attentions.append(None)
            continue
        queries = linear(f"classifier.{head}.q", tokens[:, 1:] if name == "spatial_concepts" else tokens[:, :1])
        keys, values = linear(f"classifier.{head}.kv", state[f"classifier.{name}"]).chunk(2, -1)
        expand = (len(pixels), -1, -1)
        attended, attention = attend(queries, keys.expand(expand), values.expand(expand), concept_heads)
        logits = logits + linear(f"classifier.{head}.proj", attended).mean(1)
        attentions.append(attention)
    return logits, attentions


def make_settings(hidden, heads, image, concept_heads, fusion_heads, points, psi, **_) -> dict:
    return {
        "backbone": {"image_size": image[0] if image[0] == image[1] else list(image), "num_heads": heads},
        "concept_attention_heads": concept_heads,
        "fusion_heads": fusion_heads,
        "fusion_points": points,
        "psi": psi,
    }


def check_outputs(folder, pixels, logits, attentions):
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(pixels)
    torch.testing.assert_close(outputs.logits.double(), logits.double(), rtol=0, atol=1e-4)
    names = ("global", "spatial", "unsupervised")
    for name, expected in zip(names, attentions, strict=True):
        attention = outputs[f"{name}_concept_attention"] if expected is not None else None
        if expected is None:
            assert f"{name}_concept_attention" not in outputs
        else:
            torch.testing.assert_close(attention.double(), expected.double().view_as(attention), rtol=0, atol=1e-5)
    return model


@pytest.fixture
def convert_state(tmp_path):
    """Converts a state dict with settings, and gives the report and the folder."""

    def convert_it(state, settings=None, output="out"):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "state.safetensors")
        config = None
        if settings is not None:
            config = tmp_path / "config.json"
            config.write_text(json.dumps(settings))
        return convert(tmp_path / "state.safetensors", "authors", tmp_path / output, config), tmp_path / output

    return convert_it


def test_recorded_outputs_of_the_authors(shared_folder, tmp_path):
    fixture = shared_folder / "fixtures" / "author_cvit"
    expected = load_file(fixture / "expected.safetensors")
    report = convert(fixture / "state_dict.safetensors", "authors", tmp_path / "out", fixture / "config.json")
    attentions = (expected["global_attention"], expected["spatial_attention"], None)
    check_outputs(tmp_path / "out", expected["pixel_values"], expected["logits"], attentions)
    assert {name.rpartition(".")[0] for name in report.dropped} == {
        "classifier",
        "map_spatial_vit.0",
        "map_spatial_vit.2",
        "spm.fc1",
    }
    # The description that the other tests go by gives the same.
    settings = json.loads((fixture / "config.json").read_text())
    logits, computed = reference(
        load_file(fixture / "state_dict.safetensors"),
        expected["pixel_values"],
        **{"patch": 16, "depth": 2, "heads": 4, "hidden": 64, "concept_heads": 2, "fusion_heads": 8, "points": 4},
        psi=settings["psi"],
        streams=(5, 9, 0),
    )
    torch.testing.assert_close(logits, expected["logits"].double(), rtol=0, atol=1e-5)
    for ours, theirs in zip(computed[:2], attentions[:2], strict=True):
        torch.testing.assert_close(ours.view_as(theirs), theirs.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"psi": 0.5, "hidden": 48, "depth": 3, "heads": 3, "mlp": 96, "classes": 7, "streams": (4, 2, 3)},
        {"psi": 2.0, "streams": (5, 0, 0), "image": (64, 96), "concept_heads": 4},
        {"psi": 0.25, "streams": (0, 6, 0), "patch": 8, "points": 3, "fusion_heads": 2},
        {"psi": -0.5, "streams": (0, 0, 4), "concept_heads": 1, "image": (96, 64), "patch": 32},
        {"psi": 0.0, "streams": (2, 0, 2), "qkv_bias": False},
        {"psi": 0.5, "streams": (0, 3, 2), "fusion_heads": 8, "points": 4, "heads": 8, "depth": 1},
    ],
)
def test_unseen_checkpoints(changes, convert_state):
    sizes = SIZES | changes
    state, pixels = make_state(**sizes), torch.randn(2, 3, *sizes["image"])
    logits, attentions = reference(state, pixels, **sizes)
    report, folder = convert_state(state, make_settings(**sizes))
    model = check_outputs(folder, pixels, logits, attentions)
    assert model.config.shifted_fusion and model.config.psi == sizes["psi"]
    idle = {name for name in state if name.startswith(("map_spatial_vit.", "spm.fc1."))}
    counts = dict(zip(("concepts", "spatial_concepts", "unsup_concepts"), sizes["streams"], strict=True))
    idle |= {f"classifier.{name}" for name, count in counts.items() if count == 0}
    heads = {"concept_tranformer": sizes["streams"][0] + sizes["streams"][2]}
    heads["spatial_concept_tranformer"] = sizes["streams"][1]
    idle |= {n for head, count in heads.items() if not count for n in state if n.startswith(f"classifier.{head}.")}
    assert set(report.dropped) == idle
    assert set(report.assumed) == {"backbone.layer_norm_eps", "image_mean", "image_std"}
    assert json.loads((folder / "conversion.json").read_text())["dropped"] == report.dropped


def test_reference_tells_the_folds_apart():
    """The comparison is worth something: psi, and the fusion with it, move the outputs far beyond the tolerance."""
    state, pixels = make_state(**SIZES), torch.randn(2, 3, 64, 64)
    outputs = [reference(state, pixels, **SIZES | {"psi": psi})[0] for psi in (1.0, 0.5)]
    no_fusion = reference(state | {"injector.gamma": torch.zeros(32)}, pixels, **SIZES)[0]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2 < (outputs[0] - no_fusion).abs().max()


def test_without_settings_what_is_assumed_is_said(convert_state):
    sizes = SIZES | {"hidden": 64, "heads": 1, "fusion_heads": 8, "points": 1}
    state, pixels = make_state(**sizes), torch.randn(1, 3, 64, 64)
    report, folder = convert_state(state)
    check_outputs(folder, pixels, *reference(state, pixels, **sizes))
    usual = {"backbone.num_heads": 1, "concept_attention_heads": 2, "fusion_heads": 8, "psi": 1.0}
    assert usual.items() <= report.assumed.items()
    with pytest.raises(ValueError, match="give backbone.num_heads in --config"):
        convert_state(make_state(**SIZES), output="other")


def test_names_and_normalisation_come_from_the_settings(convert_state):
    names = {
        "labels": ["gull", "tern", "auk"],
        "global_concepts": ["small", "medium", "large"],
        "spatial_concepts": ["beak", "wing", "tail", "leg"],
    }
    settings = make_settings(**SIZES) | names | {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]}
    settings |= {"model_name": "Seabirds", "license": "cc-by-nc-4.0"}
    _, folder = convert_state(make_state(**SIZES), settings)
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert [*model.config.id2label.values()] == names["labels"]
    assert model.config.concepts == names["global_concepts"] + names["spatial_concepts"]
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (processor.image_mean, processor.image_std) == ((0.1, 0.2, 0.3), (1, 1, 2))
    assert (tuple(processor.patch_size), processor.num_spatial_concepts) == ((16, 16), 4)
    card = (folder / "README.md").read_text()
    assert "Targets of the concepts" not in card
    assert "# Seabirds" in card and "license: cc-by-nc-4.0" in card and "beak, wing, tail, leg" in card


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_become_float32(precision, convert_state):
    state = {n: t.to(precision) if t.is_floating_point() else t for n, t in make_state(**SIZES).items()}
    pixels = torch.randn(1, 3, 64, 64)
    _, folder = convert_state(state, make_settings(**SIZES))
    model = check_outputs(folder, pixels, *reference(state, pixels, **SIZES))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "_orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix, convert_state):
    state, pixels = make_state(**SIZES), torch.randn(1, 3, 64, 64)
    _, folder = convert_state({prefix + name: tensor for name, tensor in state.items()}, make_settings(**SIZES))
    check_outputs(folder, pixels, *reference(state, pixels, **SIZES))


def test_streams_may_lack_altogether(convert_state):
    sizes = SIZES | {"streams": (3, 0, 0)}
    state, pixels = make_state(**sizes), torch.randn(1, 3, 64, 64)
    expected = reference(state, pixels, **sizes)
    state = {name: tensor for name, tensor in state.items() if "spatial_concept" not in name and "unsup" not in name}
    _, folder = convert_state(state, make_settings(**sizes))
    check_outputs(folder, pixels, *expected)


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "settings", "messages"),
    [
        (
            lambda s: without(s, "injector.gamma", "feature_extractor.blocks.1.norm1.bias"),
            {},
            ["missing: feature_extractor.blocks.1.norm1.bias, injector.gamma"],
        ),
        (lambda s: without(s, "classifier.concepts"), {}, ["missing: classifier.concepts"]),
        (
            lambda s: s | {"b.weight": torch.ones(1), "feature_extractor.a": torch.ones(1)},
            {},
            ["unknown: b.weight, feature_extractor.a"],
        ),
        (
            lambda s: without(s, "level_embed") | {"more": torch.ones(1)},
            {},
            ["missing: level_embed", "unknown: more"],
        ),
        (
            lambda s: s | {"level_embed": torch.ones(4, 32), "spm.fc2.bias": torch.ones(())},
            {},
            ["spm.fc2.bias is () instead of (32,)", "level_embed is (4, 32) instead of (3, 32)"],
        ),
        (
            lambda s: s | {"classifier.spatial_concept_tranformer.proj.weight": torch.ones(2, 32)},
            {},
            ["spatial_concept_tranformer.proj.weight is (2, 32) instead of (3, 32)"],
        ),
        (
            lambda s: {n: t for n, t in s.items() if not n.startswith("feature_extractor.blocks.0.")},
            {},
            ["missing: feature_extractor.blocks.0.norm1.weight", "unknown: feature_extractor.blocks.1."],
        ),
        (lambda s: without(s, "feature_extractor.cls_token"), {}, ["not in the authors' layout"]),
        (
            lambda s: {f"model.{n}": t for n, t in s.items()} | {"criterion.weight": torch.ones(1)},
            {},
            ["unknown: criterion.weight (outside model.)"],
        ),
        (lambda s: s, {"psi": -1}, ["psi = -1"]),
        (lambda s: s, {"psi": float("nan")}, ["psi must be a finite number"]),
        (lambda s: s, {"psy": 1}, ["unknown keys: psy"]),
        (lambda s: s, {"psi": "1"}, ['psi must be of type int or float; got "1"']),
        (
            lambda s: s,
            {"num_classes": 4, "num_global_concepts": 9},
            ["num_classes is 4, the", "concepts is 9"],
        ),
        (lambda s: s, {"fusion_heads": 5}, ["24 samples per patch"]),
        (lambda s: s, {"fusion_heads": 0}, ["24 samples per patch"]),
        (lambda s: s, {"fusion_points": 4}, ["24 samples per patch"]),
        (lambda s: s, {"labels": ["a", "b"]}, ["names 2 classes, the checkpoint has 3"]),
        (lambda s: s, {"spatial_concepts": ["a", "b"]}, ["num_spatial_concepts=4, but spatial_concepts names 2"]),
        (lambda s: s, {"concept_attention_heads": 5}, ["concept_attention_heads=5 must divide"]),
        (lambda s: s, {"backbone": {"num_heads": 5}}, ["backbone.num_heads=5 must divide"]),
        (lambda s: s, {"backbone": {"num_heads": 4, "depth": 3}}, ["backbone.depth is 3, the checkpoint has 2"]),
        (lambda s: s, {"backbone": {"num_heads": 4, "image_size": 224}}, ["makes 196 patches of 16x16"]),
        (lambda s: s, {"image_mean": [0.5]}, ["image_mean in --config must have 3 numbers"]),
        (lambda s: s | {"classifier.concepts": torch.ones(1, 1, 32)}, {}, ["global stream has one concept"]),
    ],
)
def test_what_does_not_fit_is_one_error_and_writes_nothing(change, settings, messages, convert_state, tmp_path):
    with pytest.raises(ValueError) as error:
        convert_state(change(make_state(**SIZES)), make_settings(**SIZES) | settings)
    assert all(message in str(error.value) for message in messages), str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "state.safetensors"]


def test_positions_off_the_square_need_the_image_size(convert_state):
    sizes = SIZES | {"image": (64, 96)}
    settings = make_settings(**sizes)
    del settings["backbone"]["image_size"]
    with pytest.raises(ValueError, match=r"give backbone.image_size as \[height, width\]"):
        convert_state(make_state(**sizes), settings)


def test_a_size_that_the_pyramid_does_not_divide_is_noted(convert_state):
    sizes = SIZES | {"image": (48, 48)}
    report, _ = convert_state(make_state(**sizes), make_settings(**sizes))
    assert "no multiple of 32" in report.notes[0]
