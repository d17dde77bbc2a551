"""Learning rates, weight decay and groups of the optimizer.

The reference is torch's update rule in NumPy.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsad_jax.runtime import config_files
from zsad_jax.training import optimizer

COSINE = {
  "name": "cosine",
  "warmup_epochs": 1,
  "warmup_learning_rate": 1e-5,
}
PARAMS = {
  "layer": {
    "kernel": np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([0.5, -1.0, 3.0], np.float32),
  },
  "scale": np.float32(4.0),
}
TRAINABLE = {"layer": {"kernel": True, "bias": True}, "scale": True}


def run(tx, steps=6):
  """Return the parameters after some steps on random gradients, and these."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(jnp.asarray, PARAMS)
  state, gradients = tx.init(params), []
  for _ in range(steps):
    grads = jax.tree.map(
      lambda x: rng.standard_normal(np.shape(x)).astype(np.float32), PARAMS
    )
    gradients.append(grads)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, gradients


def torch_sgd(param, grads, rates, momentum, decay):
  param, velocity = np.float64(param), 0.0
  for grad, rate in zip(grads, rates):
    velocity = momentum * velocity + grad + decay * param
    param = param - rate * velocity
  return param


def torch_adam(param, grads, rates, decay, eps, b1=0.9, b2=0.999):
  param, m, v = np.float64(param), 0.0, 0.0
  for t, (grad, rate) in enumerate(zip(grads, rates), 1):
    grad = grad + decay * param
    m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
    param = param - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
  return param


def test_the_cosine_is_delayed_by_the_warm_up_and_keeps_its_period():
  rates = optimizer.learning_rates(0.002, COSINE, 15)
  expected = [1e-5] + [
    0.001 * (1 + math.cos(math.pi * e / 15)) for e in range(14)
  ]
  np.testing.assert_allclose(rates, expected, rtol=1e-14)
  assert rates[1] == 0.002 and rates[-1] > 4e-5
  plain = optimizer.learning_rates(0.002, {"name": "cosine"}, 15)
  np.testing.assert_allclose(plain[:14], rates[1:], rtol=1e-14)
  constant = optimizer.learning_rates(0.1, {**COSINE, "name": "constant"}, 3)
  assert constant.tolist() == [1e-5, 0.1, 0.1]
  assert optimizer.learning_rates(0.1, {}, 0).tolist() == [0.1]


def test_sgd_is_torchs_with_weight_decay_in_the_gradient():
  rates = np.repeat(optimizer.learning_rates(0.2, COSINE, 3), 2)
  tx = optimizer.make(
    "sgd",
    {"learning_rate": 0.2, "momentum": 0.9},
    TRAINABLE,
    l2_weight_decay=0.1,
    schedule=COSINE,
    epochs=3,
    steps_per_epoch=2,
  )
  params, grads = run(tx)
  for take in (lambda t: t["layer"]["kernel"], lambda t: t["scale"]):
    expected = torch_sgd(take(PARAMS), map(take, grads), rates, 0.9, 0.1)
    np.testing.assert_allclose(take(params), expected, rtol=1e-5)


def test_groups_have_settings_of_their_own():
  groups = {
    "biases": {"params": ".*/bias", "learning_rate": 0.5, "eps": 0.1},
    "scales": {"params": "scale", "l2_weight_decay": 0.0},
  }
  tx = optimizer.make(
    "adam",
    {"learning_rate": 0.01, "eps": 1e-3},
    TRAINABLE,
    l2_weight_decay=0.2,
    schedule=COSINE,
    groups=groups,
    epochs=6,
  )
  params, grads = run(tx)
  for take, rate, decay, eps in (
    (lambda t: t["layer"]["kernel"], 0.01, 0.2, 1e-3),
    (lambda t: t["layer"]["bias"], 0.5, 0.2, 0.1),
    (lambda t: t["scale"], 0.01, 0.0, 1e-3),
  ):
    rates = optimizer.learning_rates(rate, COSINE, 6)
    expected = torch_adam(take(PARAMS), map(take, grads), rates, decay, eps)
    np.testing.assert_allclose(take(params), expected, rtol=2e-5)


def test_without_new_settings_the_optimizer_is_that_of_older_versions():
  config = config_files.load("anomalyclip")
  trainable = {**TRAINABLE, "scale": False}
  old = optax.partition(
    {"train": optax.adam(**config.optax), "keep": optax.set_to_zero()},
    {"layer": {"kernel": "train", "bias": "train"}, "scale": "keep"},
  )
  new = optimizer.from_config(config, trainable, steps_per_epoch=7)
  structure = lambda tx: jax.tree.structure(tx.init(PARAMS))
  assert structure(old) == structure(new)
  jax.tree.map(np.testing.assert_array_equal, run(old)[0], run(new)[0])
  with config.unlocked():
    for field in ("schedule", "l2_weight_decay", "param_groups"):
      del config[field]
  new = optimizer.from_config(config, trainable, steps_per_epoch=7)
  assert structure(old) == structure(new)


@pytest.mark.parametrize(
  "expressions, message",
  [
    (("bias",), "a.params is 'bias', which matches no trainable .*layer/bias"),
    (("frozen",), "which matches no trainable parameter; there are layer/bias"),
    (("layer/.*", ".*/bias"), "layer/bias is in the groups a and b"),
  ],
)
def test_a_group_needs_parameters_that_no_other_group_has(expressions, message):
  groups = {
    name: {"params": expression, "learning_rate": 1.0}
    for name, expression in zip("ab", expressions)
  }
  with pytest.raises(ValueError, match=message):
    optimizer.make(
      "sgd",
      {"learning_rate": 0.1},
      {**TRAINABLE, "frozen": False},
      groups=groups,
    )
