"""Checkpoints of a method's authors: conversion to a run, and export of a run.

The format of a file is the method's `checkpoint_spec`, a
`torch_io.rules.CheckpointSpec`. A file must hold exactly the tensors that the
spec lists. Each tensor is one of

  params, stats   a parameter or running statistic, in torch's layout
  copy            another name of the same tensor
  buffer          derived from the frozen CLIP; the backbone can compute it
  unused          read by no code

Buffers and unused tensors are stored in the run's `released.npz`, so that
`export` writes back the original file, bit for bit. For a run that was trained
with this package, buffers are computed from its backbone and unused tensors
are zeros.
"""

import dataclasses
import io
import logging
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from zsad_jax import methods, types
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.runs import backbone as backbone_lib
from zsad_jax.runs import checkpoint
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import files
from zsad_jax.torch_io import file as torch_file
from zsad_jax.torch_io import rules

EXTRA_FILE = "released.npz"  # Buffers and unused tensors, in a workdir.
UNCALIBRATED = threshold_lib.Threshold(0.5, 0.0, 1.0, "not calibrated: 0.5")
# Largest difference of a buffer, relative to its maximum; covers float16.
TOLERANCE = 1e-2

_log = logging.getLogger(__name__)


class StoredTensor(NamedTuple):
  """Description of one tensor in the authors' file.

  Attributes:
    kind: see the module's docstring.
    shape: shape in the file.
    dtype: our data type; the file may hold another precision of it.
    source: our flat path; for a copy, the name of the first tensor.
    layout: key of `rules.LAYOUTS`.
    value: for buffers and unused tensors, the value if none was stored.
  """

  kind: str
  shape: tuple[int, ...]
  dtype: np.dtype
  source: str = ""
  layout: str = "same"
  value: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class AuthorsCheckpoint:
  """Content of a file of the authors.

  Attributes:
    params: trained parameters.
    stats: running statistics.
    extra: buffers and unused tensors, by name in the file.
    report: one line for every tensor, and warnings.
  """

  params: types.Params
  stats: types.Params
  extra: Mapping[str, np.ndarray]
  report: tuple[str, ...]


def stored_parameters(
  method: types.Method, backbone: types.ImageBackbone, params: types.Params
) -> int:
  """Return the number of parameters in the authors' checkpoint.

  It is the number of our parameters and of the unused ones.
  """
  count = sum(x.size for x in jax.tree.leaves(params))
  spec: rules.CheckpointSpec | None = method.checkpoint_spec
  unused = spec.unused(method, backbone) if spec else {}
  return count + sum(map(math.prod, unused.values()))


def expected_tensors(
  method: types.Method, backbone: types.ImageBackbone
) -> dict[str, StoredTensor]:
  """Return the description of every tensor in a file of the authors, by name.

  Raises:
    ValueError: the method has no `checkpoint_spec`.
  """
  spec, result = _required_spec(method), {}
  model = jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))
  tables = ("params", spec.names), ("stats", spec.stats)
  for (kind, table), tree in zip(tables, model):
    for path, x in clip_convert.flatten(tree).items():
      found = rules.invert(path, table)
      assert found, f"No rule of {name_of(method)} gives the name of {path}."
      name, layout = found
      shape = jax.eval_shape(rules.LAYOUTS[layout][1], x).shape
      tensor = StoredTensor(kind, shape, np.dtype(x.dtype), path, layout)
      result[name] = tensor
      for copy in spec.copies(method, name):
        result[copy] = tensor._replace(kind="copy", source=name)
  for name, shape in spec.unused(method, backbone).items():
    x = np.zeros(shape, np.float32)
    result[name] = StoredTensor("unused", shape, x.dtype, value=x)
  for name, x in spec.buffers(method, backbone).items():
    result[name] = StoredTensor("buffer", x.shape, x.dtype, value=x)
  return result


