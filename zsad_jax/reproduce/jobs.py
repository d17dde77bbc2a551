"""Jobs: training and evaluation of a run, or of an ensemble, resumable.

A job does what is missing only: finished trainings and evaluations are found in
the workdirs, interrupted trainings go on from their last checkpoint.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from zsad_jax import backbones, evaluate, train, types
from zsad_jax.datasets import naming, registry
from zsad_jax.datasets.references import References
from zsad_jax.evaluation import protocol, recipes
from zsad_jax.reporting import writer
from zsad_jax.runs import ensemble, finished, lock
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import files, stopping

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the command.

  Attributes:
    root: folder of all runs and tables.
    data_root: folder of the registered data sets; None: as configured.
    weights: folder of converted weights; None: as configured.
  """

  root: pathlib.Path
  data_root: str | None = None
  weights: str | None = None


@dataclasses.dataclass(frozen=True)
class RunSpec:
  """A configuration, and the seed if it is not the configured one."""

  spec: str
  seed: int | None = None

  def config(self, settings: Settings) -> types.Config:
    """Return the configuration of the run."""
    config: Any = recipes.packaged(self.spec)
    config = config.copy_and_resolve_references().unlock()
    if settings.data_root is not None:
      config.data_root = settings.data_root
    for model in (config.backbone, config.text_backbone):
      if settings.weights is not None and model.path:
        name = pathlib.Path(model.path).name
        model.path = str(pathlib.Path(settings.weights) / name)
    if self.seed is not None:
      config.seed = self.seed
    return config.lock()

  def workdir(self, settings: Settings) -> pathlib.Path:
    """Return the folder of the run."""
    name = str(self.config(settings).name)
    seed = "" if self.seed is None else f"_seed{self.seed}"
    return settings.root / f"{name}{seed}"


@dataclasses.dataclass(frozen=True)
class Target:
  """Evaluation on one data set.

  Attributes:
    data: registered name or folder.
    shots: numbers of references per class; 0 is always evaluated.
    seeds: seeds of their sampling.
    official: see `evaluate.chooser`.
  """

  data: str
  shots: tuple[int, ...] = (0,)
  seeds: tuple[int, ...] = ()
  official: bool = False

  def labels(self, shots: int | None = None) -> list[str]:
    """Return the names of the choices of references, or of one number."""
    numbers = sorted({0, *self.shots}) if shots is None else [shots]
    return [
      References({}, k, seed).label
      for k in numbers
      for seed in (self.seeds if k else (None,))
    ]


@dataclasses.dataclass(frozen=True)
class Job:
  """Runs to train and to evaluate, as an ensemble if there are several."""

  members: tuple[RunSpec, ...]
  targets: tuple[Target, ...]

  def workdir(self, settings: Settings) -> pathlib.Path:
    """Return the folder of the run, or of the ensemble."""
    folder = self.members[0].workdir(settings)
    if len(self.members) == 1:
      return folder
    return folder.with_name(f"{folder.name}_ensemble{len(self.members)}")

  def results(self, target: Target, settings: Settings) -> dict[str, Any]:
    """Return the finished results of a target by name of the references."""
    workdir = self.workdir(settings)
    stages, found = finished.Stages(workdir), {}
    for label in target.labels():
      if stages.is_done(_stage(target, label)):
        (path, *_) = stages.files(_stage(target, label))
        found[label] = files.read_json_object(path)
    return found

  def is_done(self, target: Target, settings: Settings) -> bool:
    """Return whether all results of a target exist."""
    return len(self.results(target, settings)) == len(target.labels())

  def status(self, settings: Settings) -> str:
    """Return what is done, as text."""
    trained = [_is_trained(each, settings) for each in self.members]
    started = [
      (each.workdir(settings) / "checkpoints").is_dir() for each in self.members
    ]
    state = "to train"
    if all(trained):
      state = "trained"
    elif any(started):
      state = "training was interrupted"
    if len(trained) > 1:
      state = f"{sum(trained)} of {len(trained)} members trained"
    done = [t.data for t in self.targets if self.is_done(t, settings)]
    left = [t.data for t in self.targets if t.data not in done]
    parts = [state]
    parts += [f"evaluated: {', '.join(done)}"] * bool(done)
    parts += [f"to evaluate: {', '.join(left)}"] * bool(left)
    return "; ".join(parts)


