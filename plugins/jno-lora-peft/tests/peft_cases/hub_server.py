"""A server on this machine that speaks the part of the Hub's protocol that reads repositories."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub = self.server.hub
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).removeprefix("/")
        hub.requests.append((self.command, path))
        is_api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        if len(parts) < 4:  # questions of the library that are not about a repository
            return self.send(404, b"")
        owner, name, action, revision, *file = parts
        commits, refs = hub.repositories.get(f"{owner}/{name}", ({}, {}))
        if not commits:
            return self.refuse(401, "RepoNotFound")
        commit = refs.get(revision, revision)
        if commit not in commits:
            return self.refuse(404, "RevisionNotFound")
        files = commits[commit]
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
        return self.send(200, content, ETag=f'"{digest}"', **headers)

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
    """Repositories by name (files by commit, and commits by branch), and requests for them."""

    def __init__(self, url):
        self.url, self.repositories, self.requests = url, {}, []

    @property
    def downloads(self):
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def add(self, name, folder, refs=("main",), number=1):
        """A commit with the files of a folder; its hash follows from `number`."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        commit = f"{number:040x}"
        commits, branches = self.repositories.setdefault(name, ({}, {}))
        commits[commit] = files
        branches |= dict.fromkeys(refs, commit)
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
