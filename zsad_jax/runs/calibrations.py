"""Named calibrations of a run: thresholds, references and tiles of a product.

A calibration NAME is the file `calibrations/NAME.json` in the folder of the
run. Copies of its reference images are in `calibrations/NAME/references/`, so
that it works when the originals are gone. The names of these files have the
digest of their content: those of a new calibration of the same name are written
first, then the file NAME.json replaces the old one at once, and then files that
it does not list are removed. A process that is killed leaves the old or the new
calibration.

Scores depend on the parameters of the run. A calibration holds a digest of all
that they depend on, and is refused where the run has changed since.
"""

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from zsad_jax.datasets import index
from zsad_jax.runs import calibration_file, ensemble
from zsad_jax.runs import run as run_lib
from zsad_jax.runs.calibration_file import Calibration, Reference
from zsad_jax.runtime import digests, distributed, file_names, files

FOLDER = "calibrations"
REPLACED = (
  "note: a calibration was replaced: running watch and serve commands have "
  "read the former one at their start. Restart them, `predict --watch` with "
  "another --output. Exported programs have it, too: export them again."
)
_REFERENCES = "references"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,12}")
_DIGITS = 12  # Of a digest, in the name of a file.
# Fields of a configuration that scores and maps depend on.
_CONFIG = (
  "method_name",
  "method",
  "image_size",
  "matmul_precision",
  "memory",
  "smooth_sigma",
)


