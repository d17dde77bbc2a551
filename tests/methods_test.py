"""One contract for every method in methods/, present and future."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zsad_jax
from zsad_jax import checkpoint, optim

FOLDER = pathlib.Path(zsad_jax.__file__).parent / "methods"
METHODS = sorted(p.stem for p in FOLDER.glob("[a-z]*.py"))
# Sizes that fit `small_clip`; a method that is not here is tried as it is.
SMALL = {
    "adaclip": dict(
        taps=(1, 3),
        prompt_length=2,
        prompt_depth=2,
        num_clusters=3,
        hsf_top_factor=2,
    ),
}
CLASSES = ["hex nut", "wood-grain"]


@pytest.fixture(scope="module", params=METHODS)
def setup(request, small_clip):
  """The method, its parameters, and a batch of four images."""
  module = importlib.import_module(f"zsad_jax.methods.{request.param}")
  method = module.Method(**SMALL.get(request.param, {}))
  params, stats = method.init(jax.random.key(0), small_clip)
  aux = method.prepare(small_clip, CLASSES)
  rng = np.random.default_rng(0)
  mask = np.zeros((4, 32, 32), np.uint8)
  mask[1, 8:20, 4:28] = mask[3, :6, :9] = 1
  batch = {
      "image": rng.normal(size=(4, 32, 32, 3)).astype(np.float32),
      "mask": mask,
      "has_mask": np.ones(4, bool),
      "label": np.array([0, 1, 0, 1], np.int32),
      "class_id": np.array([0, 1, 1, 0], np.int32),
      "weight": np.ones(4, np.float32),
  }
  return method, params, stats, aux, jax.tree.map(jnp.asarray, batch)


@functools.partial(jax.jit, static_argnums=0)
def predict(method, params, stats, backbone, aux, batch):
  features = method.encode(backbone, batch)
  return method.predict(params, stats, backbone, aux, features)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(method, params, stats, backbone, aux, batch):
  features = method.encode(backbone, batch)
  return jax.value_and_grad(method.loss, has_aux=True)(
      params, stats, backbone, aux, features, batch, jax.random.key(0)
  )


def take(batch, rows):
  return jax.tree.map(lambda x: x[rows], batch)


def close(a, b, atol):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_predictions_have_the_promised_form(setup, small_clip):
  method, params, stats, aux, batch = setup
  out = predict(method, params, stats, small_clip, aux, batch)
  assert out["anomaly_map"].shape == (4, 32, 32)
  assert out["pred_score"].shape == (4,)
  for value in out.values():
    assert value.dtype == jnp.float32
    assert (value >= 0).all() and (value <= 1).all()


def test_images_are_scored_alone(setup, small_clip):
  """Batch 1, batch 4 in another order, and a padded last batch agree."""
  method, params, stats, aux, batch = setup
  run = functools.partial(predict, method, params, stats, small_clip, aux)
  whole = run(batch)
  order = jnp.array([3, 0, 2, 1])
  close(run(take(batch, order)), take(whole, order), 1e-5)
  for i in range(4):
    close(run(take(batch, slice(i, i + 1))), take(whole, slice(i, i + 1)), 1e-5)
  padded = jax.tree.map(lambda x: x.at[2:].set(x.dtype.type(0)), batch)
  close(take(run(padded), slice(2)), take(whole, slice(2)), 1e-5)


def test_padding_does_not_enter_the_loss(setup, small_clip):
  method, params, stats, aux, batch = setup
  given = method, params, stats, small_clip, aux
  run = functools.partial(loss_and_grads, *given)
  few = run(take(batch, slice(2)))
  padding = batch["weight"].at[2:].set(0)
  padded = run({**batch, "weight": padding})
  close(padded[1], few[1], 1e-5)
  np.testing.assert_allclose(padded[0][0], few[0][0], rtol=1e-5)


def test_gradients_are_finite_and_where_the_method_says(setup, small_clip):
  method, params, stats, aux, batch = setup
  (loss, (parts, _)), grads = loss_and_grads(
      method, params, stats, small_clip, aux, batch
  )
  np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)
  trained = method.trained(params)
  assert jax.tree.structure(trained) == jax.tree.structure(params)
  for grad, used in zip(jax.tree.leaves(grads), jax.tree.leaves(trained)):
    assert np.isfinite(grad).all()
    assert bool(np.any(grad != 0)) == used


def test_two_steps_lower_the_loss(setup, small_clip):
  method, params, stats, aux, batch = setup
  tx = optim.make("adamw", {"learning_rate": 1e-3}, method.trained(params))
  opt, values = tx.init(params), []
  for _ in range(3):
    (loss, (_, stats)), grads = loss_and_grads(
        method, params, stats, small_clip, aux, batch
    )
    values.append(float(loss))
    updates, opt = tx.update(grads, opt, params)
    params = jax.tree.map(jnp.add, params, updates)
  assert values[2] < values[1] < values[0]


def test_checkpoint_round_trip(setup, small_clip, tmp_path):
  method, params, stats, *_ = setup
  saved = checkpoint.Checkpoints(tmp_path / "checkpoints")
  model = {"params": params, "stats": stats}
  saved.save(7, {"epoch": 1}, model=model)
  saved.close()
  again = checkpoint.Checkpoints(tmp_path / "checkpoints")
  other = jax.tree.map(jnp.zeros_like, model)
  found, meta = again.restore(model=other)
  assert again.latest_step == 7 and meta == {"epoch": 1}
  jax.tree.map(np.testing.assert_array_equal, found["model"], model)
  wrong = jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), model)
  with pytest.raises(ValueError, match="does not fit this configuration"):
    again.restore(model=wrong)
  again.close()
