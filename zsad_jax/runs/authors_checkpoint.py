"""The authors' checkpoints: read into a run, and written from one.

`CHECKPOINT` of a method's module says how its authors store it, see
layers/torch_names.py. Of a file every tensor must be known and every known one
must be there; each is one of

  params, stats   ours, in another layout
  copy            another name of the same tensor
  buffer          frozen CLIP's, which the backbone can make again
  unused          read by no code

Buffers and what is unused are kept in the run's `released.npz`: `export`
gives back what was read, bit for bit. A run that was trained here gets them
from its backbone and as zeros.
"""

import dataclasses
import importlib
import io
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from zsad_jax import backbones, methods, types
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.runs import checkpoint
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import files
from zsad_jax.torch_io import file as torch_file
from zsad_jax.torch_io import rules

KEPT = "released.npz"
UNCALIBRATED = threshold_lib.Threshold(0.5, 0.0, 1.0, "not calibrated: 0.5")
# Share of a buffer's largest value by which it may differ: enough for float16.
TOLERANCE = 1e-2


class Entry(NamedTuple):
  """What stands under one name of the authors' file.

  Attributes:
    kind: see the module's docstring.
    shape: there.
    dtype: ours; the file may hold another one of the same kind.
    source: our flat path; of a copy, the name of the first.
    layout: key of `torch_names.LAYOUTS`.
    value: of buffers and of what is unused, when nothing was kept.
  """

  kind: str
  shape: tuple[int, ...]
  dtype: np.dtype
  source: str = ""
  layout: str = "same"
  value: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Released:
  """What a file of the authors holds.

  Attributes:
    params: trained parameters.
    stats: running statistics.
    kept: buffers and what is unused, by their names there.
    report: a line for every tensor, and warnings.
  """

  params: types.Params
  stats: types.Params
  kept: Mapping[str, np.ndarray]
  report: tuple[str, ...]


def stored_parameters(
  method: types.Method, backbone: types.Backbone, params: types.Params
) -> int:
  """Number of parameters in the authors' checkpoint: ours and the unused."""
  count = sum(x.size for x in jax.tree.leaves(params))
  stored = getattr(_module(method), "CHECKPOINT", None)
  unused = stored.unused(method, backbone) if stored else {}
  return count + sum(map(math.prod, unused.values()))


def entries(method: types.Method, backbone: types.Backbone) -> dict[str, Entry]:
  """Everything in a file of the authors, by name.

  Raises:
    ValueError: the method's module has no `CHECKPOINT`.
  """
  stored = getattr(_module(method), "CHECKPOINT", None)
  if stored is None:
    raise ValueError(
      f"{name_of(method)} has no released form: there is no CHECKPOINT in "
      f"zsad_jax/methods/{name_of(method)}.py."
    )
  result = {}
  model = jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))
  tables = ("params", stored.names), ("stats", stored.stats)
  for (kind, table), tree in zip(tables, model):
    for path, x in clip_convert.flatten(tree).items():
      name, layout = rules.invert(path, table)
      there = jax.eval_shape(rules.LAYOUTS[layout][1], x)
      ours = Entry(kind, there.shape, np.dtype(x.dtype), path, layout)
      result[name] = ours
      for copy in stored.copies(method, name):
        result[copy] = ours._replace(kind="copy", source=name)
  for name, shape in stored.unused(method, backbone).items():
    x = np.zeros(shape, np.float32)
    result[name] = Entry("unused", shape, x.dtype, value=x)
  for name, x in stored.buffers(method, backbone).items():
    result[name] = Entry("buffer", x.shape, x.dtype, value=x)
  return result


def read(
  path: str | pathlib.Path, method: types.Method, backbone: types.Backbone
) -> Released:
  """Reads the authors' file of a method.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, of another method, or of other sizes.
  """
  found, known = torch_file.read(path), entries(method, backbone)
  _check(path, found, known, method, backbone)
  flat, kept, lines, foreign = {"params": {}, "stats": {}}, {}, [], []
  width = max(map(len, known))
  for name, (kind, shape, dtype, source, layout, value) in known.items():
    x = found[name]
    if kind in flat:
      ours = rules.LAYOUTS[layout][0](x)
      flat[kind][source] = jnp.asarray(ours, dtype)
      fate = f"-> {kind}/{source}"
    elif kind == "copy":
      fate = f"copy of {source}"
    else:
      kept[name] = x
      fate = "never used" if kind == "unused" else "verified"
      if kind == "buffer" and not _close(x, value):
        fate = "not of this backbone"
        foreign.append(name)
    lines.append(f"{name:{width}}  {str(shape):18}  {fate}")
  if foreign:
    lines.append(
      f"warning: {len(foreign)} frozen tensors are not those of this "
      "backbone; was the checkpoint made with other CLIP weights?"
    )
  trees = (clip_convert.unflatten(flat[kind]) for kind in ("params", "stats"))
  return Released(*trees, kept, tuple(lines))


