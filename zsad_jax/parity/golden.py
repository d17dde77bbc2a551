"""A folder of reference tensors: its manifest, arrays and comparisons."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from zsad_jax import types
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip_model
from zsad_jax.layers import dual_path
from zsad_jax.torch_io import rules
from zsad_jax.training import optimizer


class Entry:
  """One `.npz` of the folder, with its description in the manifest."""

  def __init__(
    self, folder: pathlib.Path, file: str, described: Mapping[str, Any]
  ):
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

  def __iter__(self) -> Iterator[str]:
    return iter(self._arrays)

  def expected(self) -> list[str]:
    """Return the names of the arrays to be reproduced."""
    return [n for n in self._arrays if self.roles[n]["role"] == "expected"]

  def under(self, prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose names start with `prefix`, without it."""
    found = {n: a for n, a in self._arrays.items() if n.startswith(prefix)}
    return {n.removeprefix(prefix): a for n, a in found.items()}

  def text(self, name: str) -> Any:
    """Decode a JSON document stored as bytes."""
    return json.loads(self._arrays[name].tobytes())

  def images(self, name: str) -> jax.Array:
    """Convert stored uint8 images (b, 3, h, w) to inputs (b, h, w, 3)."""
    pixels = jnp.asarray(np.moveaxis(self._arrays[name], 1, -1))
    return jnp.asarray(clip_model.normalize(pixels))


def tree(
  entry: Entry,
  table: rules.Table,
  group: str = "param/",
  authors_name: Callable[[str], str] = lambda name: name,
  unused: Collection[str] = (),
) -> dict[str, Any]:
  """Convert stored arrays of a group to a method's tree, in float32.

  Args:
    entry: where they are stored.
    table: names in the authors' checkpoint and ours.
    group: prefix of the stored names.
    authors_name: maps the rest of a stored name to that in the checkpoint.
    unused: names in the checkpoint that no code reads.

  Returns:
    A nested dict of arrays.
  """
  stored = {authors_name(n): x for n, x in entry.under(group).items()}
  stored = {n: x for n, x in stored.items() if n not in unused}
  flat = rules.rename(stored, table)
  return clip_convert.unflatten(
    {path: jnp.asarray(x, jnp.float32) for path, x in flat.items()}
  )


def named(
  values: types.Params,
  entry: Entry,
  table: rules.Table,
  group: str = "param/",
  authors_name: Callable[[str], str] = lambda name: name,
  unused: Collection[str] = (),
) -> dict[str, Any]:
  """Flatten a tree like that of `tree`, under the stored names."""
  stored = {authors_name(n): n for n in entry.under(group)}
  stored = {n: ours for n, ours in stored.items() if n not in unused}
  back = jax.jit(lambda flat: rules.to_torch(flat, table, stored))
  found = back(clip_convert.flatten(values))  # One program, not one per array.
  return {stored[name]: x for name, x in found.items()}


def prompt_learner(name: str) -> str:
  """Return the name in the checkpoints of AnomalyCLIP and FAPrompt."""
  return f"prompt_learner.{name}"


def padded(
  prompts: jax.Array, backbone: clip_model.Clip, rows: int
) -> np.ndarray:
  """Pad prompts (k, t, c) to `rows` tokens; our code leaves padding out."""
  k, t, c = prompts.shape
  pad = np.asarray(backbone.embed_tokens(np.zeros(1, np.int32)))
  padding = np.broadcast_to(pad, (k, max(rows - t, 0), c))
  return np.concatenate([prompts, padding], axis=1)


def batch(entry: Entry) -> dict[str, jax.Array]:
  """Return the stored labels and masks as a batch of equal weights."""
  count = len(entry["label"])
  return {
    "label": jnp.asarray(entry["label"], jnp.int32),
    "mask": jnp.asarray(entry["mask"]),
    "has_mask": jnp.ones(count, bool),
    "weight": jnp.ones(count),
  }


def smoothed(maps: Any, sigma: int | float) -> np.ndarray:
  """Smooth maps (b, h, w) with scipy's Gaussian, as the authors' tests do."""
  return np.stack([ndimage.gaussian_filter(np.asarray(m), sigma) for m in maps])


