"""Parity of the losses: values and gradients."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax import losses
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, jax.Array]]:
  """Yield (stored name, our value) for each expected array."""
  del golden  # Losses need no backbone.
  for name in entry.expected():
    quantity, kind = name.rsplit("/", 1)
    loss = _find(entry, quantity)
    if loss is None:
      continue  # Reported as not produced.
    fn, x = loss
    if kind == "unreduced":
      yield name, fn(x).reshape(-1)
      continue
    value = fn(x)
    if value.size > 1 and quantity.endswith("_unreduced"):
      yield name, value.reshape(-1)
    elif kind == "grad":
      grad = jax.grad(lambda x, fn=fn: jnp.mean(fn(x)))(x)
      yield name, _to_stored_layout(grad)
    else:
      yield name, jnp.mean(value)


def _find(entry, quantity):
  """Return a loss and its argument by stored name, or None."""
  for pattern, make in _RULES:
    if found := re.fullmatch(pattern, quantity):
      return make(entry, *found.groups())
  return None


def _probs(entry, name):
  """Return stored (b, 2, h, w) probabilities with the states last."""
  return jnp.asarray(np.moveaxis(entry[name], 1, -1))


def _to_stored_layout(grad):
  return jnp.moveaxis(grad, -1, 1) if grad.ndim == 4 else grad


def _focal(entry, probs="probs", mask="mixed", **options):
  mask = jnp.asarray(entry[f"mask_{mask}"])
  fn = lambda x: losses.focal(x, mask, **options)
  return fn, _probs(entry, probs)


def _focal_with(entry, gamma, smooth):
  gamma = float(gamma)
  exponent = int(gamma) if gamma.is_integer() else gamma
  return _focal(entry, gamma=exponent, smooth=float(smooth))


def _weighted(entry, weight, index):
  weights = [1 - float(weight)] * 2
  weights[int(index)] = float(weight)
  return _focal(entry, state_weights=weights)


def _dice(entry, normal, probs, mask):
  mask = jnp.asarray(entry[f"mask_{mask}"])
  channel, mask = (0, 1 - mask) if normal else (1, mask)
  flat = lambda x: x.reshape(x.shape[0], -1)
  fn = lambda x: losses.dice(flat(x), flat(mask))
  return fn, _probs(entry, probs)[..., channel]


def _dice_rows(entry):
  mask = jnp.asarray(entry["mask_mixed"])[1:2]
  prob = _probs(entry, "probs")[1:2, ..., 1]
  return lambda x: losses.dice(x, mask), prob


def _image(entry):
  label = jnp.asarray(entry["image_labels"])
  return lambda x: losses.focal(x, label), jnp.asarray(entry["image_probs"])


def _binary(entry, given, targets):
  target = jnp.asarray(entry["bin_targets"])
  constant = {"zeros": jnp.zeros_like, "ones": jnp.ones_like}
  if targets in constant:
    target = constant[targets](target)
  loss = losses.binary_focal
  if given == "logits":
    loss = losses.binary_focal_with_logits
  return lambda x: loss(x, target), jnp.asarray(entry[f"bin_{given}"])


def _binary_twice(entry):
  """Pass probabilities as logits, as FAPrompt's code does."""
  fn, _ = _binary(entry, "logits", "mixed")
  return fn, jnp.asarray(entry["bin_probs"])


_RULES = (
  (r"focal/(\w+)/(\w+)", _focal),
  (r"dice(_normal)?/(\w+)/(\w+)", _dice),
  (r"dice_rowwise", _dice_rows),
  (r"focal_unreduced", _focal),
  (r"focal_alpha([\d.]+)_b(\d)", _weighted),
  (r"focal_gamma([\d.]+)_smooth([\d.e+-]+)", _focal_with),
  (r"focal_image", _image),
  (r"binary_focal/probs_through_logits_true", _binary_twice),
  (r"binary_focal/(logits|probs)/(\w+)", _binary),
)
