"""Cache of files of the Hugging Face hub, see `hub`.

The folder of a repository, `hub/<owner>--<name>` in the cache folder of
`environment`, holds

  blobs/<hash>            content of a file; <hash>.part while it is downloaded
  snapshots/<commit>/     the files of a commit, as links to blobs
  snapshots/<commit>.json hash and size of each of these files, and the licence
  refs/<revision>         the commit that a branch or tag named last

Files that are in the cache of `huggingface_hub` already are not downloaded.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zsad_jax.runtime import environment, files, hub_errors
from zsad_jax.runtime.hub_errors import HubError

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHUNK = 1 << 20  # Bytes.
_log = logging.getLogger(__name__)


class Stated(NamedTuple):
  """Properties that the hub states for a file.

  Attributes:
    digest: SHA-256, or git's SHA-1, of the content; hexadecimal.
    size: in bytes.
  """

  digest: str
  size: int


class Snapshot(NamedTuple):
  """Verified files of a commit of a repository.

  Attributes:
    repo: owner/name.
    commit: the commit.
    path: folder with the files.
    files: stated properties of each file by its name.
    licence: licence that the repository states, "" for none.
  """

  repo: str
  commit: str
  path: pathlib.Path
  files: Mapping[str, Stated]
  licence: str


class Cache:
  """The files of one repository in the cache folder."""

  def __init__(self, repo: str) -> None:
    if not NAME.fullmatch(repo) or ".." in repo:
      raise ValueError(f"{repo!r} is no name on the hub, such as owner/name.")
    base = pathlib.Path(environment.default_cache_dir())
    self.repo = repo
    self.folder = base / "hub" / repo.replace("/", "--")
    self.blobs = self.folder / "blobs"
    self.snapshots = self.folder / "snapshots"

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Exclude other processes of this machine."""
    with files.explained(self.blobs):
      self.blobs.mkdir(parents=True, exist_ok=True)
    with files.locked(self.blobs):
      yield

  def listed(self, revision: str) -> Snapshot:
    """Return the files that the hub lists for a revision."""
    import huggingface_hub  # Slow to import.

    info = huggingface_hub.HfApi().model_info(
      self.repo, revision=revision, files_metadata=True
    )
    found = {}
    for each in info.siblings or ():
      _check_name(self.repo, each.rfilename)
      stated = each.lfs.sha256 if each.lfs else each.blob_id
      size = each.lfs.size if each.lfs else each.size
      if _HASH.fullmatch(stated or "") and size is not None:
        found[each.rfilename] = Stated(str(stated), size)
    if not info.sha or not _COMMIT.fullmatch(info.sha):
      raise HubError(f"The hub states no commit of {self.repo}.")
    licence = _licence(info)
    path = self.snapshots / info.sha
    return Snapshot(self.repo, info.sha, path, found, licence)

  def stored(self, revision: str) -> Snapshot:
    """Return the snapshot of a revision that was saved last."""
    reference = self.folder / "refs" / revision
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      commit = revision
      if not _COMMIT.fullmatch(revision):
        commit = reference.read_text(encoding="utf-8")
      index = self.snapshots / f"{commit}.json"
      document = json.loads(index.read_text(encoding="utf-8"))
      found = {k: Stated(*v) for k, v in document["files"].items()}
      path = self.snapshots / commit
      return Snapshot(self.repo, commit, path, found, document["licence"])
    commit, found = _of_hub_cache(self.repo, revision)
    if found:
      return Snapshot(self.repo, commit, self.snapshots / commit, found, "")
    raise HubError(
      f"{self.repo} was not downloaded before: there is no copy in "
      f"{self.folder}.",
      unreachable=True,
    )

  def instead(self, revision: str, error: HubError) -> Snapshot:
    """Return the stored snapshot where the hub cannot be reached.

    Raises:
      HubError: `error`, if there is none or the hub has answered.
    """
    if not error.unreachable:
      raise error
    try:
      found = self.stored(revision)
    except HubError:
      raise error from None
    _log.warning(
      "warning: %s The copy of commit %s is used.", error, found.commit[:12]
    )
    return found

  def save(self, snapshot: Snapshot, revision: str) -> None:
    """Write the index of a snapshot, for `stored`."""
    document = {
      "files": {name: list(each) for name, each in snapshot.files.items()},
      "licence": snapshot.licence,
    }
    index = self.snapshots / f"{snapshot.commit}.json"
    files.write_local_bytes(index, json.dumps(document, indent=1).encode())
    reference = self.folder / "refs" / revision
    files.write_local_bytes(reference, snapshot.commit.encode())

  def provide(self, snapshot: Snapshot, name: str, *, offline: bool) -> None:
    """Let a verified file be in the folder of a snapshot."""
    stated = snapshot.files[name]
    blob = self.blobs / stated.digest
    if not blob.is_file():
      blob.unlink(missing_ok=True)  # A link to a file that was removed.
      shared = _in_hub_cache(snapshot, name)
      if shared and _is_intact(shared, stated):
        blob.symlink_to(shared)
      elif offline:
        raise HubError(
          f"{name} of {self.repo} was not downloaded before: there is no copy "
          f"in {self.folder}.",
          unreachable=True,
        )
      else:
        with hub_errors.explained(self.repo):
          _download(snapshot, name, self.blobs / f"{stated.digest}.part")
        self._accept(name, stated, blob)
    elif not _is_intact(blob, stated):
      blob.unlink()
      raise ValueError(
        f"{blob}, the copy of {name} of {self.repo}, had changed and was "
        "removed: run the command again to download it."
      )
    target = snapshot.path / name
    if not target.is_file() or not target.samefile(blob):
      with files.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(blob, target.parent))

  def _accept(self, name, stated, blob):
    """Verify a file that was downloaded, and rename it."""
    part = blob.with_name(f"{blob.name}.part")
    found = digest(part, stated.digest)
    if found != stated.digest:
      part.unlink()
      raise ValueError(
        f"{name} of {self.repo} has the hash {found}, but the hub states "
        f"{stated.digest}: the download is corrupt and was removed. Run the "
        "command again; if it fails again, the file or a proxy is wrong."
      )
    os.replace(part, blob)


