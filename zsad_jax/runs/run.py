"""Objects of a configuration, and the files of a run's workdir.

config.json      the configuration, with all overrides
categories.json  names of categories with parameters of their own
checkpoints/     parameters, statistics, optimiser, step, position in data
best/            parameters of the epoch chosen by config.selection
metrics.jsonl    losses and evaluations
threshold.json   threshold and map range for `predict`
threshold_few_shot.json   the same for scores with references
calibrations/    thresholds and references by name; see `calibrations`
lock.json        the process that trains the run at present; see `lock`
finished.json    completed stages after training; see `finished`
released.npz     other tensors of an authors' checkpoint
model.safetensors    parameters of a run of the hub, instead of checkpoints
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from zsad_jax import backbones, methods, types
from zsad_jax.datasets import index, registry
from zsad_jax.runs import backbone as backbone_lib
from zsad_jax.runs import categories as categories_lib
from zsad_jax.runs import checkpoint, hub, migration, model_file, peers
from zsad_jax.runs import settings as settings_lib
from zsad_jax.runtime import copies, distributed, environment, files
from zsad_jax.types import literals


def open_dataset(config: types.Config, name: str) -> index.Dataset:
  """Open a data set with the settings of a configuration; see `registry`."""
  # The first runs have no field for the masks.
  masks = str(config.get("masks", "compat"))
  dataset = registry.open_dataset(name, data_root=config.data_root, masks=masks)
  if masks == "compat":
    return dataset
  note = f"{dataset.name}: masks are read with masks={masks}."
  return dataclasses.replace(dataset, notes=(*dataset.notes, note))


def make_method(name: str, settings: Mapping[str, Any]) -> types.Method:
  """Return `Method(**settings)` of the file methods/<name>.py.

  Args:
    name: of the method.
    settings: values of its fields; other fields have their defaults.

  Raises:
    ValueError: there is no such file, a setting is not a field, or a field
      does not allow its value.
  """
  try:
    module = methods.module(name)
  except ValueError as error:
    raise ValueError(f"config.method_name: {error}") from error
  known = {f.name for f in dataclasses.fields(module.Method)}
  if unknown := sorted(set(settings) - known):
    raise ValueError(
      f"config.method.{unknown[0]}: {name} has no such field; it has "
      f"{', '.join(sorted(known))}."
    )
  as_tuple = lambda v: tuple(v) if isinstance(v, list) else v
  values = {k: as_tuple(v) for k, v in settings.items()}
  settings_lib.check_types(module.Method, values, "config.method")
  literals.check_choices(module.Method, values)
  return module.Method(**values)


def count(params: Any) -> int:
  """Return the number of parameters in a tree."""
  return sum(x.size for x in jax.tree.leaves(params))


def count_trained(method: types.Method, params: types.Params) -> int:
  """Return the number of parameters that are trained."""
  used = jax.tree.map(
    lambda p, t: p.size if t else 0, params, method.trainable_mask(params)
  )
  return sum(jax.tree.leaves(used))


@dataclasses.dataclass
class Run:
  """Trained run, ready to predict.

  Attributes:
    workdir: folder of the run.
    config: configuration of the run, locked.
    backbone: frozen backbone.
    method: hyperparameters and functions.
    params: trained parameters.
    stats: running statistics.
    step: training step of the parameters.
    seconds: training time up to that step; nan where it is unknown.
    categories: those with parameters of their own, the leading axis of
      parameters and statistics; None where all share them.
  """

  workdir: pathlib.Path
  config: types.Config
  backbone: types.ImageBackbone
  method: types.Method
  params: types.Params
  stats: types.Params
  step: int
  seconds: float
  categories: categories_lib.Categories | None = None

  def of_category(self, name: str) -> "Run":
    """Return the run with the parameters of one category.

    Raises:
      ValueError: the category has none.
    """
    params, stats = categories_lib.select(
      self.categories, name, self.params, self.stats
    )
    return dataclasses.replace(
      self, params=params, stats=stats, categories=None
    )

  @property
  def num_trained(self) -> int:
    """Number of parameters that are trained."""
    if self.categories is None:
      return count_trained(self.method, self.params)
    one = categories_lib.row(self.params, 0)
    return len(self.categories.names) * count_trained(self.method, one)


def of_class(run: Run, class_name: str) -> tuple[Run, str]:
  """Return a run with the parameters of a class, and its name in prompts.

  Raises:
    ValueError: the run has parameters per category, and none for the class.
  """
  known = getattr(run, "categories", None)
  if known is None:
    return run, class_name
  number = known.index(class_name)
  return run.of_category(class_name), known.prompt_names[number]


def save_config(workdir: pathlib.Path, config: types.Config) -> None:
  """Write config.json; an existing run must have the same configuration.

  A configuration of an older version is compared under the present names of
  its fields, and replaced.

  Raises:
    ValueError: see `check_config`.
  """
  check_config(workdir, config)
  text = config.to_json_best_effort(indent=1, sort_keys=True) + "\n"
  files.write_text(workdir / "config.json", text)


def check_config(workdir: pathlib.Path, config: types.Config) -> None:
  """Check that a workdir holds no run of another configuration.

  Raises:
    ValueError: it does, or its configuration cannot be read.
  """
  path = workdir / "config.json"
  if not path.exists():
    return
  if (workdir / model_file.FILE).exists():
    raise ValueError(
      f"{workdir} holds a run of the hub, without the state of its training: "
      "choose another --workdir."
    )
  new = _complete(json.loads(config.to_json_best_effort()))
  try:
    old = _complete(files.read_json_object(path))
  except ValueError as error:
    raise ValueError(
      f"{path} cannot be compared with this configuration; choose another "
      f"--workdir, or remove this one. ({error})"
    ) from error
  changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
  if changed:
    raise ValueError(
      f"{workdir} holds a run of another configuration (different: "
      f"{', '.join(changed)}); choose another --workdir or remove it."
    )


def _complete(document: Mapping[str, Any]) -> dict[str, Any]:
  """Return a configuration with every field of its method."""
  document = migration.upgrade(document)
  if "method_name" in document:  # Pretraining has no method.
    given = document.get("method")
    if not isinstance(given, Mapping):
      raise ValueError("config.method is missing or no section.")
    method: Any = make_method(document["method_name"], given)
    fields = json.loads(json.dumps(dataclasses.asdict(method)))
    document["method"] = fields
  return document


def read_config(workdir: str | pathlib.Path) -> types.Config:
  """Read the configuration of a run of any version.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: the file is corrupt, or a field is missing, unknown, of another
      type or out of range; the message has the path and the field.
  """
  path = pathlib.Path(copies.local(hub.local(workdir))) / "config.json"
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist: --workdir names the folder of a run made by "
      "`zsad train` or `zsad convert`."
    )
  try:
    document = migration.upgrade(files.read_json_object(path))
  except ValueError as error:
    raise ValueError(
      f"{error} Copy it from a backup, or train or convert the run again in "
      "another --workdir."
    ) from error
  if "objective" in document and "method_name" not in document:
    raise ValueError(
      f"{path} is that of a pretraining, which predicts nothing: --workdir "
      "names the folder of a run made by `zsad train` or `zsad convert`."
    )
  settings_lib.check(document, settings_lib.TRAINING, source=str(path))
  return ml_collections.ConfigDict(document)


def check_finite(tree: Any, source: str) -> None:
  """Check that all numbers of a tree of arrays are finite.

  Args:
    tree: parameters, replicated on all devices.
    source: name of the parameters in the message.

  Raises:
    ValueError: a number is NaN or infinite; the message has its path.
  """
  for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not np.isfinite(np.asarray(x, np.float32)).all():
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"{source} holds NaN or infinite numbers in {name}: train or convert "
        "the run again."
      )


def load(workdir: str | pathlib.Path) -> Run:
  """Read a run: its selected parameters where there are any, else its last.

  Sets JAX's default matmul precision to the run's.

  Args:
    workdir: folder of the run, its URL, or hf:owner/name on the hub.

  Raises:
    FileNotFoundError: the run, its checkpoint or its backbone's weights are
      missing.
    ValueError: the files do not fit together, or several processes have
      different runs.
  """
  environment.check()
  workdir = pathlib.Path(copies.local(hub.local(workdir), fresh=True))
  config = read_config(workdir)
  jax.config.update("jax_default_matmul_precision", config.matmul_precision)
  source = str(workdir / "config.json")
  try:
    method = make_method(config.method_name, config.method.to_dict())
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from error
  backbone = backbone_lib.load(config, method)
  backbone_lib.check_image_size(config, backbone, source=source)
  known = None
  if categories_lib.is_used(config):
    known = categories_lib.read(workdir)
  found, meta = _restore(workdir, config, backbone, method, known)
  peers.check_run(config, backbone, meta["step"], found)
  return Run(
    workdir=workdir,
    config=config.lock(),
    backbone=backbone,
    method=method,
    step=meta["step"],
    seconds=meta.get("seconds", math.nan),
    categories=known,
    **found,
  )


def _restore(workdir, config, backbone, method, known):
  """Return the parameters and statistics of a run, and their metadata."""
  if known:
    count = len(known.names)
    initial = categories_lib.initial(config, method, backbone, count)
  else:
    initial = jax.jit(method.init)(jax.random.key(0), backbone)
  mesh = distributed.make_mesh()
  params, stats = distributed.replicate(initial, mesh)
  like = {"params": params, "stats": stats}
  best = (workdir / "best").is_dir()
  folder = workdir / ("best" if best else "checkpoints")
  path = workdir / model_file.FILE
  if path.is_file() and not folder.is_dir():
    arrays, meta = model_file.read(path, like)
    digest = backbones.digest(backbone)
    model_file.check_backbone(path, meta, digest, config.backbone)
    check_finite(arrays, str(path))
    return distributed.replicate(arrays, mesh), meta
  saved = checkpoint.Checkpoints(folder, read_only=True)
  try:
    found, meta = saved.restore(model=like)
  finally:
    saved.close()
  check_finite(
    found["model"], f"The checkpoint of step {meta['step']} in {folder}"
  )
  return found["model"], meta