def convert(
  path: str | pathlib.Path,
  workdir: str | pathlib.Path,
  config: ml_collections.ConfigDict,
) -> None:
  """Makes a run of the authors' file, and prints what became of each tensor.

  Args:
    path: their file.
    workdir: the run's folder; it appears complete or not at all.
    config: the settings that the file was made with.

  Raises:
    FileNotFoundError: there is no such file, or no backbone's.
    ValueError: they do not fit together, or the workdir is not empty.
  """
  workdir = pathlib.Path(workdir).resolve()
  if workdir.exists() and any(workdir.iterdir()):
    raise ValueError(f"{workdir} is not empty; choose another --workdir.")
  method = run_lib.make_method(config.method_name, config.method.to_dict())
  backbone = backbones.load(**config.backbone)
  found = read(path, method, backbone)
  _write(workdir, config, found)
  print("\n".join(found.report))
  ours = sum(x.size for x in jax.tree.leaves(found.params))
  stored = stored_parameters(method, backbone, found.params)
  print(f"read    {path}")
  print(f"params  {ours:,} of {stored:,} stored")
  print(f"wrote   {workdir}, threshold {UNCALIBRATED.source}")


def export(workdir: str | pathlib.Path, path: str | pathlib.Path) -> None:
  """Writes the parameters of a run as the authors' code loads them.

  Raises:
    FileNotFoundError: no run there.
    ValueError: its method has no released form.
    OSError: the file cannot be written.
  """
  run = run_lib.load(workdir)
  state = to_state(run)
  groups = _module(run.method).CHECKPOINT.groups
  part = lambda group: {
    name.removeprefix(f"{group}."): x
    for name, x in state.items()
    if name.startswith(f"{group}.")
  }
  nested = {group: part(group) for group in groups} if groups else state
  torch_file.write(path, nested)
  print(f"read    {workdir}, step {run.step}")
  print(f"wrote   {path}, {len(state)} tensors")


def to_state(run: run_lib.Run) -> dict[str, np.ndarray]:
  """All tensors of the authors' file for a run, by their names joined."""
  kept, path = {}, run.workdir / KEPT
  if path.is_file():
    with np.load(path) as stored:
      kept = dict(stored)
  flat = {
    "params": clip_convert.flatten(run.params),
    "stats": clip_convert.flatten(run.stats),
  }
  state = {}
  for name, entry in entries(run.method, run.backbone).items():
    if entry.kind == "copy":
      state[name] = state[entry.source]  # The same array is stored once.
    elif entry.kind in flat:
      x = np.asarray(flat[entry.kind][entry.source])
      if x.dtype.kind == "i":
        x = x.astype(np.int64)  # Torch's counters.
      state[name] = rules.LAYOUTS[entry.layout][1](x)
    else:
      state[name] = kept.get(name, entry.value)
  return state


def name_of(method: types.Method) -> str:
  """The name of the file it is in."""
  return type(method).__module__.rpartition(".")[2]


def _module(method):
  return importlib.import_module(type(method).__module__)


def _check(path, found, known, method, backbone):
  """Raises ValueError unless the file has what is known, as it is known."""
  problem = clip_convert.differences(
    {name: _form(e.shape, e.dtype) for name, e in known.items()},
    {name: _form(x.shape, x.dtype) for name, x in found.items()},
  )
  if problem:
    other = _recognise(found, method, backbone)
    hint = f" This looks like a checkpoint of {other}." if other else ""
    raise ValueError(f"{path} does not fit {name_of(method)}: {problem}{hint}")
  for name, entry in known.items():
    if entry.kind == "copy" and not np.array_equal(
      found[name], found[entry.source]
    ):
      raise ValueError(
        f"{path}: {name} is not equal to {entry.source}, of which it has to "
        "be a copy."
      )


def _form(shape, dtype):
  """A shape in words, with the kind of numbers where they are no floats."""
  kinds = {"f": "", "i": " of integers"}
  return f"{tuple(shape)}{kinds.get(dtype.kind, f' of {dtype}')}"


def _recognise(found, method, backbone) -> str | None:
  """Name of the other method whose file has such names, numbers aside."""
  kinds = lambda given: {re.sub(r"\d+", "0", name) for name in given}
  for name in methods.names():
    module = methods.module(name)
    if hasattr(module, "CHECKPOINT") and name != name_of(method):
      if kinds(entries(module.Method(), backbone)) == kinds(found):
        return name
  return None


def _close(x, expected) -> bool:
  """Whether a stored buffer is the backbone's; ids have to be equal."""
  if expected.dtype.kind == "i":
    return np.array_equal(x, expected)
  difference = np.abs(x.astype(np.float32) - expected).max()
  return bool(difference <= TOLERANCE * np.abs(expected).max())


def _write(workdir, config, found: Released):
  """Writes a run into a folder beside the workdir, then renames it."""
  temporary = workdir.with_name(f".{workdir.name}.{os.getpid()}.tmp")
  model: dict[str, Any] = {"params": found.params, "stats": found.stats}
  try:
    run_lib.save_config(temporary, config)
    saved = checkpoint.Checkpoints(temporary / "checkpoints")
    try:
      saved.save(0, {"step": 0, "epoch": 0}, model=model)
    finally:
      saved.close()
    if found.kept:
      data = io.BytesIO()
      np.savez(data, **found.kept)
      files.write_bytes(temporary / KEPT, data.getvalue())
    for file in (threshold_lib.FILE, threshold_lib.FEW_SHOT_FILE):
      UNCALIBRATED.write(temporary, file)
    os.replace(temporary, workdir)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