def digest(path: pathlib.Path, like: str) -> str:
  """Return the hash of a file: SHA-256, or git's SHA-1.

  Args:
    path: the file.
    like: a hash of the kind to compute; they differ in length.
  """
  with open(path, "rb") as file:
    if len(like) == 64:
      return hashlib.file_digest(file, "sha256").hexdigest()
    found = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    while chunk := file.read(_CHUNK):
      found.update(chunk)
    return found.hexdigest()


def _is_intact(path: pathlib.Path, stated: Stated) -> bool:
  same_size = path.stat().st_size == stated.size
  return same_size and digest(path, stated.digest) == stated.digest


def _check_name(repo: str, name: str) -> None:
  """Check that a file stays below the folder of its snapshot."""
  parts = name.split("/")
  if not all(parts) or {".", ".."} & {*parts} or "\\" in name:
    raise HubError(f"{repo} has a file with the invalid name {name!r}.")


def _licence(info: Any) -> str:
  """Return the licence in the model card of a repository, "" for none."""
  found = info.card_data.get("license") if info.card_data else None
  return found if isinstance(found, str) else ""


def _in_hub_cache(snapshot: Snapshot, name: str) -> pathlib.Path | None:
  """Return a file of the cache of `huggingface_hub`, None if not there."""
  import huggingface_hub

  found = huggingface_hub.try_to_load_from_cache(
    snapshot.repo, name, revision=snapshot.commit
  )
  return pathlib.Path(found).resolve() if isinstance(found, str) else None


def _of_hub_cache(repo: str, revision: str) -> tuple[str, dict[str, Stated]]:
  """Return commit and files in the cache of `huggingface_hub`.

  A file there is a link to a file whose name is its hash.
  """
  from huggingface_hub import constants

  name = f"models--{repo.replace('/', '--')}"
  folder = pathlib.Path(constants.HF_HUB_CACHE, name)
  commit, found = revision, {}
  with contextlib.suppress(OSError):
    if not _COMMIT.fullmatch(revision):
      commit = (folder / "refs" / revision).read_text(encoding="utf-8")
    root = folder / "snapshots" / commit
    for path in root.rglob("*"):
      blob = path.resolve()
      if blob.is_file() and _HASH.fullmatch(blob.name):
        stated = Stated(blob.name, blob.stat().st_size)
        found[path.relative_to(root).as_posix()] = stated
  return commit, found


def _download(snapshot: Snapshot, name: str, part: pathlib.Path) -> None:
  """Download a file, or the rest of it, by HTTP."""
  import huggingface_hub
  from huggingface_hub import file_download, utils

  size = snapshot.files[name].size
  url = huggingface_hub.hf_hub_url(
    snapshot.repo, name, revision=snapshot.commit
  )
  there = part.stat().st_size if part.exists() else 0
  if there > size:
    part.unlink()
    there = 0
  if there:
    _log.info("%s: continues at %d of %d bytes.", name, there, size)
  headers = utils.build_hf_headers(library_name="zsad_jax")
  headers["Accept-Encoding"] = "identity"  # Ranges are those of the file.
  try:
    with part.open("ab") as file:
      file_download.http_get(
        url,
        file,
        resume_size=there,
        headers=headers,
        expected_size=size,
        displayed_filename=name,
      )
  except OSError as error:
    if error.errno in hub_errors.OF_DISK:
      reason = f"Cannot write the file: {error.strerror}"
      raise OSError(error.errno, reason, os.fspath(part)) from error
    raise
