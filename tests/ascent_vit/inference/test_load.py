# SPDX-License-Identifier: Apache-2.0
"""Folders of models that somebody else made, with bad intent or damaged: each ends in one error, and nothing runs."""

import json
import os
import pickle
import re
import shutil
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ascent_vit.inference.load import load_model
from ascent_vit_cli.app import USAGE_ERROR, run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


HUGE = 10**9
NAME = "spatial_stream.concepts"  # of 4 x 32 values
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def config(**changes):
    """Changes values of config.json; `a__b` is b in a."""

    def change(folder, trace):
        path = folder / "config.json"
        data = json.loads(path.read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            place = data
            for name in outer:
                place = place[name]
            place[last] = value
        path.write_text(json.dumps(data))

    return change


def processor(**changes):
    def change(folder, trace):
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def content(name, text):
    return lambda folder, trace: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def header(change):
    """Changes the weights' header and data, `(dict, bytes) -> (dict or bytes, bytes)`."""

    def spoil(folder, trace):
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        entries, values = change(json.loads(data[8 : 8 + length]), data[8 + length :])
        text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + values)

    return spoil


def entry(**values):
    return header(lambda entries, data: (entries | {NAME: entries[NAME] | values}, data))


def weights(change):
    def spoil(folder, trace):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(name):
    def spoil(folder, trace):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Payload(trace)))

    return spoil


def code(kind):
    """A repository's own code, as the configuration or the image processor asks for it."""

    def spoil(folder, trace):
        text = f"import os\nos.mkdir({str(trace)!r})\nclass Evil:\n    pass\n"
        (folder / "evil.py").write_text(text)
        names = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")
        auto_map = dict.fromkeys(names, "evil.Evil")
        if kind == "processor":
            processor(image_processor_type="Evil", auto_map=auto_map)(folder, trace)
        else:
            config(model_type=kind, auto_map=auto_map)(folder, trace)

    return spoil


def duplicate(entries, data):
    twice = f', "{NAME}": {{"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}}}}'
    return json.dumps(entries)[:-1].encode() + twice.encode(), data


TIMM = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224"}