def missing(config: types.Config) -> list[str]:
  """Return what a configuration needs to be trained and is not there."""
  found = []
  for path in (config.backbone.path, config.text_backbone.path):
    if not path or pathlib.Path(path).exists():
      continue
    name = pathlib.Path(path).stem
    get = f"zsad weights get {name} --output={path}"
    if name not in backbones.published():
      get = f"zsad convert --source=SOURCE --output={path}"
    found.append(f"weights {path} ({get})")
  used = config.selection_data if config.selection != "last" else ()
  found += [
    f"training data {name}"
    for name in dict.fromkeys((*config.train_data, *used))
    if not is_available(name, config.data_root)
  ]
  return found


def is_available(data: str, data_root: str | None) -> bool:
  """Return whether a data set exists, by registered name or folder."""
  name = data.removeprefix(registry.TFDS)
  if name not in registry.ENTRIES:
    return pathlib.Path(data).is_dir()
  if name in ("embedded", "embedded_auxiliary"):
    return True
  return registry.find(name, data_root) is not None


def run(job: Job, settings: Settings) -> bool:
  """Do what is missing of a job; return whether that was anything.

  Raises:
    stopping.Stopped: a signal stopped it; the next call goes on.
  """
  left = [t for t in job.targets if not job.is_done(t, settings)]
  if not left:
    return False
  for member in job.members:
    if not _is_trained(member, settings):
      _train(member.config(settings), member.workdir(settings))
  workdir = job.workdir(settings)
  if len(job.members) > 1:
    folders = [str(each.workdir(settings)) for each in job.members]
    ensemble.write(workdir, folders)
  with lock.hold(workdir):
    loaded = ensemble.load(workdir)
    for target in left:
      _evaluate(loaded, target)
  # The programs of one run are of no use to the next one.
  del loaded
  jax.clear_caches()
  return True


def _stage(target, label):
  """Return the name of a stage in `finished.json`."""
  kind = ", official references" if target.official and label[0] != "0" else ""
  return f"reproduction on {target.data}, {label}{kind}"


def _is_trained(member, settings):
  """Return whether a run of this configuration is trained and calibrated."""
  workdir = member.workdir(settings)
  if not finished.Stages(workdir).is_done("calibration"):
    return False
  run_lib.check_config(workdir, member.config(settings))
  return True


def _train(config, workdir):
  """Train a run, from its last checkpoint, and set its thresholds."""
  _log.info("\n---- %s: training", workdir)
  with lock.hold(workdir):
    if not train.train(config, workdir):
      raise stopping.Stopped(stopping.received(), together=True)
    train.calibrated(workdir)


def _evaluate(run, target) -> None:
  """Evaluate a run on a data set, and record the files of the results."""
  _log.info("\n---- %s: evaluation on %s", run.workdir, target.data)
  config: Any = run.config
  shots = tuple(sorted({0, *target.shots}))
  how = protocol.Protocol.from_config(
    config,
    test_data=(target.data,),
    shots=shots,
    seeds=target.seeds,
    allow_trained=config.allow_trained,
  )
  output = run.workdir / "evaluation"
  place = naming.place(target.data, config.data_root)
  names: Mapping[naming.Place, str] = naming.names(
    [place, *writer.trained_on(config)],
    lambda name, place: writer.is_free(output, name, place),
  )
  reports = writer.evaluate(
    run,
    target.data,
    output,
    how,
    choose=evaluate.chooser(
      shots, target.seeds, None, official=target.official
    ),
    names=names,
  )
  written = {
    r.result.references.label: writer.results_folder(output, r.result)
    / "results.json"
    for r in reports
  }
  _record(run, target, written)


def _record(run, target, written: Mapping[str, pathlib.Path]) -> None:
  """Record the results of a target in the folder of the run."""
  stages = finished.Stages(run.workdir, run.step)
  for label in target.labels():
    # Methods that need references have results with one instead of none.
    path = written.get(label, next(iter(written.values())))
    stages.mark(_stage(target, label), [path])


def merged(jobs: Sequence[Job]) -> list[Job]:
  """Merge jobs of the same runs, and their targets of the same data."""
  targets: dict[tuple[RunSpec, ...], dict[str, Target]] = {}
  for job in jobs:
    known = targets.setdefault(job.members, {})
    for target in job.targets:
      old = known.get(target.data, target)
      known[target.data] = dataclasses.replace(
        target,
        shots=tuple(sorted({*old.shots, *target.shots})),
        seeds=tuple(dict.fromkeys((*old.seeds, *target.seeds))),
      )
  return [
    Job(members, tuple(known.values())) for members, known in targets.items()
  ]
