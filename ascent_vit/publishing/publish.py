# SPDX-License-Identifier: Apache-2.0
"""Sends a model to the Hub, in one commit."""

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ascent_vit.cases.index import FOLDER as INDEX
from ascent_vit.safeguard.safeguard import FOLDER as GUARD
from ascent_vit.utils.files import file_digest

from .source import EXAMPLES, PICTURES, RECORDS, PublishOptions, check_repo_id
from .stage import EVAL_RESULTS, StagedFile, stage


if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

# Files of an earlier publication that are removed if a later one lacks them, as shards, or pictures no longer allowed.
OWN_FILES = (PICTURES, "model.safetensors.index.json")
OWN_FOLDERS = (f"{EVAL_RESULTS}/", f"{RECORDS}/", f"{INDEX}/", f"{GUARD}/")
OWN_NAMES = rf"{EXAMPLES}/\d\d\.png|[^/]*\.safetensors"
SPACE_FOLDERS = ("ascent_vit/", "modeling_ascent_vit/", f"{EXAMPLES}/")


class PublishError(RuntimeError):
    """The Hub rejected what was sent, or could not be reached."""


@dataclass(frozen=True)
class PublishedModel:
    """
    A published commit on the Hub.

    Args:
        url: address of the repository.
        commit: id of the commit.
        tag: tag of the commit.
        files: files of the commit.
    """

    url: str
    commit: str
    tag: str
    files: list[StagedFile]


def explain_failure(error: BaseException) -> str:
    """Describes what went wrong between here and the Hub, and what to do, without the full stop."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        # The client wraps the error of a file into one without the Hub's answer.
        return explain_failure(error.__cause__)
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return "the Hub knows no valid token of yours (401): log in with hf auth login"
    if status == 403:
        return "your token may not write there (403): log in with one that may"
    if status == 404:
        return "the Hub has no such repository for you (404): check --repo-id and your token"
    if status in (409, 412):
        return f"somebody else changed the repository meanwhile ({status})"
    if status is not None:
        reason = str(getattr(error, "server_message", "") or "").strip(" .")
        return f"the Hub answered with an error ({status}{f': {reason}' if reason else ''})"
    return f"the connection to the Hub failed ({type(error).__name__}: {' '.join(str(error).split()).rstrip('.')})"


def is_same(path: Path, entry: "RepoFile") -> bool:
    """Whether a file equals the Hub's: of large files the Hub tells the sha256, of others git's id."""
    if entry.lfs is not None:
        return file_digest(path).hex() == entry.lfs.sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == entry.blob_id


def is_own(path: str, repo_type: str = "model") -> bool:
    """Whether publishing writes this file of the repository, and so may remove it."""
    if repo_type == "space":
        return path.startswith(SPACE_FOLDERS)
    return path in OWN_FILES or path.startswith(OWN_FOLDERS) or re.fullmatch(OWN_NAMES, path) is not None


def commit_folder(
    api: "HfApi",
    folder: Path,
    files: list[StagedFile],
    repo_id: str,
    tag: str,
    private: bool,
    repo_type: str = "model",
) -> str:
    """
    Makes a folder the content of a repository, as far as publishing writes it, in one commit with a tag.

    Args:
        api: client of the Hub.
        folder: folder of the files.
        files: files to send.
        repo_id: `USER/NAME` of the repository, which is created if it does not exist.
        tag: tag of the commit.
        private: whether a repository that is created is private.
        repo_type: `"model"`, or `"space"` for a Space with a Gradio app.

    Returns:
        Id of the commit.

    Raises:
        ValueError: if the repository has the tag already, on other files.
        PublishError: if the Hub rejects the files or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import HfHubHTTPError, httpx

    # The client raises RuntimeError for a file that did not arrive.
    faults = (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError)
    sdk = "gradio" if repo_type == "space" else None
    again = "Run the same command again when that is mended: what has arrived is not sent again"
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
        before = api.repo_info(repo_id, repo_type=repo_type).sha
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
        entries = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type)
        there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    except faults as error:
        raise PublishError(f"Nothing was sent to {repo_id}: {explain_failure(error)}. {again}.") from error
    same = all(file.path in there and is_same(folder / file.path, there[file.path]) for file in files)
    if tag in tags:
        if same and tags[tag] == before:
            return tags[tag]
        raise ValueError(f"{repo_id} has the tag {tag} on other files: give a new one, --tag NAME.")
    sent = {file.path for file in files}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=folder / file.path) for file in files
    ]
    gone = [path for path in there if is_own(path, repo_type) and path not in sent]
    operations += [CommitOperationDelete(path_in_repo=path) for path in gone]
    message = f"Publish {tag}, by ascent-vit"
    try:
        commit = api.create_commit(
            repo_id, operations, commit_message=message, parent_commit=before, repo_type=repo_type
        )
    except faults as error:
        state = "is as it was" if unchanged(api, repo_id, before, repo_type) else "may have changed: look at it first"
        cause = explain_failure(error)
        raise PublishError(f"The upload failed, and {repo_id} {state}: {cause}. {again}.") from error
    try:
        api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=repo_type)
    except faults as error:
        cause = explain_failure(error)
        raise PublishError(f"{repo_id} has the new files, but not yet the tag {tag}: {cause}. {again}.") from error
    return commit.oid


def unchanged(api: "HfApi", repo_id: str, commit: str | None, repo_type: str = "model") -> bool:
    """Whether a repository is known to be at a commit."""
    from huggingface_hub.utils import httpx

    try:
        return api.repo_info(repo_id, repo_type=repo_type).sha == commit
    except (httpx.HTTPError, OSError):
        return False


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    options: PublishOptions | None = None,
    token: str | None = None,
    examples: Sequence[str | os.PathLike] = (),
) -> PublishedModel:
    """
    Sends a run or a model to the Hub: what [`stage`] writes, in one commit, with a tag that the card's examples pin.

    Files of an earlier publication are replaced, those that it had and this one has not are removed, and other files
    of the repository stay. An upload that fails leaves the repository as it was.

    Args:
        folder: folder of a run (`ascent-vit train`, `ascent-vit demo`), or of a model.
        repo_id: `USER/NAME` of the repository, which is created if it does not exist.
        private: whether a repository that is created is private.
        options: choices for the publication; by default those of [`PublishOptions`].
        token: token of the Hub; by default that of the user who is logged in.
        examples: image files, or folders of them, whose predictions the card shows; see [`stage`].

    Returns:
        The published commit.

    Raises:
        FileNotFoundError: for a folder without a model, or an example that does not exist.
        ValueError: for what must not or cannot be published, or a tag that is taken.
        PublishError: if the Hub rejects the files or cannot be reached.

    Example:

    ```python
    >>> from ascent_vit.publishing import publish
    >>> publish("runs/birds", "ann/birds").url
    'https://huggingface.co/ann/birds'
    ```
    """
    from huggingface_hub import HfApi

    options = options or PublishOptions()
    check_repo_id(repo_id)
    api = HfApi(token=token, library_name="ascent-vit")
    with tempfile.TemporaryDirectory() as temporary:
        files = stage(folder, temporary, repo_id, options, examples)
        commit = commit_folder(api, Path(temporary), files, repo_id, options.tag, private)
    return PublishedModel(f"{api.endpoint}/{repo_id}", commit, options.tag, files)


__all__ = ["PublishError", "PublishedModel", "publish"]