CASES = {
    # Code that wants to run.
    "pickled weights": (pickled("pytorch_model.bin"), "has no model.safetensors"),
    "pickled weights by another name": (pickled("model.ckpt"), "has no model.safetensors"),
    "pickle named safetensors": (
        lambda folder, trace: (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(trace))),
        "no whole safetensors file",
    ),
    "code of an unknown model": (code("evil"), "is a model of type evil"),
    "code of a known model": (code("bert"), "is a model of type bert"),
    "code of an image processor": (code("processor"), "contains custom code"),
    "kernels of the Hub": (config(_attn_implementation="evil/kernels"), "code of the Hub"),
    "kernels for the backbone": (config(backbone_config__attn_implementation="evil/k@main:f"), "code of the Hub"),
    "kernels by an inner name": (config(_attn_implementation_internal="evil/kernels"), "code of the Hub"),
    "a value in a method's place": (config(save_pretrained="x"), "may not set save_pretrained"),
    # Files and addresses elsewhere.
    "timm by the network": (config(backbone_config=TIMM | {"architecture": "hf-hub:evil/x"}), "files of elsewhere"),
    "timm by a folder": (config(backbone_config=TIMM | {"architecture": "local-dir:/etc"}), "files of elsewhere"),
    "timm's pickles": (
        config(backbone_config=TIMM | {"model_args": {"checkpoint_path": "/evil.pth"}}),
        "files of elsewhere",
    ),
    # Headers that lie.
    "a huge header": (content("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "header too large"),
    "a long header": (content("model.safetensors", struct.pack("<Q", 99_000_000) + b"{}"), "invalid header length"),
    "no byte": (content("model.safetensors", b""), "header too small"),
    "seven bytes": (content("model.safetensors", b"1234567"), "header too small"),
    "zeros": (content("model.safetensors", bytes(64)), "invalid JSON"),
    "no JSON": (header(lambda entries, data: (b"\xff" * 100, data)), "header"),
    "a deep header": (header(lambda entries, data: (b'{"a":' * 100_000, data)), "recursion"),
    "truncated": (header(lambda entries, data: (entries, data[:-10])), "not fully covered"),
    "more than told": (header(lambda entries, data: (entries, data + b"x")), "not fully covered"),
    "overlapping": (entry(data_offsets=[0, 512]), "invalid offset"),
    "beyond the end": (entry(data_offsets=[2**40, 2**40 + 512]), "invalid offset|not fully covered"),
    "offsets that go back": (entry(data_offsets=[512, 0]), "invalid"),
    "a negative shape": (entry(shape=[-4, -32]), "invalid"),
    "a shape that overflows": (entry(shape=[2**40, 2**40]), "overflow"),
    "another length of values": (entry(dtype="F16"), "invalid shape"),
    "another type of values": (entry(dtype="I32"), "is of type I32"),
    "an unknown type": (entry(dtype="EVIL"), "unknown variant"),
    "a name twice": (header(duplicate), "invalid offset"),
    # Weights that are not the model's.
    "whole numbers": (weights(lambda w: w.update({NAME: torch.ones(4, 32, dtype=torch.int64)})), "is of type I64"),
    "complex numbers": (weights(lambda w: w.update({NAME: torch.ones(4, 32) * 1j})), "is of type C64"),
    "a missing name": (weights(lambda w: w.pop(NAME)), f"missing keys {NAME}"),
    "a name too many": (weights(lambda w: w.update(evil=torch.ones(2))), "unexpected keys evil"),
    "another shape": (weights(lambda w: w.update({NAME: torch.ones(5, 32)})), f"mismatched keys {NAME}"),
    "nothing": (weights(lambda w: w.clear()), "is of a model of .* values; the weights have"),
    "NaN": (weights(lambda w: w[NAME][1, 2:3].fill_(float("nan"))), f"{NAME} .* not finite"),
    "infinity": (weights(lambda w: w[NAME].fill_(float("inf"))), f"{NAME} .* not finite"),
    "NaN in a statistic": (
        weights(lambda w: next(v for k, v in w.items() if k.endswith("running_var")).fill_(float("nan"))),
        "running_var .* not finite",
    ),
    "numbers that overflow": (weights(lambda w: w[NAME].fill_(3e38)), "scores that are not finite"),
    # Configurations.
    "broken": (content("config.json", "{"), "config.json is no JSON file"),
    "empty": (content("config.json", ""), "config.json is no JSON file"),
    "no text": (content("config.json", b"\xff\xfe\x00"), "config.json is no JSON file"),
    "deeply nested": (content("config.json", DEEP), "config.json is no JSON file"),
    "nested and complete": (
        config(evil=json.loads('{"a":' * 300 + "1" + "}" * 300), psi=float("nan")),
        "psi is nan",
    ),
    "a list": (content("config.json", "[]"), "it holds list"),
    "null": (content("config.json", "null"), "it holds NoneType"),
    "no type": (content("config.json", "{}"), "type None"),
    "another model": (config(model_type="vit"), "type vit"),
    "no backbone": (config(backbone_config=None), "the weights have"),
    "a text as backbone": (config(backbone_config="x"), "cannot be read: .*backbone_config"),
    "an unknown backbone": (config(backbone_config__model_type="evil"), "evil"),
    "a language model as backbone": (config(backbone_config__model_type="bert"), "bert cannot be the backbone"),
    "a huge hidden size": (config(backbone_config__hidden_size=HUGE), "hidden_size is 1000000000"),
    "a large hidden size": (config(backbone_config__hidden_size=40_000), "a model of 30,.* values; the weights have"),
    "a huge image": (config(backbone_config__image_size=HUGE), "image_size is"),
    "a huge patch": (config(backbone_config__patch_size=[HUGE, 8]), "patch_size is"),
    "huge channels": (config(backbone_config__num_channels=HUGE), "num_channels is"),
    "endless layers": (config(backbone_config__num_hidden_layers=HUGE), "num_hidden_layers is"),
    "a million layers": (config(backbone_config__num_hidden_layers=10**6), "num_hidden_layers is"),
    "201 layers": (config(backbone_config__num_hidden_layers=201), "num_hidden_layers is 201"),
    "endless classes": (config(num_labels=HUGE), "num_labels is"),
    "endless concepts": (config(spatial_concepts=None, num_spatial_concepts=HUGE), "num_spatial_concepts is"),
    "many concepts": (config(spatial_concepts=[str(i) for i in range(50_000)]), f"mismatched keys {NAME}"),
    "endless points": (config(fusion_points=HUGE), "fusion_points is"),
    "no patch": (config(backbone_config__patch_size=0), "patch_size is 0"),
    "a negative image": (config(backbone_config__image_size=-48), "image_size is -48"),
    "a negative hidden size": (config(backbone_config__hidden_size=-32), "hidden_size is -32"),
    "a text for a number": (config(backbone_config__hidden_size="32"), "hidden_size.* expected int"),
    "an infinite psi": (config(psi=float("inf")), "psi is inf"),
    "a huge psi": (config(psi=1e308), "psi is 1e"),
    "fewer classes": (config(id2label={"0": "a"}), "mismatched keys"),
    "classes without number": (config(id2label={"x": "a", "1": "b"}), "id2label must name"),
    "a gap in the classes": (config(id2label={str(i): "abcde"[i % 5] for i in (0, 1, 2, 3, 9)}), "id2label must name"),
    "classes that are numbers": (config(id2label={str(i): i for i in range(5)}), "id2label must name"),
    "concepts that are numbers": (config(spatial_concepts=[1, 2, 3, 4]), "spatial_concepts"),
    "repeated concepts": (config(spatial_concepts=["a"] * 4), "must differ"),
    "an unknown activation": (config(backbone_config__hidden_act="__class__"), "__class__"),
    "an unknown dtype": (config(dtype="save"), "dtype|cannot be read"),
    # Image processors.
    "a broken processor": (content("preprocessor_config.json", "{"), "preprocessor_config.json is no JSON file"),
    "a deep processor": (content("preprocessor_config.json", DEEP), "preprocessor_config.json is no JSON file"),
    "a list as processor": (content("preprocessor_config.json", "[]"), "it holds list"),
    "no processor": (lambda folder, trace: (folder / "preprocessor_config.json").unlink(), "cannot be read"),
    "another processor": (processor(image_processor_type="ViTImageProcessor"), "ViTImageProcessor"),
    "huge pixels": (processor(size={"height": HUGE, "width": HUGE}), "height is"),
    "large pixels": (processor(size={"height": 20_000, "width": 20_000}), "4096 pixels or less"),
    "a mean of NaN": (processor(image_mean=[float("nan")] * 3), "image_mean is nan"),
    "a deviation of 0": (processor(image_std=[0, 0, 0]), "image_std must hold numbers above 0"),
    "a text for a factor": (processor(rescale_factor="x"), "image processor .* cannot be read"),
    "an unknown resampling": (processor(resample=99), "resample must be a PIL.Image.Resampling"),
    "endless targets": (processor(num_spatial_concepts=HUGE), "num_spatial_concepts is"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model as it should be."""
    return tmp_path_factory.mktemp("models") / "whole"


@pytest.fixture
def folder(whole, make_config, tmp_path):
    """A copy of it."""
    if not whole.exists():
        settings = make_config()
        AscentViTForImageClassification(settings).save_pretrained(whole)
        AscentViTImageProcessor.from_model_config(settings).save_pretrained(whole)
    shutil.copytree(whole, tmp_path / "model")
    Image.new("RGB", (60, 50), "red").save(tmp_path / "image.png")
    return tmp_path / "model"


def everything(place):
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


def one_error(capsys) -> str:
    """The error on stderr, of which there is one, in one line, and no traceback."""
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in text and "--debug" not in text
    assert text.splitlines()[-1] == errors[0]
    return errors[0]


def explain(folder):
    place = folder.parent
    arguments = [str(place / "image.png"), "--model", str(folder), "--output", str(place / "out"), "--format", "json"]
    return run(["explain", *arguments])


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_gives_one_error(name, folder, tmp_path, capsys):
    spoil, message = CASES[name]
    trace = tmp_path / "trace"
    spoil(folder, trace)
    before = everything(tmp_path)
    assert explain(folder) == USAGE_ERROR
    error = one_error(capsys)
    assert re.search(message, error), error
    assert everything(tmp_path) == before and not trace.exists()


def test_the_payloads_are_real(folder, tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()
    trace.rmdir()
    code("evil")(folder, trace)
    exec((folder / "evil.py").read_text(), {})
    assert trace.exists()


def test_what_is_not_hostile_is_read(folder):
    """Other metadata, other code beside it, counts that are whole numbers, half precision."""
    code("ascent_vit")(folder, folder / "trace")
    state = load_file(folder / "model.safetensors")
    state = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    save_file(state, folder / "model.safetensors")
    model, _ = load_model(str(folder))
    assert not model.training and any(v.dtype == torch.int64 for v in model.state_dict().values())
    assert explain(folder) == 0 and not (folder / "trace").exists()


# What goes through every command that reads a model, in place of all cases in each.
SOME = [
    "pickled weights",
    "code of an unknown model",
    "code of an image processor",
    "kernels of the Hub",
    "a huge header",
    "a missing name",
    "NaN",
    "deeply nested",
    "a list",
    "endless layers",
]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("command", ["evaluate", "export", "publish", "space"])
def test_every_command_refuses(command, name, folder, tmp_path, capsys):
    words = {
        "evaluate": ["--dataset", "digits", "--output", str(tmp_path / "out" / "figures.json")],
        "export": ["--to", "onnx", "--output", str(tmp_path / "out")],
        "publish": ["--repo-id", "a/b", "--dry-run", "--output", str(tmp_path / "out"), "--dataset-name", "x"],
        "space": [],
    }[command]
    CASES[name][0](folder, tmp_path / "trace")
    before = everything(tmp_path)
    assert run([command, str(folder), *words]) == USAGE_ERROR
    one_error(capsys)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "evil.py"])
def test_a_hostile_backbone_runs_nothing(name, folder, tmp_path, capsys):
    trace = tmp_path / "trace"
    backbone = AscentViTForImageClassification.from_pretrained(folder).ascent_vit.backbone
    backbone.save_pretrained(tmp_path / "backbone")
    if name == "evil.py":
        code("evil")(tmp_path / "backbone", trace)
    else:
        (tmp_path / "backbone" / "model.safetensors").unlink()
        (tmp_path / "backbone" / name).write_bytes(pickle.dumps(Payload(trace)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"backbone: {tmp_path / 'backbone'}\nmodel: {{fusion_heads: 4}}\ndataset: digits\n")
    exit_code = run(["train", "--recipe", str(recipe), "--output", str(tmp_path / "run")])
    text = capsys.readouterr().err
    assert exit_code in (1, 2) and text.count("Error: ") == 1 and "Traceback" not in text
    assert not trace.exists() and not (tmp_path / "run").exists()
