"""Files of repositories on the Hugging Face hub: resumed, verified, cached.

The hub states a hash of each file: the SHA-256 of a large file (LFS), and git's
SHA-1 of a small one. A file is used only if its content has this hash. A
download that was interrupted continues where it stopped, also in another
process; `huggingface_hub.hf_hub_download` starts again.
"""

import fnmatch
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from zsad_jax.runtime import files, hub_errors
from zsad_jax.runtime.hub_cache import NAME, Cache, Snapshot
from zsad_jax.runtime.hub_errors import HubError

PREFIX = "hf:"  # Of a run on the hub, hf:owner/name or hf:owner/name@revision.
_RUN = re.compile(rf"{PREFIX}({NAME.pattern})(?:@([\w./-]+))?")


def split(name: str) -> tuple[str, str] | None:
  """Return owner/name and revision of hf:owner/name[@revision].

  Args:
    name: any text.

  Returns:
    None if the text does not begin with `PREFIX`.

  Raises:
    ValueError: it does, but names no repository.
  """
  if not name.startswith(PREFIX) or name.startswith(f"{PREFIX}/"):
    return None
  found = _RUN.fullmatch(name)
  if not found or ".." in name:
    raise ValueError(
      f"{name} names no repository of the hub; expected {PREFIX}OWNER/NAME or "
      f"{PREFIX}OWNER/NAME@REVISION."
    )
  return found[1], found[2] or "main"


def refuse(options: Any, *, reads_runs: bool) -> None:
  """Refuse runs on the hub in flags that do not read them.

  Args:
    options: absl flags.
    reads_runs: whether the command only reads the run of --workdir.

  Raises:
    ValueError: a flag names a run on the hub, but the command writes there.
  """
  for flag in options:
    if flag in ("arguments", "repo") or (flag == "workdir" and reads_runs):
      continue
    value = options[flag].value
    for each in value if isinstance(value, list) else [value]:
      if isinstance(each, str) and "." not in flag and split(each):
        name = each.rpartition("/")[2].partition("@")[0]
        raise ValueError(
          f"--{flag}={each}: a run on the hub is only read here; copy it with "
          f"`zsad weights get {each} --output=runs/{name}`, and give "
          f"--{flag}=runs/{name}."
        )


def fetch(
  repo: str,
  choose: Callable[[Iterable[str]], Sequence[str]],
  *,
  revision: str = "main",
  offline: bool = False,
) -> Snapshot:
  """Return verified files of a repository; download those that are missing.

  Args:
    repo: owner/name.
    choose: returns the files to fetch of all names of files, see `matching`.
    revision: branch, tag or commit.
    offline: use no network, only what was downloaded before. That is also used,
      with a warning, where the hub cannot be reached.

  Returns:
    The snapshot, with the chosen files only.

  Raises:
    HubError: the hub cannot be reached or refuses the repository, or no file
      is chosen.
    ValueError: the content of a file has another hash than the hub states; the
      file is removed.
    OSError: a file cannot be written.
  """
  cache = Cache(repo)
  snapshot = cache.stored(revision) if offline else None
  if snapshot is None:
    try:
      with hub_errors.explained(repo):
        snapshot = cache.listed(revision)
    except HubError as error:
      snapshot = cache.instead(revision, error)
      offline = True
  names = choose(snapshot.files)
  if not names:
    has = ", ".join(sorted(snapshot.files)[:10]) or "no file"
    raise HubError(
      f"{repo} on the hub has none of the files needed; it has {has}."
    )
  with cache.locked():
    for name in names:
      cache.provide(snapshot, name, offline=offline)
    if not offline:
      cache.save(snapshot, revision)
  return snapshot._replace(files={name: snapshot.files[name] for name in names})


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
  """Return the names that match one of several patterns of `fnmatch`."""
  fits = lambda name: any(fnmatch.fnmatchcase(name, p) for p in patterns)
  return [name for name in names if fits(name)]


def copy(snapshot: Snapshot, target: pathlib.Path) -> None:
  """Copy the files of a snapshot into a new folder, completely or not at all.

  Raises:
    FileExistsError: the folder exists and is not empty.
    OSError: a file cannot be written.
  """
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise FileExistsError(f"{target} exists: choose another --output.")
  with files.draft(target) as folder:
    for name in snapshot.files:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(snapshot.path / name, folder / name)
    os.replace(folder, target)