def gradients(grads: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yield gradients and their norms under the stored names."""
  for name, grad in grads.items():
    yield f"grad/{name}", grad
    yield f"gradnorm/{name}", np.linalg.norm(np.ravel(grad))


@functools.partial(jax.jit, static_argnames=("method", "feature_layers"))
def image_side(
  method: Any,
  backbone: clip_model.Clip,
  image: jax.Array,
  feature_layers: tuple[int, ...],
) -> tuple[jax.Array, list[jax.Array]]:
  """Embed images and all their tokens; see `dual_path.encode`."""
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
def encode(
  method: types.Method, backbone: clip_model.Clip, image: jax.Array
) -> types.Features:
  """Compute the frozen features of images."""
  return method.encode(backbone, {"image": image})


class Trained(NamedTuple):
  """Values and gradients of a training step, before the optimizer."""

  loss: jax.Array
  parts: dict[str, jax.Array]
  stats: Any
  grads: Any
  inspected: Any  # Intermediate values, see `train`.


@functools.partial(jax.jit, static_argnames=("method", "inspect"))
def train(
  method: Any,
  params: types.Params,
  stats: types.Params,
  given: tuple[Any, Any, Any],
  batch: types.Batch,
  inspect: Callable[..., Any],
) -> Trained:
  """Compute loss and gradients of a batch, and intermediate values.

  All in one program: compilation dominates the run time, and XLA computes
  shared values once.

  Args:
    method: the method.
    params: its parameters.
    stats: its running statistics.
    given: backbone, aux and features.
    batch: see `batch`.
    inspect: (method, params, stats, *given) -> intermediate values.

  Returns:
    A `Trained`.
  """
  loss = lambda params: method.loss(params, stats, *given, batch, None)
  (value, (parts, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
  inspected = inspect(method, params, stats, *given)
  return Trained(value, parts, new, grads, inspected)


def steps(run: Callable[..., Trained]) -> Callable[..., tuple[Any, Any, Any]]:
  """Adapt (params, stats) -> `Trained` to the signature `trajectory` takes."""

  def loss_and_grads(params, stats):
    trained = run(params, stats)
    return trained.loss, trained.grads, trained.stats

  return loss_and_grads


def trajectory(
  entry: Entry,
  loss_and_grads: Callable[..., tuple[Any, Any, Any]],
  params: types.Params,
  trainable_mask: types.Params,
  state: Any = None,
  groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[np.ndarray, types.Params, Any]:
  """Repeat the stored optimizer steps on one batch.

  Args:
    entry: its config has the number of steps and the optimizer's settings.
    loss_and_grads: (params, state) -> (loss, grads, state).
    params: initial parameters.
    trainable_mask: `Method.trainable_mask` of them.
    state: initial value of everything else that a step changes.
    groups: parameters with a learning rate of their own, see `optimizer.make`.

  Returns:
    The loss before each step; parameters and state after all steps.
  """
  settings = dict(entry.config["traj"])
  steps, opt_name = settings.pop("steps"), settings.pop("opt")
  settings.pop("not_updated")  # The same as `trainable_mask`.
  for name in ("temperatures", "lr_temperatures"):  # The same as `groups`.
    settings.pop(name, None)
  settings["learning_rate"] = settings.pop("lr")
  if not settings["weight_decay"]:
    settings.pop("weight_decay")  # Adam has none.
  tx = optimizer.make(opt_name, settings, trainable_mask, groups=groups)

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
  """A folder of reference tensors with a manifest.json.

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
    """Load a file of the manifest."""
    return Entry(self.folder, file, self.manifest["files"][file])

  def backbone(self) -> clip_model.Clip:
    """Build the CLIP that all methods share, of method "clip weights"."""
    file = next(f for f, m in self.methods.items() if m == "clip weights")
    entry = self.entry(file)
    state = {n.removeprefix("w/"): entry[n] for n in entry}
    return clip_model.from_params(*clip_convert.from_openai(state))

  def other_files(self, suffix: str) -> list[pathlib.Path]:
    """Return the listed files, other than `.npz`, that end in `suffix`."""
    listed = self.manifest.get("other_files", {})
    return [self.folder / n for n in listed if n.endswith(suffix)]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Difference between a stored quantity and ours.

  Attributes:
    name: file and name of the array.
    absolute: largest absolute difference; NaN where it cannot be computed.
    relative: `absolute` divided by the largest stored magnitude.
    tolerance: largest absolute difference allowed.
    problem: why there is no difference, or "".
  """

  name: str
  absolute: float
  relative: float
  tolerance: float
  problem: str = ""

  @property
  def holds(self) -> bool:
    """Whether the difference is within the tolerance."""
    return not self.problem and self.absolute <= self.tolerance


def compare(
  name: str, role: Mapping[str, Any], stored: np.ndarray, ours: Any
) -> Comparison:
  """Compare our value with a stored array, which may be a leading part of it.

  Args:
    name: for the result.
    role: the array's entry in the manifest, with "atol" or "tol": "exact".
    stored: the reference.
    ours: an array of at least its shape, or bytes of a JSON document.
  """
  tolerance = 0.0 if role.get("tol") == "exact" else float(role["atol"])
  nothing = (name, float("nan"), float("nan"), tolerance)
  if isinstance(ours, bytes):  # A JSON document; its spacing is free.
    same = json.loads(ours) == json.loads(stored.tobytes())
    difference = 0.0 if same else 1.0
    return Comparison(name, difference, difference, tolerance)
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
