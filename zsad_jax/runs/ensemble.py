"""Ensembles of runs: a folder with `ensemble.json` that names the members.

The folder is used like that of a run: by `evaluate`, `predict`, `calibrate`
and `zsad_jax.load`. Scores and maps are the means over the members, which may
differ in everything but the precision of matrix products. The threshold is the
mean of theirs until another one is stored.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence

import ml_collections

from zsad_jax import types
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import files, urls

FILE = "ensemble.json"


@dataclasses.dataclass(frozen=True)
class Members(types.Method):
  """Properties of the methods of an ensemble; it predicts nothing itself.

  Attributes:
    methods: methods of the members.
  """

  methods: tuple[types.Method, ...]

  @property
  def needs_references(self) -> bool:
    """Whether a member requires reference images to predict."""
    return any(method.needs_references for method in self.methods)

  @property
  def image_only(self) -> bool:
    """Whether a member has image scores only."""
    return any(method.image_only for method in self.methods)


@dataclasses.dataclass
class Ensemble(run_lib.Run):
  """Several trained runs whose scores and maps are averaged.

  Parameters and statistics are those of all members, by their number. The
  backbone is that of the member with the largest images.

  Attributes:
    members: the runs.
  """

  members: tuple[run_lib.Run, ...] = ()

  @property
  def num_trained(self) -> int:
    """Number of parameters that are trained, of all members."""
    return sum(member.num_trained for member in self.members)


def write(workdir: str | os.PathLike[str], members: Sequence[str]) -> None:
  """Make a folder the ensemble of runs; nothing changes where it is one.

  Args:
    workdir: folder of the ensemble.
    members: folders of the runs.

  Raises:
    ValueError: the folder holds a run or another ensemble, or the members
      cannot be combined.
    FileNotFoundError: a member holds no run.
  """
  for path in (workdir, *members):
    urls.refuse(path, "--ensemble")
  if not members:
    raise ValueError("--ensemble is empty: name the folders of its runs.")
  folder = pathlib.Path(workdir)
  if (folder / "config.json").exists():
    raise ValueError(
      f"{folder} holds a run: --workdir names a folder of its own for the "
      "ensemble."
    )
  _check([pathlib.Path(each) for each in members])
  base = os.path.realpath(folder)
  listed = [os.path.relpath(os.path.realpath(x), base) for x in members]
  if (folder / FILE).is_file():
    if _listed(folder) == listed:
      return
    raise ValueError(
      f"{folder} is an ensemble of other runs ({', '.join(_listed(folder))}); "
      "choose another --workdir or remove it."
    )
  for file in (threshold_lib.FILE, threshold_lib.FEW_SHOT_FILE):
    _write_threshold(folder, [pathlib.Path(each) for each in members], file)
  text = json.dumps({"members": listed}, indent=1) + "\n"
  files.write_text(folder / FILE, text)


def _write_threshold(folder, members, file):
  """Write the mean threshold of the members, if all have one."""
  few_shot = file == threshold_lib.FEW_SHOT_FILE
  if not all((member / file).is_file() for member in members):
    return
  found = [threshold_lib.read(member, few_shot=few_shot) for member in members]
  mean = lambda name: math.fsum(getattr(x, name) for x in found) / len(found)
  names = ("image_score", "map_low", "map_high")
  source = f"mean of the thresholds of {len(found)} runs"
  score, low, high = map(mean, names)
  stored = threshold_lib.Threshold(score, low, high, source)
  if all(each.pixel is not None for each in found):
    stored = dataclasses.replace(
      stored, pixel=mean("pixel"), pixel_source=source
    )
  stored.write(folder, file)


def is_ensemble(workdir: str | os.PathLike[str]) -> bool:
  """Return whether a folder is an ensemble."""
  return not urls.is_url(workdir) and (pathlib.Path(workdir) / FILE).is_file()


def read_config(workdir: str | os.PathLike[str]) -> types.Config:
  """Return the configuration of a run, or the joint one of an ensemble.

  Raises:
    FileNotFoundError: the folder, or a member, holds no run.
    ValueError: a file is corrupt, or the members cannot be combined.
  """
  if not is_ensemble(workdir):
    return run_lib.read_config(pathlib.Path(workdir))
  return _check(_members(workdir))


def make_method(config: types.Config) -> types.Method:
  """Return the method of a configuration of `read_config`, or `Members`."""
  if "members" not in config:
    return run_lib.make_method(config.method_name, config.method.to_dict())
  return _join(make_method(each) for each in config.members.values())


def load(workdir: str | os.PathLike[str]) -> run_lib.Run:
  """Read a run, or all runs of an ensemble; see `run.load`."""
  if not is_ensemble(workdir):
    return run_lib.load(os.fspath(workdir))
  config = read_config(workdir)
  members = tuple(run_lib.load(path) for path in _members(workdir))
  return combine(pathlib.Path(workdir), members, config)


def combine(
  workdir: pathlib.Path, members: Sequence[run_lib.Run], config: types.Config
) -> Ensemble:
  """Return the ensemble of runs.

  Args:
    workdir: its folder, which has its thresholds.
    members: the runs.
    config: their joint configuration, see `read_config`.
  """
  seconds = [member.seconds for member in members]
  return Ensemble(
    workdir=workdir,
    config=config.lock(),
    backbone=max(members, key=lambda m: m.config.image_size).backbone,
    method=_join(member.method for member in members),
    params=dict(zip(config.members, (member.params for member in members))),
    stats=dict(zip(config.members, (member.stats for member in members))),
    step=max(member.step for member in members),
    seconds=math.fsum(seconds),
    members=tuple(members),
  )


def _join(methods) -> types.Method:
  """Return the properties of methods together."""
  return Members(tuple(methods))  # pyright: ignore[reportAbstractUsage]


def _listed(workdir):
  """Return the members as the file of an ensemble names them."""
  path = pathlib.Path(workdir) / FILE
  found = files.read_json_object(path).get("members")
  if not (
    isinstance(found, list) and found and all(isinstance(x, str) for x in found)
  ):
    raise ValueError(
      f"{path} is corrupt: members must be a list of folders. Remove it, and "
      "give --ensemble again."
    )
  return found


def _members(workdir):
  """Return the folders of the members of an ensemble."""
  base = pathlib.Path(os.path.realpath(workdir))
  return [pathlib.Path(os.path.normpath(base / x)) for x in _listed(workdir)]


def _check(paths):
  """Return the joint configuration of runs that can be combined."""
  real = [os.path.realpath(path) for path in paths]
  for path, place in zip(paths, real):
    if real.count(place) > 1:
      raise ValueError(f"--ensemble: {path} is given more than once.")
    if (path / FILE).is_file():
      raise ValueError(
        f"--ensemble: {path} is an ensemble itself; name its runs."
      )
  configs = [run_lib.read_config(path) for path in paths]
  for path, config in zip(paths, configs):
    if config.get("per_category", False):
      raise ValueError(
        f"--ensemble: {path} has parameters per category, which are not "
        "combined; evaluate it alone."
      )
    if make_method(config).min_set_size > 1:
      raise ValueError(
        f"--ensemble: {path} scores all images of a set together; an ensemble "
        "averages scores of single images: leave it out."
      )
  for path, config in zip(paths, configs):
    first = configs[0].matmul_precision
    if config.matmul_precision != first:
      raise ValueError(
        f"--ensemble: config.matmul_precision is {first} in {paths[0]}, but "
        f"{config.matmul_precision} in {path}; runs of an ensemble are "
        "computed with the same precision."
      )
  names = ["/".join(path.parts[-1:]) for path in paths]
  return _joint(configs, names)


def _joint(configs, names) -> types.Config:
  """Return the configuration of an ensemble, for its evaluation.

  Images and masks are read as for the member with the largest images; all
  that was trained on, or selected by, counts.
  """
  lead = max(configs, key=lambda config: config.image_size)
  joint: types.Config = ml_collections.ConfigDict(lead.to_dict())
  for field in ("method_name", "method", "seed", "optax", "optax_name"):
    if field in joint:
      del joint[field]
  joint.name = f"ensemble of {len(names)}: {', '.join(names)}"
  each = list(dict.fromkeys(config.backbone.name for config in configs))
  joint.backbone.name = ", ".join(each)
  union = lambda name, given: list(
    dict.fromkeys(x for config in given for x in config[name])
  )
  joint.train_data = union("train_data", configs)
  joint.test_data = union("test_data", configs)
  selected = [config for config in configs if config.selection != "last"]
  joint.selection = selected[0].selection if selected else "last"
  joint.selection_data = union("selection_data", selected)
  joint.allow_trained = all(config.allow_trained for config in configs)
  joint.skip_corrupt = all(config.skip_corrupt for config in configs)
  joint.eval_batch_size = min(config.eval_batch_size for config in configs)
  joint.members = {
    f"{number:02}": ml_collections.ConfigDict(config.to_dict())
    for number, config in enumerate(configs, 1)
  }
  return joint
