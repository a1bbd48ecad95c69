# SPDX-License-Identifier: Apache-2.0
"""
A small Hub on the loopback interface: what the clients of models and datasets ask for, and faults on demand.

Clients read `HF_ENDPOINT` when they are imported, so they run in processes of their own with `HubDouble.environment`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_" + "double" * 6
USER = "ann"

# Files from this size on, and those with these endings, go the way of large files, as on the Hub.
LFS_BYTES = 10 * 2**20
LFS_ENDINGS = (".safetensors", ".parquet", ".png", ".jpg", ".bin")


@dataclass
class Commit:
    """The files of a commit by path, their contents' addresses, and the commit before."""

    sha: str
    files: dict[str, str]
    parent: str | None
    message: str


@dataclass
class Repository:
    """A repository: its commits by their sha, and where main and the tags stand."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    main: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, str], message: str) -> Commit:
        listing = json.dumps([sorted(files.items()), self.main, message])
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), files, self.main or None, message)
        self.commits[commit.sha] = commit
        self.main = commit.sha
        return commit

    def at(self, revision: str) -> Commit | None:
        sha = self.main if revision == "main" else self.tags.get(revision, revision)
        return self.commits.get(sha)


@dataclass
class Fault:
    """What a request that matches meets: a status, a cut connection after some bytes, or an altered answer."""

    method: str
    pattern: str
    times: int
    status: int | None = None
    cut_after: int | None = None
    alter: Callable[[bytes], bytes] | None = None


class HubError(Exception):
    """A request that is refused."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


