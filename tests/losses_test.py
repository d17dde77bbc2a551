"""Losses: values by hand, limits, and jit against eager."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import losses

RNG = np.random.default_rng(0)


def test_focal_by_hand():
  # p = 0.8 for the target: -(1 - 0.8)^2 log 0.8, up to the smoothing.
  prob = jnp.array([[0.2, 0.8], [0.8, 0.2]])
  loss = losses.focal(prob, jnp.array([1, 0]))
  np.testing.assert_allclose(loss, -0.04 * np.log(0.8), rtol=2e-4)


def test_focal_without_focus_is_cross_entropy():
  prob = jax.nn.softmax(jnp.asarray(RNG.normal(size=(50, 2)), jnp.float32))
  target = jnp.asarray(RNG.integers(0, 2, 50))
  loss = losses.focal(prob, target, gamma=0, smooth=0.0)
  expected = -np.log(np.asarray(prob)[np.arange(50), target])
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_focal_weights_follow_the_state():
  prob = jnp.full((2, 2), 0.5)
  plain = losses.focal(prob, jnp.array([0, 1]))
  weighted = losses.focal(prob, jnp.array([0, 1]), state_weights=(0.25, 3.0))
  np.testing.assert_allclose(weighted / plain, [0.25, 3.0], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_focal_gradient_is_finite_at_certainty(value):
  prob = jnp.array([[1 - value, value]])
  total = lambda p, target: losses.focal(p, target).sum()
  for target in (0, 1):
    grad = jax.grad(total)(prob, jnp.array([target]))
    assert np.isfinite(grad).all()


def test_focal_is_the_same_when_vmapped_and_compiled():
  # jax 0.10.2 on CPU compiled a vmapped sum over the two states wrongly.
  logits = jnp.asarray(RNG.normal(size=(2, 4, 112, 112, 2)), jnp.float32)
  mask = jnp.asarray(RNG.random((2, 112, 112)) > 0.8)
  level = lambda z: losses.focal(jax.nn.softmax(z), mask).mean((1, 2))
  fn = jax.vmap(level, 1, 1)
  np.testing.assert_allclose(jax.jit(fn)(logits), fn(logits), rtol=1e-5)


def test_binary_focal_agrees_with_its_logits_form():
  logits = jnp.asarray(RNG.normal(size=100) * 3, jnp.float32)
  target = jnp.asarray(RNG.integers(0, 2, 100), jnp.float32)
  np.testing.assert_allclose(
    losses.binary_focal(jax.nn.sigmoid(logits), target),
    losses.binary_focal_with_logits(logits, target),
    rtol=2e-4,
    atol=1e-6,
  )


def test_binary_focal_gradient_at_zero_logit():
  # (1 - p)^2 times cross-entropy, differentiated by hand at p = 1/2.
  total = lambda x: losses.binary_focal_with_logits(x, jnp.ones(1)).sum()
  grad = jax.grad(total)(jnp.zeros(1))
  np.testing.assert_allclose(grad, 0.25 * (np.log(0.5) - 0.5), rtol=1e-5)


def test_dice_limits():
  ones = jnp.ones((1, 999))
  np.testing.assert_allclose(losses.dice(ones, ones), 0.0, atol=1e-6)
  np.testing.assert_allclose(losses.dice(ones, 0 * ones), 1 - 1 / 1000)
  np.testing.assert_allclose(losses.dice(0 * ones, 0 * ones), 0.0)


def test_dice_over_rows_is_the_mean_of_single_rows():
  prob = jax.nn.softmax(jnp.asarray(RNG.normal(size=(3, 6, 5, 2))))
  mask = jnp.asarray(RNG.random((3, 6, 5)) > 0.7)
  terms = losses.segmentation(prob, mask, dice_over="rows")
  rows = [
    [losses.dice(p, t) for p, t in zip(image, target)]
    for image, target in zip(prob[..., 1], mask.astype(prob.dtype))
  ]
  np.testing.assert_allclose(terms[:, 1], np.mean(rows, axis=1), rtol=1e-5)
  whole = losses.segmentation(prob, mask, dice_over="image")
  assert np.abs(np.asarray(whole - terms))[:, 1:].min() > 1e-3
  with pytest.raises(ValueError, match="dice_over"):
    losses.segmentation(prob, mask, dice_over="columns")