def read(
  path: str | pathlib.Path,
  method: types.Method,
  backbone: types.ImageBackbone,
) -> AuthorsCheckpoint:
  """Read the checkpoint of a method's authors.

  Args:
    path: their file.
    method: the method, with the settings of the checkpoint.
    backbone: frozen CLIP that the checkpoint was trained with.

  Returns:
    Parameters and statistics in our layout, and all other tensors.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is corrupt, of another method, or of other sizes.
  """
  found, expected = torch_file.read(path), expected_tensors(method, backbone)
  _check(path, found, expected, method, backbone)
  _check_finite(path, found, expected)
  flat: dict[str, dict[str, Any]] = {"params": {}, "stats": {}}
  extra, lines, num_foreign = {}, [], 0
  width = max(map(len, expected))
  for name, tensor in expected.items():
    x = found[name]
    if tensor.kind in flat:
      ours = rules.LAYOUTS[tensor.layout][0](x)
      flat[tensor.kind][tensor.source] = jnp.asarray(ours, tensor.dtype)
      result = f"-> {tensor.kind}/{tensor.source}"
    elif tensor.kind == "copy":
      result = f"copy of {tensor.source}"
    elif tensor.kind == "unused":
      extra[name], result = x, "never used"
    else:
      foreign = not _is_close(x, tensor.value)
      num_foreign += foreign
      extra[name] = x
      result = "not of this backbone" if foreign else "verified"
    lines.append(f"{name:{width}}  {str(tensor.shape):18}  {result}")
  if num_foreign:
    lines.append(
      f"warning: {num_foreign} frozen tensors are not those of this backbone; "
      "was the checkpoint trained with other CLIP weights?"
    )
  return AuthorsCheckpoint(
    params=clip_convert.unflatten(flat["params"]),
    stats=clip_convert.unflatten(flat["stats"]),
    extra=extra,
    report=tuple(lines),
  )


def convert(
  path: str | pathlib.Path,
  workdir: str | pathlib.Path,
  config: ml_collections.ConfigDict,
) -> None:
  """Convert a checkpoint of the authors to a run; log a line per tensor.

  Args:
    path: the authors' file.
    workdir: folder of the run; it is written atomically.
    config: settings that the checkpoint was trained with.

  Raises:
    FileNotFoundError: the file or the weights of the backbone do not exist.
    ValueError: file and settings do not fit together, or the workdir is not
      empty.
  """
  workdir = pathlib.Path(workdir).resolve()
  if workdir.exists() and any(workdir.iterdir()):
    raise ValueError(f"{workdir} is not empty; choose another --workdir.")
  fields = cast(Any, config)
  method = run_lib.make_method(fields.method_name, fields.method.to_dict())
  backbone = backbone_lib.load(fields, method)
  found = read(path, method, backbone)
  _write(workdir, config, found)
  ours = sum(x.size for x in jax.tree.leaves(found.params))
  stored = stored_parameters(method, backbone, found.params)
  _log.info("%s", "\n".join(found.report))
  _log.info("read    %s", path)
  _log.info("params  %s of %s stored", f"{ours:,}", f"{stored:,}")
  _log.info("wrote   %s, threshold %s", workdir, UNCALIBRATED.source)


def export(workdir: str | pathlib.Path, path: str | pathlib.Path) -> None:
  """Write the parameters of a run as a checkpoint of the authors' code.

  Args:
    workdir: folder of the run.
    path: the file to write.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: the method has no `checkpoint_spec`.
    OSError: the file cannot be written.
  """
  run = run_lib.load(workdir)
  state = to_state_dict(run)
  nested: dict[str, Any] = {g: {} for g in _required_spec(run.method).groups}
  for name, x in state.items():
    group, _, rest = name.partition(".")
    if group in nested:
      nested[group][rest] = x
    else:
      nested[name] = x
  torch_file.write(path, nested)
  _log.info("read    %s, step %d", workdir, run.step)
  _log.info("wrote   %s, %d tensors", path, len(state))


