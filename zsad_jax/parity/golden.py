"""A folder of reference tensors: its manifest, arrays and comparisons."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip_model
from zsad_jax.layers import dual_path
from zsad_jax.torch_io import rules
from zsad_jax.training import optimizer


class Entry:
  """One `.npz` of the folder with what the manifest says of it."""

  def __init__(self, folder: pathlib.Path, file: str, described: Mapping):
    self.file = file
    self.method = described["method"]
    self.config = described["config"]
    self.roles = described["arrays"]
    with np.load(folder / file) as stored:
      self._arrays = {name: stored[name] for name in stored.files}

  def __getitem__(self, name: str) -> np.ndarray:
    return self._arrays[name]

  def __contains__(self, name: str) -> bool:
    return name in self._arrays

  def __iter__(self):
    return iter(self._arrays)

  def expected(self) -> list[str]:
    """Names of the arrays to be reproduced."""
    return [n for n in self._arrays if self.roles[n]["role"] == "expected"]

  def under(self, prefix: str) -> dict[str, np.ndarray]:
    """Arrays whose names start with `prefix`, without it."""
    found = {n: a for n, a in self._arrays.items() if n.startswith(prefix)}
    return {n.removeprefix(prefix): a for n, a in found.items()}

  def text(self, name: str) -> Any:
    """A JSON document stored as bytes."""
    return json.loads(self._arrays[name].tobytes())

  def images(self, name: str) -> jax.Array:
    """Stored uint8 images (b, 3, h, w) as network input (b, h, w, 3)."""
    return clip_model.normalize(
      jnp.asarray(np.moveaxis(self._arrays[name], 1, -1))
    )


def tree(
  entry: Entry,
  table: rules.Table,
  group: str = "param/",
  authors_name: Callable[[str], str] = lambda name: name,
) -> dict[str, Any]:
  """Stored arrays of a group as a method's tree, in float32.

  Args:
    entry: where they are stored.
    table: names of the authors' checkpoint and ours.
    group: what the stored names begin with.
    authors_name: from the rest of a stored name to that in the checkpoint.
  """
  stored = {authors_name(n): x for n, x in entry.under(group).items()}
  flat = rules.rename(stored, table)
  return clip_convert.unflatten(
    {path: jnp.asarray(x, jnp.float32) for path, x in flat.items()}
  )


def named(
  values,
  entry: Entry,
  table: rules.Table,
  group: str = "param/",
  authors_name: Callable[[str], str] = lambda name: name,
) -> dict[str, Any]:
  """A tree like that of `tree`, flat, under the stored names."""
  stored = {authors_name(n): n for n in entry.under(group)}
  back = jax.jit(lambda flat: rules.to_torch(flat, table, stored))
  found = back(clip_convert.flatten(values))  # One program, not one per array.
  return {stored[name]: x for name, x in found.items()}


def prompt_learner(name: str) -> str:
  """Name in the checkpoints of AnomalyCLIP and FAPrompt."""
  return f"prompt_learner.{name}"


def padded(prompts: jax.Array, backbone, rows: int) -> np.ndarray:
  """Sentences (k, t, c) with the padding that we cut off, up to `rows`."""
  k, t, c = prompts.shape
  padding = np.broadcast_to(backbone.embed_tokens(0), (k, max(rows - t, 0), c))
  return np.concatenate([prompts, padding], axis=1)


def batch(entry: Entry) -> dict[str, jax.Array]:
  """The stored labels and masks as a batch that counts whole."""
  count = len(entry["label"])
  return {
    "label": jnp.asarray(entry["label"], jnp.int32),
    "mask": jnp.asarray(entry["mask"]),
    "has_mask": jnp.ones(count, bool),
    "weight": jnp.ones(count),
  }


def smoothed(maps, sigma: int | float) -> np.ndarray:
  """Maps (b, h, w) after scipy's Gaussian, as the authors' test code has it."""
  return np.stack([ndimage.gaussian_filter(np.asarray(m), sigma) for m in maps])


def gradients(grads: Mapping[str, Any]):
  """Yields what is stored of gradients: themselves and their norms."""
  for name, grad in grads.items():
    yield f"grad/{name}", grad
    yield f"gradnorm/{name}", np.linalg.norm(np.ravel(grad))


@functools.partial(jax.jit, static_argnames=("method", "feature_layers"))
def image_side(method, backbone, image, feature_layers):
  """Embeddings of the images and of all their tokens; see `dual_path`."""
  return dual_path.encode(
    backbone,
    image,
    feature_layers=feature_layers,
    vv_from=method.vv_from,
    activation=method.activation,
    pos_resize=method.pos_resize,
    class_ln_post=False,
  )


@functools.partial(jax.jit, static_argnames="method")
def encode(method, backbone, image):
  """The features of images."""
  return method.encode(backbone, {"image": image})


class Trained(NamedTuple):
  """What a training step computes before the optimiser."""

  loss: jax.Array
  parts: dict[str, jax.Array]
  stats: Any
  grads: Any
  seen: Any  # What was looked at.


@functools.partial(jax.jit, static_argnames=("method", "look"))
def train(method, params, stats, given, batch, look):
  """Loss and gradients of a batch, and what else is looked at.

  One program, for compiling is what takes time, and XLA computes once what
  both need.

  Args:
    method: the method.
    params: its parameters.
    stats: its running statistics.
    given: backbone, aux and features.
    batch: see `batch`.
    look: (method, params, stats, *given) -> what is returned beside them.

  Returns:
    A `Trained`.
  """
  loss = lambda params: method.loss(params, stats, *given, batch, None)
  (value, (parts, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return Trained(value, parts, new, grads, look(method, params, stats, *given))


def steps(run: Callable[..., Trained]):
  """What `trajectory` takes, of (params, statistics) -> a `Trained`."""

  def loss_and_grads(params, stats):
    trained = run(params, stats)
    return trained.loss, trained.grads, trained.stats

  return loss_and_grads


def trajectory(entry: Entry, loss_and_grads, params, trained, state=None):
  """Repeats the stored optimiser steps on one batch.

  Args:
    entry: whose config describes them.
    loss_and_grads: (params, state) -> (loss, grads, state).
    params: where they start.
    trained: `Method.trained` of them.
    state: what else a step changes.

  Returns:
    The loss before each step, the parameters and the state after all.
  """
  settings = dict(entry.config["traj"])
  steps, name = settings.pop("steps"), settings.pop("opt")
  settings.pop("not_updated")  # `trained` says it.
  settings["learning_rate"] = settings.pop("lr")
  if not settings["weight_decay"]:
    settings.pop("weight_decay")  # Adam has none.
  tx = optimizer.make(name, settings, trained)

  @jax.jit
  def advance(grads, opt, params):
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt

  opt, history = jax.jit(tx.init)(params), []
  for _ in range(steps):
    loss, grads, state = loss_and_grads(params, state)
    history.append(loss)
    params, opt = advance(grads, opt, params)
  return np.stack(history), params, state


class Golden:
  """A folder with a manifest.json, as the reference tensors come in.

  Raises:
    FileNotFoundError: there is no manifest.json.
    ValueError: a file of the manifest is missing.
  """

  def __init__(self, folder: str | pathlib.Path):
    self.folder = pathlib.Path(folder)
    path = self.folder / "manifest.json"
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} does not exist: --golden names a folder of reference "
        "tensors with a manifest.json."
      )
    self.manifest = json.loads(path.read_text(encoding="utf-8"))
    for file in self.manifest["files"]:
      if not (self.folder / file).is_file():
        raise ValueError(f"{self.folder / file} is in the manifest but absent.")

  @property
  def methods(self) -> dict[str, str]:
    """Method of each `.npz` file."""
    return {f: e["method"] for f, e in self.manifest["files"].items()}

  def entry(self, file: str) -> Entry:
    return Entry(self.folder, file, self.manifest["files"][file])

  def backbone(self) -> clip_model.Clip:
    """The CLIP all methods share: the file of method "clip weights"."""
    file = next(f for f, m in self.methods.items() if m == "clip weights")
    entry = self.entry(file)
    state = {n.removeprefix("w/"): entry[n] for n in entry}
    return clip_model.from_params(*clip_convert.from_openai(state))

  def other_files(self, suffix: str) -> list[pathlib.Path]:
    """Files that are no `.npz` and end in `suffix`."""
    listed = self.manifest.get("other_files", {})
    return [self.folder / n for n in listed if n.endswith(suffix)]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One stored quantity beside ours.

  Attributes:
    name: file and name of the array.
    absolute: largest absolute difference; NaN when there is no number.
    relative: the same, divided by the largest stored magnitude.
    tolerance: largest absolute difference allowed.
    problem: why there is no number, or "".
  """

  name: str
  absolute: float
  relative: float
  tolerance: float
  problem: str = ""

  @property
  def holds(self) -> bool:
    return not self.problem and self.absolute <= self.tolerance


def compare(name: str, role: Mapping, stored, ours) -> Comparison:
  """Compares ours with a stored array, which may be a leading part of it."""
  tolerance = 0.0 if role.get("tol") == "exact" else float(role["atol"])
  nothing = (name, float("nan"), float("nan"), tolerance)
  if isinstance(ours, bytes):  # A JSON document; its spacing is free.
    same = json.loads(ours) == json.loads(stored.tobytes())
    return Comparison(name, *(0.0 if same else 1.0,) * 2, tolerance)
  ours = np.asarray(ours)
  if ours.ndim != stored.ndim:
    return Comparison(*nothing, f"shape {ours.shape}, not {stored.shape}")
  ours = ours[tuple(slice(0, side) for side in stored.shape)]
  if ours.shape != stored.shape:
    return Comparison(*nothing, f"shape {ours.shape}, not {stored.shape}")
  difference = np.abs(ours.astype(np.float64) - stored.astype(np.float64))
  absolute = float(difference.max(initial=0.0))
  largest = float(np.abs(stored.astype(np.float64)).max(initial=0.0))
  return Comparison(name, absolute, absolute / max(largest, 1e-30), tolerance)