def card_errors(content: str) -> list[str]:
    """What the Hub would not take in a card's header."""
    match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
    data = yaml.safe_load(match[1]) if match else {}
    if not isinstance(data, dict):
        return ["the header must be a mapping"]
    errors = []
    if not isinstance(data.get("license", ""), str | list):
        errors.append('"license" must be a string')
    for name in ("tags", "datasets", "metrics"):
        if name in data and not (isinstance(data[name], list) and all(isinstance(item, str) for item in data[name])):
            errors.append(f'"{name}" must be an array of strings')
    for name in ("library_name", "pipeline_tag", "new_version"):
        if name in data and not isinstance(data[name], str):
            errors.append(f'"{name}" must be a string')
    if not isinstance(data.get("base_model", ""), str | list):
        errors.append('"base_model" must be a string or an array of strings')
    if data.get("base_model_relation", "merge") not in ("adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of [adapter, merge, quantized, finetune]')
    for example in data.get("widget", []):
        labels = example.get("output", [])
        if "src" not in example or not all({"label", "score"} == each.keys() for each in labels):
            errors.append('"widget" examples of images need "src", and outputs with "label" and "score"')
    if not isinstance(data.get("short_description", ""), str) or len(data.get("short_description", "")) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append('"model-index" needs "name" and "results"')
            continue
        for result in model["results"]:
            if not {"type", "name"} <= set(result.get("dataset", {})) or "type" not in result.get("task", {}):
                errors.append('"model-index" results need a task type, a dataset type and a dataset name')
            for metric in result.get("metrics", []):
                if "type" not in metric or "value" not in metric:
                    errors.append('"model-index" metrics need "type" and "value"')
    return errors


class HubDouble:
    """
    A Hub in this process.

    `repositories` are by type and id, for example `("model", "ann/birds")`; `contents` are bytes by their sha256.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        double = self

        class Handler(RequestHandler):
            hub = double

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a client, whose cache is in the folder `home`."""
        variables = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def fail(self, method: str, pattern: str, times: int = 1, **what: Any) -> None:
        """Lets the next requests of a method whose path has the pattern fail."""
        self.faults.append(Fault(method, pattern, times, **what))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def find(self, kind: str, name: str) -> Repository:
        repository = self.repositories.get((kind, name))
        if repository is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The files of a revision, by path."""
        commit = self.find(kind, name).at(revision)
        assert commit is not None, f"{name} has no revision {revision}"
        return {path: self.contents[oid] for path, oid in commit.files.items()}


class RequestHandler(BaseHTTPRequestHandler):
    """One request; the paths are those of the Hub's API."""

    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def body(self, limit: int | None = None) -> bytes:
        """The request's body, at most `limit` bytes of it."""
        parts, size = [], 0
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while chunk := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(chunk))
                self.rfile.readline()
                size += chunk
                if limit is not None and size >= limit:
                    return b"".join(parts)[:limit]
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(length, limit))

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer_json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def hang_up(self) -> None:
        """Cuts the connection, as a network does."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.query = parse_qs(address.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
        fault = self.hub.take_fault(self.command, path)
        self.alter = fault.alter if fault else None
        if fault and fault.cut_after is not None:
            self.body(fault.cut_after)
            return self.hang_up()
        data = self.body()
        try:
            if fault and fault.status:
                raise HubError(fault.status, f"answered {fault.status} as asked")
            self.route(path, data)
        except HubError as error:
            headers = {"X_Error_Code": error.code} if error.code else {}
            self.answer_json({"error": str(error)}, error.status, X_Error_Message=str(error), **headers)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def check_token(self, needed: bool) -> None:
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {TOKEN}":
            raise HubError(401, "Invalid credentials in Authorization header")
        if needed and given is None:
            raise HubError(401, "Invalid username or password.")

    def route(self, path: str, data: bytes) -> None:
        repository = r"(?P<name>[^/]+/[^/]+)"
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate),
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", rf"/api/(?P<kind>model|dataset)s/{repository}/preupload/(?P<revision>[^/]+)", self.preupload),
            ("POST", rf"/(?P<kind>datasets/|){repository}\.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", rf"/lfs/{repository}/(?P<oid>\w+)", self.lfs_put),
            ("POST", rf"/lfs/{repository}/(?P<oid>\w+)/verify", self.lfs_verify),
            ("POST", rf"/api/(?P<kind>model|dataset)s/{repository}/commit/(?P<revision>[^/]+)", self.commit),
            ("POST", rf"/api/(?P<kind>model|dataset)s/{repository}/tag/(?P<revision>[^/]+)", self.tag),
            ("GET", rf"/api/(?P<kind>model|dataset)s/{repository}/refs", self.refs),
            ("GET", rf"/api/(?P<kind>model|dataset)s/{repository}/commits/(?P<revision>[^/]+)", self.commits),
            (
                "GET",
                rf"/api/(?P<kind>model|dataset)s/{repository}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?",
                self.tree,
            ),
            (
                "POST",
                rf"/api/(?P<kind>model|dataset)s/{repository}/paths-info/(?P<revision>[^/]+)",
                self.paths_info,
            ),
            ("GET", rf"/api/(?P<kind>model|dataset)s/{repository}(?:/revision/(?P<revision>[^/]+))?", self.info),
            ("GET", rf"/(?P<kind>datasets/|){repository}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
            ("HEAD", rf"/(?P<kind>datasets/|){repository}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
        ]
        for method, pattern, act in routes:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                found = match.groupdict()
                if "kind" in found:
                    found["kind"] = "dataset" if found["kind"].startswith("dataset") else "model"
                self.check_token(needed=method == "POST" and act not in (self.validate, self.paths_info))
                if method in ("POST", "PUT"):
                    found["data"] = data
                with self.hub.lock:
                    return act(**found)
        raise HubError(404, f"This double of the Hub has no {self.command} {path}")

    def create(self, data: bytes) -> None:
        wanted = json.loads(data)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        key = (wanted.get("type") or "model", name)
        url = f"{self.hub.endpoint}/{'datasets/' if key[0] == 'dataset' else ''}{name}"
        if key in self.hub.repositories:
            return self.answer_json({"error": "You already created this model repo", "url": url}, 409)
        repository = Repository(private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repository.add({".gitattributes": self.store(attributes)}, "initial commit")
        self.hub.repositories[key] = repository
        return self.answer_json({"url": url, "name": name, "id": name})

    def store(self, data: bytes) -> str:
        oid = hashlib.sha256(data).hexdigest()
        self.hub.contents[oid] = data
        return oid

    def validate(self, data: bytes) -> None:
        errors = card_errors(json.loads(data)["content"])
        found = [{"message": message} for message in errors]
        self.answer_json({"errors": found, "warnings": []}, 400 if found else 200)

    def whoami(self) -> None:
        self.check_token(needed=True)
        self.answer_json({"name": USER, "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def preupload(self, kind: str, name: str, revision: str, data: bytes) -> None:
        commit = self.at(kind, name, revision)
        files = []
        for file in json.loads(data)["files"]:
            large = file["size"] >= LFS_BYTES or file["path"].endswith(LFS_ENDINGS)
            before = commit.files.get(file["path"])
            files.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": before and self.git_id(before, large),
                }
            )
        self.answer_json({"files": files})

    def git_id(self, oid: str, large: bool = False) -> str:
        """The id by which git knows a file: of its content, or for a large one its sha256, as clients compare it."""
        content = self.hub.contents[oid]
        return oid if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def lfs_batch(self, kind: str, name: str, data: bytes) -> None:
        self.hub.find(kind, name)
        objects = []
        for item in json.loads(data)["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.contents:
                href = f"{self.hub.endpoint}/lfs/{name}/{item['oid']}"
                # As on the Hub, the address to send a large file to needs no token.
                entry["actions"] = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, name: str, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, "The content is not the one that was announced")
        self.hub.contents[oid] = data
        self.answer(200)

    def lfs_verify(self, name: str, oid: str, data: bytes) -> None:
        if oid not in self.hub.contents or len(self.hub.contents[oid]) != json.loads(data)["size"]:
            raise HubError(404, "The content has not arrived")
        self.answer_json({})

    def commit(self, kind: str, name: str, revision: str, data: bytes) -> None:
        repository = self.hub.find(kind, name)
        header, *operations = [json.loads(line) for line in data.splitlines() if line]
        parent = header["value"].get("parentCommit")
        if revision != "main" or (parent is not None and parent != repository.main):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[repository.main].files)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = self.store(base64.b64decode(value["content"]))
                case "lfsFile":
                    if value["oid"] not in self.hub.contents:
                        raise HubError(400, "A large file has not arrived")
                    files[value["path"]] = value["oid"]
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise HubError(404, "A file to delete is not there")
                case "deletedFolder":
                    files = {path: oid for path, oid in files.items() if not path.startswith(value["path"])}
                case key:
                    raise HubError(400, f"unknown operation {key}")
        if "README.md" in files and (errors := card_errors(self.hub.contents[files["README.md"]].decode())):
            raise HubError(400, f"Invalid metadata in README.md: {errors[0]}")
        commit = repository.add(files, header["value"]["summary"])
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}/commit/{commit.sha}"
        self.answer_json({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})

    def tag(self, kind: str, name: str, revision: str, data: bytes) -> None:
        repository, tag = self.hub.find(kind, name), json.loads(data)["tag"]
        if tag in repository.tags:
            raise HubError(409, "Reference already exists")
        repository.tags[tag] = self.at(kind, name, revision).sha
        self.answer_json({})

    def at(self, kind: str, name: str, revision: str | None) -> Commit:
        repository = self.hub.find(kind, name)
        if repository.private:
            self.check_token(needed=True)
        commit = repository.at(revision or "main")
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def refs(self, kind: str, name: str) -> None:
        repository = self.hub.find(kind, name)
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.main}]
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": sha} for t, sha in repository.tags.items()]
        self.answer_json({"branches": branches, "converts": [], "tags": tags})

    def commits(self, kind: str, name: str, revision: str) -> None:
        commit: Commit | None = self.at(kind, name, revision)
        found = []
        while commit is not None:
            found.append(
                {
                    "id": commit.sha,
                    "title": commit.message,
                    "message": "",
                    "date": "2026-01-01T00:00:00.000Z",
                    "authors": [{"user": USER}],
                }
            )
            commit = self.hub.find(kind, name).commits.get(commit.parent or "")
        self.answer_json(found)

    def entry(self, path: str, oid: str) -> dict[str, Any]:
        size = len(self.hub.contents[oid])
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": self.git_id(oid)}
        if path.endswith(LFS_ENDINGS):
            entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
        return entry

    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        commit = self.at(kind, name, revision)
        prefix = f"{folder.strip('/')}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries, folders = [], set()
        for path, oid in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            folders |= {
                prefix + "/".join(parts[:i]) for i in range(1, len(parts) if recursive else min(len(parts), 2))
            }
            if recursive or len(parts) == 1:
                entries.append(self.entry(path, oid))
        if prefix and not entries and not folders:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        self.answer_json(entries)

    def paths_info(self, kind: str, name: str, revision: str, data: bytes) -> None:
        commit = self.at(kind, name, revision)
        text = data.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        entries = []
        for path in paths:
            if path in commit.files:
                entries.append(self.entry(path, commit.files[path]))
            elif any(name.startswith(f"{path}/") for name in commit.files):
                entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        self.answer_json(entries)

    def info(self, kind: str, name: str, revision: str | None) -> None:
        commit = self.at(kind, name, revision)
        data: dict[str, Any] = {}
        if "README.md" in commit.files:
            text = self.hub.contents[commit.files["README.md"]].decode()
            match = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
            data = yaml.safe_load(match[1]) if match else {}
        info = {
            "_id": "0" * 24,
            "id": name,
            "modelId": name,
            "sha": commit.sha,
            "private": self.hub.find(kind, name).private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": data.get("tags") or [],
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "cardData": data,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
        }
        for key in ("pipeline_tag", "library_name"):
            if data.get(key):
                info[key] = data[key]
        self.answer_json(info)

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        commit = self.at(kind, name, revision)
        if path not in commit.files:
            return self.answer_json(
                {"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.sha
            )
        oid = commit.files[path]
        content = self.hub.contents[oid]
        headers = {
            "X_Repo_Commit": commit.sha,
            "ETag": f'"{oid if path.endswith(LFS_ENDINGS) else self.git_id(oid)}"',
            "Accept_Ranges": "bytes",
            "Content_Type": "application/octet-stream",
        }
        if self.alter is not None and self.command == "GET":
            # The announced length stays, so a shorter answer looks like a connection that ended early.
            self.answer(200, self.alter(content), Content_Length=str(len(content)), **headers)
            return self.hang_up()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span and self.command == "GET":
            start, stop = int(span[1]), min(int(span[2]) if span[2] else len(content) - 1, len(content) - 1)
            if start >= len(content):
                return self.answer(416, Content_Range=f"bytes */{len(content)}")
            headers["Content_Range"] = f"bytes {start}-{stop}/{len(content)}"
            return self.answer(206, content[start : stop + 1], **headers)
        return self.answer(200, content, Content_Length=str(len(content)), **headers)


@contextmanager
def hub_double() -> Iterator[HubDouble]:
    """A Hub that runs until the block ends."""
    hub = HubDouble()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
