"""A Hub in memory that speaks as much of huggingface.co's protocol as pushing and loading a model needs.

It refuses what the real one refuses: strangers' tokens and namespaces, unknown repositories, revisions and files,
large files that were never uploaded or differ from their hash, and model cards with broken metadata.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

USER = "user"
TOKEN = "hf_test"
LARGE = (".safetensors", ".png")


@dataclass
class StoredFile:
    content: bytes
    is_large: bool

    @property
    def etag(self) -> str:
        """Of large files the hash of the content, of others that of git."""
        if self.is_large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Commits in order: hash and all files."""

    commits: list[tuple[str, dict[str, StoredFile]]] = field(default_factory=list)

    def commit(self, files: dict[str, StoredFile]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)

    @property
    def storage_url(self) -> str:
        """Another host, as the real one has: a client takes the headers from the redirection, not from its target."""
        return self.url.replace("127.0.0.1", "localhost")

    def files(self, repo_id: str) -> dict[str, bytes]:
        """What the newest commit holds."""
        return {path: file.content for path, file in self.repositories[repo_id].commits[-1][1].items()}


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = headers | {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    routes: list[tuple[str, re.Pattern, Callable]] = []

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for verb, pattern, route in self.routes:
                if verb == method and (match := pattern.fullmatch(path)):
                    return route(self, **match.groupdict())
            raise Refusal(404, f"Sorry, we can't find {self.command} {path}.")
        except Refusal as refusal:
            self.reply({"error": str(refusal)}, refusal.status, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def check_token(self, namespace: str = USER) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid username or password.")
        if namespace != USER:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {namespace!r}.")

    def repository(self, repo_id: str) -> Repository:
        if repo_id not in self.hub.repositories:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.hub.repositories[repo_id]

    def revision(self, repo_id: str, revision: str | None) -> tuple[str, dict[str, StoredFile]]:
        commits = self.repository(repo_id).commits
        found = commits[-1:] if revision in (None, "main") else [c for c in commits if c[0] == revision]
        if not found:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]


def route(verb: str, pattern: str) -> Callable:
    """Paths with named parts: `<repo>` is user/name, `<rev>` a branch or commit, `<path>` anything."""
    for name, expression in {"repo": "[^/]+/[^/]+", "rev": "[^/]+", "path": ".*", "oid": "[0-9a-f]{64}"}.items():
        pattern = pattern.replace(f"<{name}>", f"(?P<{name}>{expression})")

    def register(function: Callable) -> Callable:
        HubHandler.routes.append((verb, re.compile(pattern), function))
        return function

    return register


@route("GET", "/api/whoami-v2")
def who_am_i(self: HubHandler) -> None:
    self.check_token()
    self.reply({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})


@route("POST", "/api/repos/create")
def create_repository(self: HubHandler) -> None:
    given = json.loads(self.body)
    namespace = given.get("organization") or USER
    self.check_token(namespace)
    repo_id = f"{namespace}/{given['name']}"
    answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
    if repo_id in self.hub.repositories:
        return self.reply(answer | {"error": "You already created this model repo"}, 409)
    self.hub.repositories[repo_id] = Repository()
    self.hub.repositories[repo_id].commit({".gitattributes": StoredFile(b"*.safetensors filter=lfs\n", False)})
    self.reply(answer)


@route("POST", "/api/validate-yaml")
def validate_card(self: HubHandler) -> None:
    content = json.loads(self.body)["content"]
    header = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        data = yaml.safe_load(header[1]) if header else None
        for model in (data or {}).get("model-index", []):
            for result in model["results"]:
                if not {"type"} <= result["task"].keys() or not {"type", "name"} <= result["dataset"].keys():
                    raise ValueError("model-index: a result needs task.type, dataset.type and dataset.name")
                if not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                    raise ValueError("model-index: a metric needs type and value")
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        return self.reply({"errors": [{"message": f"{type(error).__name__}: {error}"}], "warnings": []}, 400)
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    self.reply({"errors": [], "warnings": warnings})


@route("POST", "/api/models/<repo>/preupload/<rev>")
def choose_upload(self: HubHandler, repo: str, rev: str) -> None:
    self.check_token(repo.split("/")[0])
    _, files = self.revision(repo, rev)
    answers = []
    for asked in json.loads(self.body)["files"]:
        path = asked["path"]
        known = {"oid": files[path].etag} if path in files else {}
        mode = "lfs" if path.endswith(LARGE) else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
    self.reply({"files": answers})


@route("POST", "/<repo>.git/info/lfs/objects/batch")
def announce_large_files(self: HubHandler, repo: str) -> None:
    self.check_token(repo.split("/")[0])
    self.repository(repo)
    objects = json.loads(self.body)["objects"]
    for item in objects:
        if item["oid"] not in self.hub.large_files:
            item["actions"] = {"upload": {"href": f"{self.hub.storage_url}/storage/{item['oid']}"}}
    self.reply({"transfer": "basic", "objects": objects})


@route("PUT", "/storage/<oid>")
def store_large_file(self: HubHandler, oid: str) -> None:
    if hashlib.sha256(self.body).hexdigest() != oid:
        raise Refusal(400, "The provided x-amz-content-sha256 does not match what was computed.")
    self.hub.large_files[oid] = self.body
    self.reply(b"")


@route("GET", "/storage/<oid>")
def send_large_file(self: HubHandler, oid: str) -> None:
    if oid not in self.hub.large_files:
        raise Refusal(403, "Access denied")
    self.reply(self.hub.large_files[oid])


@route("POST", "/api/models/<repo>/commit/<rev>")
def commit(self: HubHandler, repo: str, rev: str) -> None:
    self.check_token(repo.split("/")[0])
    parent, files = self.revision(repo, rev)
    files = dict(files)
    header, *operations = (json.loads(line) for line in self.body.splitlines())
    if header["key"] != "header" or not header["value"]["summary"]:
        raise Refusal(400, "the commit needs a summary")
    if header["value"].get("parentCommit", parent) != parent:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    for operation in operations:
        value = operation["value"]
        if operation["key"] == "file":
            if value["path"].endswith(LARGE):
                raise Refusal(400, f"{value['path']} is binary: use LFS")
            files[value["path"]] = StoredFile(base64.b64decode(value["content"]), False)
        elif operation["key"] == "lfsFile":
            if value["oid"] not in self.hub.large_files:
                raise Refusal(400, f"LFS pointer of {value['path']} pointed to a file that does not exist")
            files[value["path"]] = StoredFile(self.hub.large_files[value["oid"]], True)
        else:
            raise Refusal(400, f"unknown operation {operation['key']}")
    sha = self.repository(repo).commit(files)
    self.reply({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})


@route("GET", "/api/models/<repo>(/revision/<rev>)?")
def describe(self: HubHandler, repo: str, rev: str | None) -> None:
    sha, files = self.revision(repo, rev)
    siblings = [{"rfilename": path} for path in files]
    self.reply({"id": repo, "modelId": repo, "sha": sha, "private": False, "tags": [], "siblings": siblings})


@route("GET", "/api/models/<repo>/tree/<rev>(/<path>)?")
def list_files(self: HubHandler, repo: str, rev: str, path: str | None) -> None:
    _, files = self.revision(repo, rev)
    found = {name: file for name, file in files.items() if path is None or name.startswith(f"{path}/")}
    if not found:
        raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
    answers = [{"type": "file", "path": p, "oid": f.etag, "size": len(f.content)} for p, f in found.items()]
    self.reply(answers)


@route("GET", "/<repo>/resolve/<rev>/<path>")
def resolve(self: HubHandler, repo: str, rev: str, path: str) -> None:
    sha, files = self.revision(repo, rev)
    if path not in files:
        raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=sha)
    file = files[path]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"'}
    if not file.is_large:
        return self.reply(file.content, **headers)
    linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
    self.reply(b"", 302, Location=f"{self.hub.storage_url}/storage/{file.etag}", **headers, **linked)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A Hub on a free port of this machine, for as long as the context lasts."""
    hub = Hub()
    handler = type("Handler", (HubHandler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
