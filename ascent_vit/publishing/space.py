# SPDX-License-Identifier: Apache-2.0
"""Publishes the Space of a model, a repository whose app explains images, and runs the same app on this machine."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ascent_vit
import modeling_ascent_vit
from ascent_vit.cases.index import FOLDER as INDEX
from ascent_vit.cases.index import ConceptIndex
from ascent_vit.inference.load import load_processor, load_whole
from ascent_vit.safeguard.safeguard import FILES, FOLDER, find_guard, guard_folder
from ascent_vit.utils.files import check_new_folder, new_folder, write_text

from .examples import about_examples, check_examples, example_images, write_examples
from .privacy import check_secrets
from .publish import PublishedModel, commit_folder
from .source import EXAMPLES, PublishOptions, check_repo_id, dataset_path, find_source
from .stage import StagedFile


README = Path(__file__).with_name("space_readme.md")
DESCRIPTION = "Says what it sees and which concepts decided"
PYTHON_VERSION = "3.11"
# ZeroGPU has few versions of Python.
ZERO_GPU, ZERO_GPU_PYTHON_VERSION = "zero-a10g", "3.12.12"
SDK_VERSION = "6.31.0"

# The package's requirements that the app has too, and the MCP server.
REQUIREMENTS = (
    "gradio[mcp] >= 6.31",
    "huggingface_hub >= 2.4",
    "matplotlib >= 3.11",
    "numpy >= 2.4",
    "pillow >= 12.3",
    "safetensors >= 0.8",
    "torch >= 2.13",
    "transformers >= 5.23",
)

# What an app needs besides to show similar images.
INDEX_REQUIREMENTS = ("datasets >= 5.2", "faiss-cpu >= 1.15")

# Files of the model that the app loads, and the line by which a Space has them before it starts.
PRELOAD = "preload_from_hub:\n  - {repo_id} {files} {tag}\n"
MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")

# The rooms of the package that the app needs.
ROOMS = ("cases", "explanation", "inference", "publishing", "safeguard", "utils")
CODE_ENDINGS = (".py", ".md", ".css", ".html", ".js")

APP = """\
# SPDX-License-Identifier: Apache-2.0
\"\"\"The app of this Space.\"\"\"

import contextlib
from pathlib import Path


# On ZeroGPU, this has to come before anything that uses a GPU.
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ascent_vit.publishing.space_app import build_app, launch_app
{index_import}{guard_import}

MODEL, REVISION = {model}, {revision}

if __name__ == "__main__":
    model = AutoModelForImageClassification.from_pretrained(MODEL, revision=REVISION)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoImageProcessor.from_pretrained(MODEL, revision=REVISION)
    index = {index}
    guard = {guard}
    examples = sorted(Path(__file__).parent.glob("examples/*.png"))
    app = build_app(model, processor, MODEL.rpartition("/")[2], examples, tool=True, index=index, guard=guard)
    launch_app(app, tool=True)