def now() -> str:
  """Return the present time for `Calibration.date`."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def check_name(name: str) -> None:
  """Check the name of a calibration.

  Raises:
    ValueError: it is no name of a file on every system, or too long.
  """
  file = f"{name}.json"
  invalid = not _NAME.fullmatch(name) or name.lower().endswith((".json", "."))
  if invalid or file_names.safe_name(file) != file:
    raise ValueError(
      f"{file_names.shown(name)!r} is no name of a calibration; expected at "
      "most 64 letters, digits, dots, hyphens and underscores, with no dot at "
      "the start or end, no .json at the end, and no name that Windows "
      "reserves, such as con."
    )


def names(workdir: pathlib.Path) -> list[str]:
  """Return the names of the calibrations of a run, sorted."""
  folder = workdir / FOLDER
  found = sorted(path.stem for path in folder.glob("*.json") if path.is_file())
  return [name for name in found if _is_name(name)]


def _is_name(name):
  try:
    check_name(name)
    return True
  except ValueError:
    return False


def check_free(
  workdir: pathlib.Path, name: str, *, overwrite: bool = False
) -> bool:
  """Check that a calibration can be written under a name.

  Args:
    workdir: folder of the run.
    name: of the calibration.
    overwrite: whether it may replace the one of this name.

  Returns:
    Whether it replaces one.

  Raises:
    ValueError: the name is invalid, or taken; names that differ in case only
      are one name.
  """
  check_name(name)
  forms = {file_names.folded(each): each for each in names(workdir)}
  taken = forms.get(file_names.folded(name))
  if taken is None or (taken == name and overwrite):
    return taken is not None
  if taken == name:
    raise ValueError(
      f"{_path(workdir, name)} exists: give another --name, or --overwrite to "
      "replace it."
    )
  raise ValueError(
    f"{_path(workdir, taken)} exists, and names that differ only in upper and "
    f"lower case are not distinct on every system: give --name={taken} with "
    "--overwrite to replace it, or another name."
  )


def check_alone(name: str, given: Mapping[str, bool]) -> None:
  """Refuse options that a calibration fixes.

  Args:
    name: of the calibration.
    given: by option, such as "references", whether the user gave it.

  Raises:
    ValueError: one is given; the scores would not be those of the calibration.
  """
  if found := [option for option, is_given in given.items() if is_given]:
    raise ValueError(
      f"The calibration {name} sets references, class name and tiles, or that "
      f"there are none: leave out --{found[0]}, or make another calibration "
      "with it."
    )


def describe_references(paths: Sequence[str]) -> tuple[Reference, ...]:
  """Return the references that images are, with digests of their files.

  Args:
    paths: local files, or parts of them (`index.part`).

  Raises:
    ValueError: an image is no file of its own, but part of a record.
    OSError: a file cannot be read.
  """
  found = []
  for path in paths:
    if path.startswith(index.BUILT):
      raise ValueError(
        f"{path} is an image of a record: a calibration with a name has "
        "references that are files."
      )
    file, box = index.file_and_box(os.path.abspath(path))
    digest = _sha256(pathlib.Path(file))
    stem, suffix = os.path.splitext(os.path.basename(file))
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:40]
    kind = suffix.lower() if _SUFFIX.fullmatch(suffix) else ""
    name = f"{plain}-{digest[:_DIGITS]}{kind}"
    found.append(Reference(os.path.abspath(path), name, digest, box))
  return tuple(found)


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write(
  workdir: pathlib.Path, calibration: Calibration, *, overwrite: bool = False
) -> pathlib.Path:
  """Store a calibration, completely or not at all, and return its file.

  Of several processes, only the primary one writes.

  Args:
    workdir: folder of the run.
    calibration: its references are copied from the files they name.
    overwrite: replace an existing calibration of this name.

  Raises:
    ValueError: the name is invalid or taken, a number is not finite, or a
      reference has changed since it was scored.
    OSError: a file cannot be read or written.
  """
  check_name(calibration.name)
  path = _path(workdir, calibration.name)
  text = calibration_file.to_text(calibration, path)
  if not distributed.is_primary():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.locked(path.parent):
    check_free(workdir, calibration.name, overwrite=overwrite)
    try:
      for reference in calibration.references:
        _copy(reference, _folder(workdir, calibration.name) / reference.file)
      files.write_text(path, text)
    finally:
      _remove_unlisted(workdir, calibration.name)
  return path


def _copy(reference: Reference, target: pathlib.Path) -> None:
  """Copy the file of a reference, and check that it is the same still."""
  source = index.file_and_box(reference.name)[0]
  data = pathlib.Path(source).read_bytes()
  if hashlib.sha256(data).hexdigest() != reference.sha256:
    raise ValueError(
      f"{source} has changed since it was used as a reference: calibrate again."
    )
  if not (target.is_file() and _sha256(target) == reference.sha256):
    files.write_bytes(target, data)


def _remove_unlisted(workdir: pathlib.Path, name: str) -> None:
  """Remove copies of references that the present file does not list."""
  listed = set()
  path, folder = _path(workdir, name), _folder(workdir, name)
  if path.is_file():
    try:
      listed = {each.file for each in calibration_file.read(path).references}
    except (ValueError, OSError):
      return  # A corrupt file may list any of them.
  for copy in folder.glob("*") if folder.is_dir() else ():
    if copy.name not in listed:
      with contextlib.suppress(OSError):
        copy.unlink()
  for empty in (folder, folder.parent):
    with contextlib.suppress(OSError):
      empty.rmdir()  # Only if it is empty.


def read(workdir: pathlib.Path, name: str) -> Calibration:
  """Read a calibration and verify its references.

  Args:
    workdir: folder of the run.
    name: of the calibration.

  Raises:
    FileNotFoundError: there is none of this name; the message lists those that
      exist.
    ValueError: the name is invalid, or a file is corrupt, changed or missing;
      the message has its path.
  """
  check_name(name)
  path = _path(workdir, name)
  if name not in names(workdir):
    others = ", ".join(names(workdir))
    raise FileNotFoundError(
      f"{path} does not exist: the run has "
      f"{f'the calibrations {others}' if others else 'no calibrations'}. Make "
      f"one: zsad calibrate --workdir={workdir} --name={name} "
      "with normal images."
    )
  found = calibration_file.read(path)
  for reference in found.references:
    copy = _folder(workdir, name) / reference.file
    problem = ""
    try:
      if _sha256(copy) != reference.sha256:
        problem = "has changed"
    except OSError as error:
      problem = f"cannot be read ({error.strerror})"
    if problem:
      raise ValueError(f"{copy} {problem}. {calibration_file.hint(path)}")
  return found


def reference_paths(
  workdir: pathlib.Path, calibration: Calibration
) -> list[str]:
  """Return the copies of the references, or parts of them."""
  folder = _folder(workdir, calibration.name)
  return [
    str(folder / each.file)
    if each.box is None
    else index.part(folder / each.file, each.box)
    for each in calibration.references
  ]


def reference_files(
  workdir: pathlib.Path, calibration: Calibration
) -> list[pathlib.Path]:
  """Return the files of the copies of the references."""
  folder = _folder(workdir, calibration.name)
  return [folder / each.file for each in calibration.references]


def check_run(run: run_lib.Run, calibration: Calibration) -> None:
  """Check that a calibration was made with a run as it is now.

  Raises:
    ValueError: the run has changed since.
  """
  if run_digest(run) == calibration.run_digest:
    return
  path = _path(run.workdir, calibration.name)
  raise ValueError(
    f"{path} was made on {calibration.date} with other parameters, weights or "
    "settings than the run has now: its thresholds do not apply. "
    f"{calibration_file.hint(path)}"
  )


def run_digest(run: run_lib.Run) -> str:
  """Return a digest of what the scores of a run depend on.

  These are trained parameters, statistics, weights of the backbone, and some
  fields of the configuration; of an ensemble, those of all members.
  """
  if isinstance(run, ensemble.Ensemble):
    text = "".join(map(run_digest, run.members))
    return hashlib.sha256(text.encode()).hexdigest()
  config: Any = run.config
  document = json.loads(config.to_json_best_effort())
  settings: dict[str, Any] = {key: document.get(key) for key in _CONFIG}
  # The weights may be at another place.
  settings["backbone"] = {
    k: v for k, v in document["backbone"].items() if k != "path"
  }
  arrays = (
    (jax.tree_util.keystr(path), leaf)
    for tree in (run.params, run.stats, run.backbone)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  )
  text = json.dumps(settings, sort_keys=True)
  return digests.of_arrays(arrays, prefix=text.encode())


def _path(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / FOLDER / f"{name}.json"


def _folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / FOLDER / name / _REFERENCES
