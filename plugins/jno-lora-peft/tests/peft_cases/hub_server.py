"""A server on this machine that speaks the part of the Hub's protocol that reads repositories."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
import urllib.parse

TOKEN = "hf_test"
# What the Hub stores apart from small files, and answers with a redirection.
LARGE = (".safetensors", ".bin")


@dataclasses.dataclass
class Repository:
    """Commits by their hash, each with its files; branches and tags; and who may read it."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    access: str = "public"

    def commit(self, revision):
        revision = self.refs.get(revision, revision)
        return revision if revision in self.commits else None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub = self.server.hub
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).removeprefix("/")
        hub.requests.append((self.command, path, self.headers.get("authorization")))
        if path.startswith("blobs/"):
            return self.send(200, hub.blobs[path.removeprefix("blobs/")])
        is_api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        if len(parts) < 4:  # questions of the library that are not about a repository
            return self.send(404, b"")
        owner, name, action, revision, *file = parts
        repository = hub.repositories.get(f"{owner}/{name}")
        may_read = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.access == "private" and not may_read):
            return self.refuse(401, "RepoNotFound")
        if repository.access == "gated" and not may_read and not is_api:
            return self.refuse(403, "GatedRepo")
        if repository.access == "broken":
            return self.send(200, b"<html>a portal of a hotel</html>")
        commit = repository.commit(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if is_api and action == "tree":
            tree = [
                {"type": "file", "oid": "0", "size": len(b), "path": f} for f, b in files.items()
            ]
            return self.send(200, json.dumps(tree).encode(), **{"Content-Type": "application/json"})
        headers = {"X-Repo-Commit": commit}
        content = files.get("/".join(file))
        if content is None:
            return self.refuse(404, "EntryNotFound", **headers)
        digest = hashlib.sha256(content).hexdigest()
        if not path.endswith(LARGE):
            return self.send(200, content, ETag=f'"{digest}"', **headers)
        hub.blobs[digest] = content
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        elsewhere = hub.url.replace("127.0.0.1", "localhost")
        return self.send(302, b"", Location=f"{elsewhere}/blobs/{digest}", **headers)

    do_HEAD = do_GET

    def refuse(self, status, code, **headers):
        self.send(status, b"", **{"X-Error-Code": code, "X-Error-Message": code}, **headers)

    def send(self, status, content, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


class Hub:
    """Repositories by name, and the requests for them: method, path and token."""

    def __init__(self, url):
        self.url, self.repositories, self.requests, self.blobs = url, {}, [], {}

    def add(self, name, folder, refs=("main",), access="public", number=1):
        """A commit with the files of a folder; its hash follows from `number`."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        commit = f"{number:040x}"
        repository = self.repositories.setdefault(name, Repository({}, {}, access))
        repository.commits[commit] = files
        repository.refs |= dict.fromkeys(refs, commit)
        return commit


@contextlib.contextmanager
def running_hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