def to_state_dict(run: run_lib.Run) -> dict[str, np.ndarray]:
  """Return all tensors of the authors' checkpoint for a run, by full name."""
  extra, path = {}, run.workdir / EXTRA_FILE
  if path.is_file():
    try:
      with np.load(path) as stored:
        extra = dict(stored)
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
      raise ValueError(
        f"{path} is corrupt ({error}): convert the authors' checkpoint again."
      ) from error
  flat = {
    "params": clip_convert.flatten(run.params),
    "stats": clip_convert.flatten(run.stats),
  }
  state = {}
  for name, tensor in expected_tensors(run.method, run.backbone).items():
    if tensor.kind == "copy":
      state[name] = state[tensor.source]  # The writer stores an array once.
    elif tensor.kind in flat:
      x = np.asarray(flat[tensor.kind][tensor.source])
      if x.dtype.kind == "i":
        x = x.astype(np.int64)  # Counters are int64 in torch.
      state[name] = rules.LAYOUTS[tensor.layout][1](x)
    else:
      state[name] = extra.get(name, tensor.value)
  return state


def name_of(method: types.Method) -> str:
  """Return the name of a method, which is that of its module."""
  return type(method).__module__.rpartition(".")[2]


def _required_spec(method: types.Method) -> rules.CheckpointSpec:
  spec = method.checkpoint_spec
  if spec is None:
    raise ValueError(
      f"{name_of(method)} has no checkpoint of its authors: there is no "
      f"checkpoint_spec in zsad_jax/methods/{name_of(method)}.py."
    )
  return spec


def _check(path, found, expected, method, backbone):
  """Raise ValueError unless the file holds the expected tensors."""
  problem = clip_convert.differences(
    {name: _describe(e.shape, e.dtype) for name, e in expected.items()},
    {name: _describe(x.shape, x.dtype) for name, x in found.items()},
  )
  if problem:
    other = _recognize(found, method, backbone)
    hint = f" This looks like a checkpoint of {other}." if other else ""
    raise ValueError(f"{path} does not fit {name_of(method)}: {problem}{hint}")
  for name, tensor in expected.items():
    if tensor.kind == "copy" and not np.array_equal(
      found[name], found[tensor.source]
    ):
      raise ValueError(
        f"{path}: {name} is not equal to {tensor.source}, of which it has to "
        "be a copy."
      )


def _check_finite(path, found, expected):
  """Raise ValueError for a parameter or statistic that is not finite."""
  for name, tensor in expected.items():
    x = found[name].astype(np.float32)
    if tensor.kind in ("params", "stats") and not np.isfinite(x).all():
      raise ValueError(
        f"{path}: {name} holds NaN or infinite numbers; fetch the file again."
      )


def _describe(shape, dtype) -> str:
  """Return a shape as text, with the data type unless it is floating-point."""
  kinds = {"f": "", "i": " of integers"}
  return f"{tuple(shape)}{kinds.get(dtype.kind, f' of {dtype}')}"


def _recognize(found, method, backbone) -> str | None:
  """Return another method whose file has the same names up to numbers."""
  generic = lambda names: {re.sub(r"\d+", "0", name) for name in names}
  for name in methods.names():
    other = methods.module(name).Method()
    if name == name_of(method) or other.checkpoint_spec is None:
      continue
    if generic(expected_tensors(other, backbone)) == generic(found):
      return name
  return None


def _is_close(x, expected) -> bool:
  """Compare a stored buffer with the backbone's; integers must be equal."""
  if expected.dtype.kind == "i":
    return np.array_equal(x, expected)
  difference = np.abs(x.astype(np.float32) - expected).max()
  return bool(difference <= TOLERANCE * np.abs(expected).max())


def _write(workdir, config, found: AuthorsCheckpoint):
  """Write a run into a temporary folder, then rename it to the workdir."""
  model: dict[str, Any] = {"params": found.params, "stats": found.stats}
  with files.draft(workdir) as temporary:
    run_lib.save_config(temporary, config)
    saved = checkpoint.Checkpoints(temporary / "checkpoints")
    try:
      saved.save(0, {"step": 0, "epoch": 0}, model=model)
    finally:
      saved.close()
    if found.extra:
      data = io.BytesIO()
      np.savez(data, **cast(Any, found.extra))
      files.write_bytes(temporary / EXTRA_FILE, data.getvalue())
    for file in (threshold_lib.FILE, threshold_lib.FEW_SHOT_FILE):
      UNCALIBRATED.write(temporary, file)
    os.replace(temporary, workdir)
