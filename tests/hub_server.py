"""A stand-in for the Hugging Face Hub on 127.0.0.1: repositories in memory, behind the Hub's HTTP interface.

It knows what huggingface_hub needs to create repositories, to upload files (regular and LFS, not xet) and to read them
at any revision. Metadata of model cards is checked as the Hub does, so that a card it would refuse is refused here.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


USER = "me"
TOKEN = "dummy"

REPO = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
FILES = r"/(?:(?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", "create_repository"),
    ("POST", r"/api/validate-yaml", "check_card"),
    ("GET", rf"{REPO}(?:/revision/{REVISION})?", "tell_repository"),
    ("GET", rf"{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", "list_files"),
    ("POST", rf"{REPO}/branch/(?P<branch>[^/]+)", "create_branch"),
    ("POST", rf"{REPO}/tag/{REVISION}", "create_tag"),
    ("POST", rf"{REPO}/preupload/{REVISION}", "choose_upload"),
    ("POST", rf"{REPO}/commit/{REVISION}", "commit"),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", "plan_lfs_upload"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store_lfs_object"),
    ("GET", rf"{FILES}/resolve/{REVISION}/(?P<path>.+)", "send_file"),
]
WITHOUT_TOKEN = ("check_card", "store_lfs_object")


class Refused(Exception):
    """An answer other than success: its status, the Hub's name of the error, and what else goes with it."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body: Any):
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **body}
        self.headers = dict(headers or {}, **{"X-Error-Message": message}, **({"X-Error-Code": code} if code else {}))


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    lfs: bool = False

    @property
    def oid(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def describe(self, path: str) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        lfs = {"oid": self.oid, "size": len(self.content), "pointerSize": 0}
        return entry | ({"lfs": lfs} if self.lfs else {})


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.add_commit("main", "initial commit", {})

    def add_commit(self, branch: str, message: str, files: dict[str, StoredFile]) -> str:
        history = json.dumps([len(self.commits), message, {path: file.oid for path, file in files.items()}])
        self.commits.append(Commit(hashlib.sha1(history.encode()).hexdigest(), message, files))
        self.branches[branch] = self.commits[-1].oid
        return self.commits[-1].oid

    def find(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise Refused(404, f"no revision {revision}", "RevisionNotFound")


def is_legal_id(value: Any) -> bool:
    """Whether the Hub may have a repository of this name: NAME or OWNER/NAME."""
    part = r"[\w](?:[\w.-]*[\w])?"
    return (
        isinstance(value, str)
        and len(value) <= 96
        and re.fullmatch(rf"(?:{part}/)?{part}", value, re.ASCII) is not None
        and not re.search(r"--|\.\.", value)
    )


def metadata_of(card: str) -> dict[str, Any]:
    """The metadata of a model card, empty where it has none. Raises `yaml.YAMLError` if it cannot be read."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(?:\n|$)", card, re.DOTALL)
    return (yaml.safe_load(match[1]) if match else None) or {}


def card_problems(card: str) -> list[str]:
    """What the Hub would refuse in the metadata of a model card."""
    try:
        metadata = metadata_of(card)
    except yaml.YAMLError as error:
        return [f"metadata is not YAML: {error}"]
    problems = []
    for name in ("base_model", "datasets"):
        value = metadata.get(name)
        values = value if isinstance(value, list) else [value] if name in metadata else []
        problems += [
            f'"{name}" with value {value!r} is no name on the Hub' for value in values if not is_legal_id(value)
        ]
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        problems.append('"tags" must be a list of strings')
    return problems


class HubServer(ThreadingHTTPServer):
    """The server, as a context manager that answers in the background.

    `requests` lists every request in order ("GET /path"), whatever became of it.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: list[tuple[str, str]] = []

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The content of a repository's files by their path."""
        return {path: file.content for path, file in self.repository(name, kind).find(revision).files.items()}

    @contextmanager
    def failing(self, pattern: str, how: str) -> Iterator[None]:
        """Fail each request that matches `pattern`: with status 500 ("error"), or with no answer at all ("drop")."""
        failure = (pattern, how)
        self.failures.append(failure)
        try:
            yield
        finally:
            self.failures.remove(failure)

    def handle_error(self, request, client_address):
        """Say nothing: clients that go away in the middle of a request are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def answer(self) -> None:
        path = urlsplit(self.path).path
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        self.body = self.read_body()
        failure = next((how for pattern, how in self.server.failures if re.search(pattern, request)), None)
        if failure == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        try:
            if failure == "error":
                raise Refused(500, "internal error")
            with self.server.lock:
                status, headers, content = self.dispatch(path)
        except Refused as refused:
            status, headers, content = refused.status, refused.headers, json.dumps(refused.body).encode()
        self.send(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def dispatch(self, path: str) -> tuple[int, dict[str, str], bytes]:
        command = self.command.replace("HEAD", "GET")
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if method == command and match:
                if method != "GET" and name not in WITHOUT_TOKEN and self.user is None:
                    raise Refused(401, "no valid token")
                groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                result = getattr(self, name)(**groups)
                return result if isinstance(result, tuple) else (200, {}, json.dumps(result).encode())
        raise Refused(404, "no such page")

    def send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *arguments):
        """Say nothing: `HubServer.requests` keeps the record."""

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    @property
    def user(self) -> str | None:
        return USER if self.headers.get("Authorization") == f"Bearer {TOKEN}" else None

    def find(self, name: str, kind: str = "model") -> Repository:
        repository = self.server.repositories.get((kind, name))
        if repository is None or (repository.private and self.user is None):
            raise Refused(404 if self.user else 401, "no such repository", "RepoNotFound")
        return repository

    # ---- repositories --------------------------------------------------------------------------------------------

    def create_repository(self):
        kind = self.json.get("type") or "model"
        name = f"{self.json.get('organization') or self.user}/{self.json['name']}"
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if not is_legal_id(name):
            raise Refused(400, f"no legal name: {name}")
        if (kind, name) in self.server.repositories:
            raise Refused(409, "the repository exists", url=url)
        self.server.repositories[kind, name] = Repository(private=self.json.get("visibility") == "private")
        return {"url": url, "name": name, "id": name}

    def tell_repository(self, name: str, kind: str, revision: str = "main"):
        repository = self.find(name, kind)
        commit = repository.find(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        names = {"_id": name, "id": name, "modelId": name, "author": name.split("/")[0]}
        return {**names, "sha": commit.oid, "private": repository.private, "tags": [], "siblings": siblings}

    def list_files(self, name: str, kind: str, revision: str, folder: str | None = None):
        files = self.find(name, kind).find(revision).files
        prefix = f"{folder}/" if folder else ""
        below = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not below:
            raise Refused(404, f"no folder {folder}", "EntryNotFound")
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        folders = {path.rsplit("/", depth)[0] for path in below for depth in range(1, 1 + path.count("/"))}
        entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        entries += [file.describe(path) for path, file in below.items()]
        entries = [entry for entry in entries if entry["path"].startswith(prefix)]
        return [entry for entry in entries if recursive or "/" not in entry["path"][len(prefix) :]]

    def create_branch(self, name: str, kind: str, branch: str):
        repository = self.find(name, kind)
        if branch in repository.branches:
            raise Refused(409, f"branch {branch} exists")
        repository.branches[branch] = repository.find(self.json.get("startingPoint", "main")).oid
        return {}

    def create_tag(self, name: str, kind: str, revision: str):
        repository = self.find(name, kind)
        tag = self.json["tag"]
        if tag in repository.tags:
            raise Refused(409, f"tag {tag} exists")
        repository.tags[tag] = repository.find(revision).oid
        return {}

    # ---- uploads -------------------------------------------------------------------------------------------------

    def check_card(self):
        self._check_card(self.json["content"])
        warnings = [] if metadata_of(self.json["content"]) else [{"message": "the card has no metadata"}]
        return {"errors": [], "warnings": warnings}

    def _check_card(self, card: str) -> None:
        problems = card_problems(card)
        if problems:
            raise Refused(400, "; ".join(problems), errors=[{"message": problem} for problem in problems], warnings=[])

    def choose_upload(self, name: str, kind: str, revision: str):
        present = self.find(name, kind).find(revision).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular",
                    "shouldIgnore": False,
                    "oid": present[file["path"]].oid if file["path"] in present else None,
                }
                for file in self.json["files"]
            ]
        }

    def plan_lfs_upload(self, name: str, kind: str = "model"):
        self.find(name, kind)
        objects = []
        for wanted in self.json["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.objects else {"actions": upload}))
        return {"transfer": "basic", "objects": objects}

    def store_lfs_object(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "The content is not that of the object's name")
        self.server.objects[oid] = self.body
        return {}

    def commit(self, name: str, kind: str, revision: str):
        repository = self.find(name, kind)
        if revision not in repository.branches:
            raise Refused(404, f"no revision {revision}", "RevisionNotFound")
        files = dict(repository.find(revision).files)
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refused(400, f"LFS object of {value['path']} was never uploaded")
                files[value["path"]] = StoredFile(self.server.objects[value["oid"]], lfs=True)
            else:
                gone = value["path"].rstrip("/")
                files = {
                    path: file for path, file in files.items() if path != gone and not path.startswith(f"{gone}/")
                }
        if "README.md" in files:
            self._check_card(files["README.md"].content.decode())
        oid = repository.add_commit(revision, message, files)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}

    # ---- downloads -----------------------------------------------------------------------------------------------

    def send_file(self, name: str, revision: str, path: str, kind: str = "model"):
        commit = self.find(name, kind).find(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refused(404, f"no file {path}", "EntryNotFound", headers)
        file = commit.files[path]
        headers |= {"ETag": f'"{file.oid}"', "Content-Type": "application/octet-stream"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        return 200, headers, file.content