"""
INDEX_IMPORT = "from ascent_vit.cases import ConceptIndex\n"
LOAD_INDEX = "ConceptIndex.load(MODEL, REVISION)"
GUARD_IMPORT = "from ascent_vit.safeguard import Safeguard\n"
LOAD_GUARD = "Safeguard.from_pretrained(MODEL, model, processor, REVISION)"


def copy_code(target: Path) -> None:
    """Copies the code that the app needs: the model's package, and of this package the rooms of the app."""
    package, model = Path(ascent_vit.__file__).parent, Path(modeling_ascent_vit.__file__).parent
    files = [*package.glob("*"), *model.glob("*"), *(file for room in ROOMS for file in package.glob(f"{room}/**/*"))]
    for file in files:
        if file.is_file() and file.suffix in CODE_ENDINGS:
            place = target / file.relative_to(model.parent if file.is_relative_to(model) else package.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def stage_space(
    folder: str | os.PathLike,
    target: str | os.PathLike,
    model_repo_id: str,
    options: PublishOptions | None = None,
    examples: Sequence[str | os.PathLike] = (),
    private: bool = False,
) -> list[StagedFile]:
    """
    Writes the repository of a Space for a model that is on the Hub, whole or not at all.

    It holds `app.py`, `requirements.txt`, `README.md` with the Space's settings, examples, and copies of the code that
    the app needs, so that the package need not be installed and no code of the model's repository runs. The weights
    stay in the model's repository, which the app loads at the tag.

    Args:
        folder: folder of the run (`ascent-vit train`, `ascent-vit demo`) or the model that is published.
        target: folder to write; new or empty.
        model_repo_id: Hub id of the model, `USER/NAME`.
        options: options of the model's publication; the tag and the rules for images apply here.
        examples: image files, or folders of them, to show; by default digits for a model of the demo, else none.
        private: whether the model is private, so that the Space can load it only when it runs, by its secret.

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError: for a folder without a model, or an example that does not exist.
        FileExistsError: for a target that is not empty.
        ValueError: for examples that cannot be read or must not be sent, or an id that is not `USER/NAME`.
    """
    options = options or PublishOptions()
    check_repo_id(model_repo_id)
    source, target = find_source(folder), Path(target)
    check_new_folder(target)
    dataset = dataset_path(source)
    check_examples(source, options, examples)
    images = example_images(source, examples)
    name = model_repo_id.rpartition("/")[2]
    has_guard = guard_folder(source.model_dir) is not None
    loaded = [*MODEL_FILES, *(f"{FOLDER}/{file}" for file in FILES if has_guard)]
    origin = about_examples(dataset, len(images), bool(examples), options)
    readme = README.read_text(encoding="utf-8").format(
        title=json.dumps(name),
        name=name,
        sdk_version=SDK_VERSION,
        python_version=ZERO_GPU_PYTHON_VERSION if options.space_hardware == ZERO_GPU else PYTHON_VERSION,
        description=json.dumps(options.space_description or DESCRIPTION),
        preload="" if private else PRELOAD.format(repo_id=model_repo_id, files=",".join(loaded), tag=options.tag),
        hardware=options.space_hardware,
        repo_id=model_repo_id,
        revision=options.tag,
        examples=f"\n{origin}\n" if origin else "",
    )
    has_index = (source.model_dir / INDEX).is_dir()
    app = APP.format(
        model=json.dumps(model_repo_id),
        revision=json.dumps(options.tag),
        index_import=INDEX_IMPORT if has_index else "",
        index=LOAD_INDEX if has_index else None,
        guard_import=GUARD_IMPORT if has_guard else "",
        guard=LOAD_GUARD if has_guard else None,
    )
    requirements = (*REQUIREMENTS, *(INDEX_REQUIREMENTS if has_index else ()))
    with new_folder(target) as partial:
        copy_code(partial)
        if images:
            write_examples(images, partial / EXAMPLES)
        made = {
            "app.py": app,
            "requirements.txt": "\n".join(requirements) + "\n",
            "README.md": readme.rstrip("\n") + "\n",
        }
        for file, text in made.items():
            check_secrets(text, file)
            write_text(partial / file, text)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        return [StagedFile(path.relative_to(partial).as_posix(), path.stat().st_size) for path in files]


def publish_space(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    options: PublishOptions | None = None,
    examples: Sequence[str | os.PathLike] = (),
    token: str | None = None,
) -> PublishedModel:
    """
    Sends the Space of a published model to the Hub: what [`stage_space`] writes, in one commit, with the model's tag.

    Args:
        folder: folder of the run or the model that is published.
        repo_id: `USER/NAME` of the model, and of the Space, which is created if it does not exist.
        private: whether a Space that is created is private.
        options: options of the model's publication.
        examples: image files, or folders of them, to show.
        token: token of the Hub; by default that of the user who is logged in.

    Returns:
        The published commit.

    Raises:
        FileNotFoundError: for a folder without a model, or an example that does not exist.
        ValueError: for what must not or cannot be published, or a tag that is taken.
        PublishError: if the Hub rejects the files or cannot be reached.
    """
    from huggingface_hub import HfApi

    options = options or PublishOptions()
    api = HfApi(token=token, library_name="ascent-vit")
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary, "space")
        files = stage_space(folder, target, repo_id, options, examples, private)
        commit = commit_folder(api, target, files, repo_id, options.tag, private, "space")
    return PublishedModel(f"{api.endpoint}/spaces/{repo_id}", commit, options.tag, files)


def run_space(folder: str | os.PathLike, port: int | None = None, examples: Sequence[str | os.PathLike] = ()) -> None:
    """
    Runs the app of a model's Space on this machine, until it is interrupted.

    Args:
        folder: folder of a run (`ascent-vit train`, `ascent-vit demo`), or of a model.
        port: port to listen on; by default the first free one from 7860 on.
        examples: image files, or folders of them, to show; by default digits for a model of the demo, else none.

    Raises:
        FileNotFoundError: for a folder without a model, or an example that does not exist.
        ValueError: for another kind of model, examples that cannot be read, or a port that is taken.
        ImportError: without Gradio.
    """
    source = find_source(folder)
    images = example_images(source, examples)
    try:
        from .space_app import build_app, launch_app
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError("The app needs Gradio: pip install 'ascent-vit[space]'.") from error
    model, processor = load_whole(source.model_dir), load_processor(source.model_dir)
    title, guard = Path(folder).resolve().name, find_guard(source.model_dir, model, processor)
    index = ConceptIndex.load(source.model_dir) if (source.model_dir / INDEX).is_dir() else None
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_examples(images, Path(temporary, EXAMPLES))
        launch_app(build_app(model, processor, title, paths, index=index, guard=guard), port)


__all__ = ["publish_space", "run_space", "stage_space"]
