"""Folder of a run for the hub: model, configuration, thresholds, model card."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

from zsad_jax import backbones
from zsad_jax.push import card, privacy
from zsad_jax.runs import calibration_file, calibrations, ensemble, model_file
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import environment, files

OWN_LICENCE = "apache-2.0"  # Of a model of the package's own data and weights.


class Built(NamedTuple):
  """Files of a run for the hub.

  Attributes:
    names: files by their path in the folder, sorted.
    size: in bytes.
    num_references: number of reference images among the files.
  """

  names: tuple[str, ...]
  size: int
  num_references: int


def build(
  run: run_lib.Run,
  output: pathlib.Path,
  *,
  repo: str,
  licence: str | None,
  calibration: str | None = None,
) -> Built:
  """Write the folder of a run, completely or not at all.

  Args:
    run: the run.
    output: the folder; must not exist, or be empty.
    repo: owner/name, for the model card.
    licence: licence of the parameters, in the hub's spelling; None only for a
      run that was trained on the embedded data with the embedded backbone.
    calibration: name of a calibration to add with its references, or None.

  Raises:
    ValueError: the run is an ensemble, has parameters per category or no
      licence, or its calibration does not fit.
    FileExistsError: the folder is not empty.
    OSError: a file cannot be read or written.
  """
  if isinstance(run, ensemble.Ensemble):
    raise ValueError(
      f"{run.workdir} is an ensemble, which is not uploaded: push each of its "
      "runs, and combine them with --ensemble where they are used."
    )
  if run.categories:
    raise ValueError(
      f"{run.workdir} has parameters per category, which are not uploaded."
    )
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise FileExistsError(f"{output} exists: choose another --output.")
  config: Any = run.config
  document = json.loads(config.to_json_best_effort())
  facts = card.Facts(
    repo=repo,
    licence=_licence(document, licence),
    weights=backbones.identify(config.backbone.name, config.backbone.path),
    digest=backbones.digest(run.backbone),
    calibration=calibration,
  )
  public = privacy.config(document, facts.weights)
  with files.draft(output) as folder:
    files.write_text(
      folder / "config.json", json.dumps(public, indent=1, sort_keys=True)
    )
    _write_model(run, folder, facts)
    _write_thresholds(run.workdir, folder)
    count = _write_calibration(run, folder, calibration)
    files.write_text(folder / "README.md", card.text(run, public, facts))
    privacy.check(folder, run.workdir)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    built = Built(
      tuple(path.relative_to(folder).as_posix() for path in paths),
      sum(path.stat().st_size for path in paths),
      count,
    )
    os.replace(folder, output)
  return built


def _licence(document, licence) -> str:
  """Return the licence of a run.

  Raises:
    ValueError: none is given, and it is not known.
  """
  if licence:
    return licence
  trained_on = set(document["train_data"]) if document["epochs"] else set()
  own = not document["backbone"]["path"]
  if own and trained_on <= {"embedded", "embedded_auxiliary"}:
    return OWN_LICENCE
  raise ValueError(
    "--license is missing: name the licence of the parameters, such as "
    "--license=apache-2.0 or --license=cc-by-nc-sa-4.0. It has to respect "
    f"those of the training data: {card.data_licences(document['train_data'])}."
  )


def _write_model(run, folder, facts):
  """Write parameters and statistics."""
  setting: Any = environment.setting()
  model_file.write(
    folder / model_file.FILE,
    {"params": run.params, "stats": run.stats},
    step=run.step,
    seconds=run.seconds,
    backbone={
      "name": facts.weights.name if facts.weights else "",
      "digest": facts.digest,
    },
    versions=setting["versions"],
  )


def _write_thresholds(workdir, folder):
  """Write the thresholds of the run that it has."""
  for file in (threshold_lib.FILE, threshold_lib.FEW_SHOT_FILE):
    if (workdir / file).is_file():
      few_shot = file == threshold_lib.FEW_SHOT_FILE
      found = threshold_lib.read(workdir, few_shot=few_shot)
      _public(found).write(folder, file)


def _public(threshold):
  """Return a threshold without paths in its descriptions."""
  return dataclasses.replace(
    threshold,
    source=privacy.text(threshold.source),
    pixel_source=privacy.text(threshold.pixel_source),
  )


def _write_calibration(run, folder, name) -> int:
  """Write a calibration and its references; return how many there are."""
  if name is None:
    return 0
  found = calibrations.read(run.workdir, name)
  calibrations.check_run(run, found)
  base = folder / calibrations.FOLDER
  paths = calibrations.reference_files(run.workdir, found)
  public = []
  for reference, path in zip(found.references, paths):
    target = base / name / path.parent.name / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    public.append(dataclasses.replace(reference, name=reference.file))
  found = dataclasses.replace(
    found, references=tuple(public), threshold=_public(found.threshold)
  )
  path = base / f"{name}.json"
  files.write_text(path, calibration_file.to_text(found, path))
  return len(public)
