"""A server on this machine that speaks the protocol of the Hugging Face hub.

It implements the requests of `huggingface_hub` 1 and 2 for models: information,
files with redirects to storage, ranges, hashes of LFS and of git, creation of
repositories, upload by LFS, and commits. Faults can be set for tests.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".jpg")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Hub:
  """Repositories, and the requests that were made.

  Attributes:
    url: address of the server.
    repos: by owner/name, the files of each commit, oldest first.
    licences: of the model card, by owner/name.
    gated: owner/name of repositories whose conditions were not accepted.
    private: owner/name of repositories that need `token`.
    token: the token that is accepted.
    corrupt: names of files whose content is wrong.
    cut: bytes after which the connection is closed, once, by name of a file.
    status: answered to every request, if it is not 0.
    log: method, path and range of every request.
    storage_url: address of the storage of large files, another host by its
      name, which must not get the token.
    leaked: tokens that the storage got.
  """

  def __init__(self, url: str) -> None:
    self.url = url
    self.repos: dict[str, list[dict[str, bytes]]] = {}
    self.licences: dict[str, str] = {}
    self.gated: set[str] = set()
    self.private: set[str] = set()
    self.token = "hf_local"
    self.corrupt: set[str] = set()
    self.cut: dict[str, int] = {}
    self.status = 0
    self.log: list[tuple[str, str, str]] = []
    self.storage: dict[str, bytes] = {}  # By SHA-256.
    self.storage_url = url.replace("127.0.0.1", "localhost")
    self.leaked: list[str] = []

  def add(self, repo: str, files: Mapping[str, bytes]) -> str:
    """Add a commit of a repository with files; return its hash."""
    commits = self.repos.setdefault(repo, [])
    commits.append({**(commits[-1] if commits else {}), **files})
    for data in files.values():
      self.storage[sha256(data)] = data
    return self.commit(repo, -1)

  def commit(self, repo: str, number: int) -> str:
    """Return the hash of a commit."""
    number %= len(self.repos[repo])
    names = sorted(self.repos[repo][number])
    return hashlib.sha1(f"{repo} {number} {names}".encode()).hexdigest()

  def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
    """Return the files of a revision; None where there is none."""
    commits = self.repos[repo]
    for number, found in enumerate(commits):
      if revision == self.commit(repo, number):
        return found
    return commits[-1] if revision == "main" and commits else None

  def downloads(self, name: str) -> list[str]:
    """Return the range of each download of a file, "" for all of it."""
    return [r for m, p, r in self.log if m == "GET" and p.endswith(f"/{name}")]


def sha256(data: bytes) -> str:
  """Return the SHA-256 of a content."""
  return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
  """Return the hash that git has for a content."""
  return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
  """Run a server on a free port of the loopback interface."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  server.daemon_threads = True
  host, port = server.server_address[:2]
  server.hub = Hub(f"http://{host}:{port}")  # pyright: ignore
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server.hub  # pyright: ignore
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers one request; see `Hub`."""

  protocol_version = "HTTP/1.1"

  @property
  def hub(self) -> Hub:
    """The state of the server."""
    return self.server.hub  # pyright: ignore

  def log_message(self, format: str, *args: Any) -> None:
    """Print nothing."""

  def do_HEAD(self):
    """Answer without a body."""
    self._read()

  def do_GET(self):
    """Answer information, or a file."""
    self._read()

  def _read(self):
    if self._refused():
      return
    path = unquote(urlsplit(self.path).path)
    if match := re.fullmatch(
      r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path
    ):
      self._information(match[1], match[2] or "main")
    elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
      self._resolve(*match.groups())
    elif match := re.fullmatch(r"/storage/([0-9a-f]{64})/(.+)", path):
      self.hub.leaked += self.headers.get_all("Authorization") or []
      self._send_file(self.hub.storage[match[1]], match[2])
    else:
      self._send(404, {"error": "unknown"})

  def _refused(self) -> bool:
    """Log a request; answer with the status of a fault."""
    path = unquote(urlsplit(self.path).path)
    found = (self.command, path, self.headers.get("Range", ""))
    self.hub.log.append(found)
    if self.hub.status:
      self._send(self.hub.status, {"error": "a fault"})
    return bool(self.hub.status)

  def _allowed(self, repo: str) -> bool:
    """Check a repository and the token; answer an error."""
    given = self.headers.get("Authorization", "").removeprefix("Bearer ")
    known = repo in self.hub.repos
    if not known or (repo in self.hub.private and given != self.hub.token):
      code = {"X-Error-Code": "RepoNotFound"}
      self._send(404 if given else 401, {"error": "not found"}, code)
      return False
    return True

  def _information(self, repo, revision):
    if not self._allowed(repo):
      return
    files = self.hub.files(repo, revision)
    if files is None:
      code = {"X-Error-Code": "RevisionNotFound"}
      self._send(404, {"error": "no such revision"}, code)
      return
    number = [f is files for f in self.hub.repos[repo]].index(True)
    siblings = []
    for name, data in files.items():
      one = dict(rfilename=name, size=len(data), blobId=git_hash(data))
      if name.endswith(LFS_SUFFIXES):
        one["lfs"] = dict(sha256=sha256(data), size=len(data), pointerSize=134)
      siblings.append(one)
    document = {
      "id": repo,
      "sha": self.hub.commit(repo, number),
      "siblings": siblings,
      "private": repo in self.hub.private,
      "gated": "auto" if repo in self.hub.gated else False,
      "cardData": {"license": self.hub.licences.get(repo)},
    }
    self._send(200, document)

  def _resolve(self, repo, revision, name):
    if not self._allowed(repo):
      return
    if repo in self.hub.gated:
      code = {"X-Error-Code": "GatedRepo"}
      self._send(403, {"error": "accept the conditions"}, code)
      return
    files = self.hub.files(repo, revision)
    data = (files or {}).get(name)
    if data is None:
      self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
      return
    number = [f is files for f in self.hub.repos[repo]].index(True)
    headers = {"X-Repo-Commit": self.hub.commit(repo, number)}
    if not name.endswith(LFS_SUFFIXES):
      headers["ETag"] = f'"{git_hash(data)}"'
      self._send_file(data, name, headers)
      return
    digest = sha256(data)
    headers |= {
      "X-Linked-Etag": f'"{digest}"',
      "X-Linked-Size": str(len(data)),
      "Location": f"{self.hub.storage_url}/storage/{digest}/{name}",
    }
    self._send(302, b"", headers)

  def _send_file(self, data, name, headers=None):
    """Send a file, or a range of it, with the faults that are set."""
    if name in self.hub.corrupt:
      data = bytes(len(data))
    status, headers = 200, {"Accept-Ranges": "bytes", **(headers or {})}
    size = len(data)
    if match := _RANGE.fullmatch(self.headers.get("Range", "")):
      first, last = int(match[1]), int(match[2] or size - 1)
      data, status = data[first : last + 1], 206
      headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    limit = self.hub.cut.pop(name, None) if self.command == "GET" else None
    self._send(status, data, headers, limit)

  def _send(self, status, body, headers=None, limit=None):
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command != "HEAD":
      with contextlib.suppress(ConnectionError):
        self.wfile.write(body if limit is None else body[:limit])
    self.close_connection |= limit is not None

  def do_PUT(self):
    """Store a file of LFS."""
    data = self._body()
    if not self._refused():
      self.hub.storage[self.path.rpartition("/")[2]] = data
      self._send(200, b"")

  def do_POST(self):
    """Create a repository, prepare an upload, or commit."""
    body = self._body()
    if self._refused():
      return
    path = unquote(urlsplit(self.path).path)
    given = self.headers.get("Authorization", "").removeprefix("Bearer ")
    if path == "/api/validate-yaml":
      self._send(200, {"errors": [], "warnings": []})
    elif given != self.hub.token:
      self._send(401, {"error": "no valid token"})
    elif path == "/api/repos/create":
      self._create(json.loads(body))
    elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
      self._prepare(json.loads(body))
    elif path.endswith(".git/info/lfs/objects/batch"):
      self._batch(json.loads(body))
    elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
      self._commit(match[1], body)
    else:
      self._send(404, {"error": "unknown"})

  def _body(self) -> bytes:
    """Return the body, also one that is sent in chunks."""
    if "Content-Length" in self.headers:
      return self.rfile.read(int(self.headers["Content-Length"]))
    data = b""
    while self.headers.get("Transfer-Encoding") == "chunked":
      size = int(self.rfile.readline(), 16)
      data += self.rfile.read(size)
      self.rfile.readline()
      if not size:
        break
    return data

  def _create(self, fields):
    repo = f"{fields['organization']}/{fields['name']}"
    status = 409 if repo in self.hub.repos else 200
    self.hub.repos.setdefault(repo, [])
    private = fields.get("private") or fields.get("visibility") == "private"
    if private and status == 200:
      self.hub.private.add(repo)
    self._send(status, {"url": f"{self.hub.url}/{repo}", "name": repo})

  def _prepare(self, fields):
    modes = [
      {
        "path": each["path"],
        "uploadMode": "lfs"
        if each["path"].endswith(LFS_SUFFIXES)
        else "regular",
        "shouldIgnore": False,
      }
      for each in fields["files"]
    ]
    self._send(200, {"files": modes})

  def _batch(self, fields):
    objects = [
      {
        **each,
        "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}},
      }
      for each in fields["objects"]
    ]
    self._send(200, {"transfer": "basic", "objects": objects})

  def _commit(self, repo, body):
    files = {}
    for line in body.splitlines():
      entry = json.loads(line)
      value = entry["value"]
      if entry["key"] == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      elif entry["key"] == "lfsFile":
        files[value["path"]] = self.hub.storage[value["oid"]]
    commit = self.hub.add(repo, files)
    url = f"{self.hub.url}/{repo}/commit/{commit}"
    self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})
