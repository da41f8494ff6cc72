"""A Hub on the loopback interface: repositories in memory, served as huggingface_hub asks for them."""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

OWNER_TOKEN, READER_TOKEN, STRANGER_TOKEN = "hf_" + "o" * 34, "hf_" + "r" * 34, "hf_" + "s" * 34
USERS = {
    OWNER_TOKEN: {"name": "ada", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}},
    READER_TOKEN: {"name": "ada", "orgs": [], "auth": {"accessToken": {"role": "read"}}},
    STRANGER_TOKEN: {"name": "eve", "orgs": [], "auth": {"accessToken": {"role": "fineGrained"}}},
}


class HubError(Exception):
    """An answer other than 200, with the Hub's error code."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"no revision {revision}")
        return sha


@dataclass
class Fault:
    """What happens to requests that match: a status, a wait, or a connection that breaks."""

    pattern: str
    status: int = 0
    seconds: float = 0.0
    drop: bool = False
    times: int = 1


class LoopbackHub:
    """Repositories, planned faults, and the list of requests ("METHOD /path") so far."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.endpoint = ""

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision)]

    def upload(self, repo_id: str, folder: Path) -> None:
        """Put a folder's files into a new public repository, without any request."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repositories[repo_id] = Repository(private=False)
        self.repositories[repo_id].commit("main", files)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def handle_any(self) -> None:
        self.path, self.query = urlsplit(self.path)[2:4]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {unquote(self.path)}"
        self.hub.requests.append(request)
        try:
            if fault := next((f for f in self.hub.faults if f.times and re.search(f.pattern, request)), None):
                fault.times -= 1
                time.sleep(fault.seconds)
                if fault.drop:
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault.status:
                    raise HubError(fault.status, "", "planned fault")
            for method, pattern, endpoint in ENDPOINTS:
                if self.command in method.split("|") and (match := re.fullmatch(pattern, self.path)):
                    endpoint(self, *(unquote(word) for word in match.groups() if word))
                    return
            raise HubError(404, "EntryNotFound", f"no endpoint {request}")
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.answer({"error": error.message}, error.status, {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_DELETE = handle_any

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def user(self) -> dict[str, Any] | None:
        words = self.headers.get("Authorization", "").split()
        if not words:
            return None
        if words[-1] not in USERS:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return USERS[words[-1]]

    def may_write(self, namespace: str) -> bool:
        user = self.user
        if user is None:
            raise HubError(401, "", "a token is needed")
        names = [user["name"], *(org["name"] for org in user["orgs"])]
        return namespace in names and user["auth"]["accessToken"]["role"] != "read"

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        namespace = repo_id.split("/")[0]
        if repository is None or (repository.private and (self.user is None or not self.may_write(namespace))):
            raise HubError(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        if write and not self.may_write(namespace):
            raise HubError(403, "", "you may not write here")
        return repository

    def whoami(self) -> None:
        if self.user is None:
            raise HubError(401, "", "a token is needed")
        self.answer({"type": "user"} | self.user)

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        metadata = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        errors = []
        for name, kind in {"tags": list, "library_name": str, "pipeline_tag": str, "model-index": list}.items():
            if name in metadata and not isinstance(metadata[name], kind):
                errors.append({"message": f"{name} must be a {kind.__name__}"})
        for base in [metadata.get("base_model", "a/b")]:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)):
                errors.append({"message": f"base_model must be a model id, not {base!r}"})
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self) -> None:
        wanted = json.loads(self.body)
        namespace = wanted.get("organization") or (self.user or {}).get("name", "")
        if not self.may_write(namespace):
            raise HubError(403, "", f"you may not create a repository under {namespace}")
        repo_id = f"{namespace}/{wanted['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            self.answer(url | {"error": "You already created this model repo"}, 409)
            return
        self.hub.repositories[repo_id] = Repository(private=wanted.get("visibility") == "private")
        self.hub.repositories[repo_id].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer(url)

    def preupload(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        present = repository.commits[repository.resolve(revision)]
        names = [file["path"] for file in json.loads(self.body)["files"]]
        files = [
            {"path": name, "uploadMode": "regular", "shouldIgnore": False}
            | ({"oid": git_oid(present[name])} if name in present else {})
            for name in names
        ]
        self.answer({"files": files})

    def commit(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        if revision not in repository.branches:
            raise HubError(404, "RevisionNotFound", f"no branch {revision}")
        files = dict(repository.commits[repository.branches[revision]])
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del files[entry["value"]["path"]]
        sha = repository.commit(revision, files)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def branch(self, repo_id: str, name: str) -> None:
        repository = self.repository(repo_id, write=True)
        if name in repository.branches:
            raise HubError(409, "", f"branch {name} exists")
        start = (json.loads(self.body or b"{}") or {}).get("startingPoint", "main")
        repository.branches[name] = repository.resolve(start)
        self.answer({})

    def tag(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        name = json.loads(self.body)["tag"]
        if name in repository.tags:
            raise HubError(409, "", f"tag {name} exists")
        repository.tags[name] = repository.resolve(revision)
        self.answer({})

    def delete_tag(self, repo_id: str, name: str) -> None:
        del self.repository(repo_id, write=True).tags[name]
        self.answer({})

    def refs(self, repo_id: str) -> None:
        repository = self.repository(repo_id)

        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in refs.items()]

        branches, tags = listed("heads", repository.branches), listed("tags", repository.tags)
        self.answer({"branches": branches, "tags": tags, "converts": []})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repository = self.repository(repo_id)
        sha = repository.resolve(revision)
        siblings = [{"rfilename": name} for name in repository.commits[sha]]
        self.answer({"id": repo_id, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        repository = self.repository(repo_id)
        files = repository.commits[repository.resolve(revision)]
        inside = {name: content for name, content in files.items() if name.startswith(folder.lstrip("/"))}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"no folder {folder}")
        self.answer(
            [{"type": "file", "path": n, "size": len(c), "oid": git_oid(c)} for n, c in sorted(inside.items())]
        )

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self.repository(repo_id)
        sha = repository.resolve(revision)
        if name not in repository.commits[sha]:
            raise HubError(404, "EntryNotFound", f"no file {name}")
        content = repository.commits[sha][name]
        oid = f'"{git_oid(content)}"'
        linked = {"X-Linked-Etag": oid, "X-Linked-Size": str(len(content))}
        self.answer(content, headers={"X-Repo-Commit": sha, "ETag": oid} | linked)


_ID = r"/api/models/([^/]+/[^/]+)"
ENDPOINTS: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", _ID + r"/preupload/([^/]+)", Handler.preupload),
    ("POST", _ID + r"/commit/([^/]+)", Handler.commit),
    ("POST", _ID + r"/branch/([^/]+)", Handler.branch),
    ("POST", _ID + r"/tag/([^/]+)", Handler.tag),
    ("DELETE", _ID + r"/tag/([^/]+)", Handler.delete_tag),
    ("GET", _ID + r"/refs", Handler.refs),
    ("GET", _ID + r"/revision/([^/]+)", Handler.info),
    ("GET", _ID, Handler.info),
    ("GET", _ID + r"/tree/([^/]+)(/.*)?", Handler.tree),
    ("GET|HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def serve() -> Iterator[LoopbackHub]:
    """A running Hub; `endpoint` is its address."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
