"""The contract of every method in methods/, present and future."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import methods
from zsad_jax.inference import few_shot, predictor
from zsad_jax.methods import clip
from zsad_jax.runs import checkpoint
from zsad_jax.runs import run as run_lib
from zsad_jax.training import optimizer

CLASSES = ["hex nut", "wood-grain"]


@pytest.fixture(scope="module", params=methods.names())
def setup(request, small_clip):
  """A method, its parameters, and a batch of four images."""
  settings = methods.tiny_settings(request.param)
  method = methods.module(request.param).Method(**settings)
  if method.min_set_size > 1:
    pytest.skip("It scores images together: tests/inference/sets_test.py.")
  params, stats = jax.jit(method.init)(jax.random.key(0), small_clip)
  aux = method.prepare(small_clip, CLASSES)
  rng = np.random.default_rng(0)
  mask = np.zeros((4, 32, 32), np.uint8)
  mask[1, 8:20, 4:28] = mask[3, :6, :9] = 1
  pixels = lambda *shape: rng.integers(0, 256, (*shape, 32, 32, 3), np.uint8)
  batch = {
    "image": pixels(4),
    "mask": mask,
    "has_mask": np.ones(4, bool),
    "label": np.array([0, 1, 0, 1], np.int32),
    "class_id": np.array([0, 1, 1, 0], np.int32),
    "weight": np.ones(4, np.float32),
  }
  if method.num_references:
    batch["references"] = pixels(4, method.num_references)
  return method, params, stats, aux, jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def trained_setup(setup):
  """The same for methods that are trained."""
  if not jax.tree.leaves(setup[1]):
    pytest.skip("The method has no parameters.")
  return setup


@functools.partial(jax.jit, static_argnums=0)
def predict(method, params, stats, backbone, aux, batch, memory=None):
  """Predict zero-shot, or with a memory bank that all images share."""
  batch = {k: x for k, x in batch.items() if k != "references"}
  features = predictor.encode(method, backbone, batch)
  if memory is not None:
    features["memory_bank"] = memory
  return method.predict(params, stats, backbone, aux, features)


@functools.partial(jax.jit, static_argnums=0)
def build_memory_bank(method, backbone, images):
  """Build the memory bank of references (k, 32, 32, 3) of class 0."""
  batch = {"image": images, "class_id": jnp.zeros(len(images), jnp.int32)}
  features = predictor.encode(method, backbone, batch)
  return method.build_memory_bank(jax.tree.map(lambda x: x[None], features))


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(method, params, stats, backbone, aux, batch):
  features = predictor.encode(method, backbone, batch)
  return jax.value_and_grad(method.loss, has_aux=True)(
    params, stats, backbone, aux, features, batch, jax.random.key(0)
  )


def needed_memory(method, backbone, batch):
  """Return a memory bank for methods that predict only with one, else None."""
  if not method.needs_references:
    return None
  references = jnp.flip(batch["image"][:3], axis=2)
  return build_memory_bank(method, backbone, references)


def take(batch, rows):
  return jax.tree.map(lambda x: x[rows], batch)


def close(a, b, atol, rtol=1e-7):
  check = functools.partial(np.testing.assert_allclose, atol=atol, rtol=rtol)
  jax.tree.map(check, a, b)


def test_predictions_have_the_promised_shapes_and_range(setup, small_clip):
  method, params, stats, aux, batch = setup
  memory = needed_memory(method, small_clip, batch)
  out = predict(method, params, stats, small_clip, aux, batch, memory)
  assert out["anomaly_map"].shape == (4, 32, 32)
  assert out["pred_score"].shape == (4,)
  for value in out.values():
    assert value.dtype == jnp.float32
    assert (value >= 0).all() and (value <= 1).all()


def check_independent(run, batch):
  """Check that order and padding of a batch change no result."""
  whole = run(batch)
  order = jnp.array([3, 0, 2, 1])
  close(run(take(batch, order)), take(whole, order), 1e-5)
  padded = jax.tree.map(lambda x: x.at[2:].set(x.dtype.type(0)), batch)
  close(take(run(padded), slice(2)), take(whole, slice(2)), 1e-5)
  return whole


def test_images_are_scored_independently(setup, small_clip):
  """Batch 1, batch 4 in another order, and a padded last batch agree."""
  method, params, stats, aux, batch = setup
  memory = needed_memory(method, small_clip, batch)
  given = method, params, stats, small_clip, aux
  run = lambda batch: predict(*given, batch, memory)
  whole = check_independent(run, batch)
  for i in range(4):
    close(run(take(batch, slice(i, i + 1))), take(whole, slice(i, i + 1)), 1e-5)


def test_images_are_scored_independently_with_references(setup, small_clip):
  """Every method has a few-shot form; the order of references is irrelevant."""
  method, params, stats, aux, batch = setup
  few = few_shot.with_memory_bank(method, feature_layers=(2, 3), vv_from=2)
  assert (few is method) == method.compares_references
  references = jnp.flip(batch["image"][:3], axis=2)
  given = few, params, stats, small_clip, aux
  memory = build_memory_bank(few, small_clip, references)
  whole = check_independent(lambda b: predict(*given, b, memory), batch)
  other = build_memory_bank(few, small_clip, references[::-1])
  close(predict(*given, batch, other), whole, 1e-5)
  if method.needs_references:
    return
  alone = predict(*given, batch)
  close(alone, predict(method, *given[1:], batch), 1e-6)
  assert np.abs(whole["pred_score"] - alone["pred_score"]).min() > 1e-4


def test_a_method_of_references_alone_is_refused_without_them(
  setup, small_clip
):
  method, params, stats, aux, batch = setup
  if not method.needs_references or method.needs_text:
    pytest.skip("It predicts without references.")
  with pytest.raises(ValueError, match="^[^\n]*give normal images of the same"):
    predict(method, params, stats, small_clip, aux, batch)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_weight_of_the_zero_shot_prediction(setup, small_clip, weight):
  method, params, stats, aux, batch = setup
  if not isinstance(method, clip.Method):
    pytest.skip("It does not depend on the method.")
  given = params, stats, small_clip, aux, batch

  def run(weight):
    few = few_shot.with_memory_bank(
      method, feature_layers=(2, 3), vv_from=2, zero_shot_weight=weight
    )
    bank = build_memory_bank(few, small_clip, batch["image"][:2])
    return predict(few, *given, bank)

  whole, compared = predict(method, *given), run(0.0)
  # The first image is a reference: no distance is left.
  close(compared["anomaly_map"][0], 0.0 * whole["anomaly_map"][0], 1e-5)
  mean = lambda a, b: weight * a + (1 - weight) * b
  close(run(weight), jax.tree.map(mean, whole, compared), 1e-5)


def test_an_image_is_nearest_to_itself(setup, small_clip):
  """An image that is its own reference is the least anomalous of all."""
  method, params, stats, aux, batch = setup
  few = few_shot.with_memory_bank(method, feature_layers=(2, 3), vv_from=2)
  if method.num_references or method.needs_references:
    pytest.skip("The comparison with references is learned, or not optional.")
  given = few, params, stats, small_clip, aux
  memory = build_memory_bank(
    few, small_clip, jnp.repeat(batch["image"][:1], 3, 0)
  )
  fused = predict(*given, batch, memory)
  if method.needs_references:
    assert (fused["pred_score"][1:] > fused["pred_score"][0] + 1e-2).all()
    assert fused["anomaly_map"][0].mean() < fused["anomaly_map"][1:].mean() / 2
    return
  zero_shot = predict(*given, batch)
  # Of the first image only a share of the zero-shot map is left.
  share = fused["anomaly_map"][0].max() / zero_shot["anomaly_map"][0].max()
  assert share <= 0.5 + 1e-5
  close(fused["anomaly_map"][0], share * zero_shot["anomaly_map"][0], 1e-5)
  more = fused["pred_score"] - 0.5 * zero_shot["pred_score"]
  if "score_terms" in fused:  # Half of the largest value of the map is left.
    more -= 0.5 * share * zero_shot["anomaly_map"].max(axis=(1, 2))
  close(more[0], 0.0, 1e-5)
  assert (more[1:] > 1e-3).all()


def test_padding_does_not_change_the_loss(trained_setup, small_clip):
  method, params, stats, aux, batch = trained_setup
  given = method, params, stats, small_clip, aux
  run = functools.partial(loss_and_grads, *given)
  twice = run(take(batch, jnp.array([0, 1, 0, 1])))
  half = {"weight": jnp.array([1.0, 1.0, 0.0, 0.0])}
  padded, other = (
    run({**take(batch, jnp.array([0, 1, *rest])), **half})
    for rest in ((2, 3), (1, 0))
  )
  # Nor gradients and statistics.
  close(padded, other, 1e-6, rtol=1e-5)
  # Means over images do not change when the images are repeated; sums double.
  summed = methods.summed_losses(type(method).__module__.rpartition(".")[2])
  (_, (parts, _)), (_, (doubled, _)) = padded[0], twice[0]
  for name, value in parts.items():
    factor = 2 if name in summed else 1
    np.testing.assert_allclose(doubled[name], factor * value, rtol=1e-4)
  assert abs(padded[0][0] - run(batch)[0][0]) > 1e-4


def test_gradients_are_finite_and_nonzero_where_trainable(
  trained_setup, small_clip
):
  method, params, stats, aux, batch = trained_setup
  (loss, (parts, _)), grads = loss_and_grads(
    method, params, stats, small_clip, aux, batch
  )
  np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)
  trained = method.trainable_mask(params)
  assert jax.tree.structure(trained) == jax.tree.structure(params)
  for grad, used in zip(jax.tree.leaves(grads), jax.tree.leaves(trained)):
    assert np.isfinite(grad).all()
    assert bool(np.any(grad != 0)) == used


def test_two_steps_reduce_the_loss(trained_setup, small_clip):
  method, params, stats, aux, batch = trained_setup
  tx = optimizer.make(
    "adamw", {"learning_rate": 1e-3}, method.trainable_mask(params)
  )
  opt, values = tx.init(params), []
  for _ in range(3):
    (loss, (_, stats)), grads = loss_and_grads(
      method, params, stats, small_clip, aux, batch
    )
    values.append(float(loss))
    updates, opt = tx.update(grads, opt, params)
    params = jax.tree.map(jnp.add, params, updates)
  assert values[2] < values[1] < values[0]


def test_checkpoint_round_trip(trained_setup, small_clip, tmp_path):
  method, params, stats, *_ = trained_setup
  saved = checkpoint.Checkpoints(tmp_path / "checkpoints")
  model = {"params": params, "stats": stats}
  saved.save(7, {"step": 7, "epoch": 1}, model=model)
  saved.close()
  again = checkpoint.Checkpoints(tmp_path / "checkpoints")
  other = jax.tree.map(jnp.zeros_like, model)
  found, meta = again.restore(model=other)
  assert again.latest_step == 7 and meta == {"step": 7, "epoch": 1}
  jax.tree.map(np.testing.assert_array_equal, found["model"], model)
  wrong = jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), model)
  with pytest.raises(ValueError, match="does not fit this configuration"):
    again.restore(model=wrong)
  again.close()


def test_a_method_or_field_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match="method_name: There is no.*a_clip.py"):
    run_lib.make_method("ada_clip", {})
  with pytest.raises(
    ValueError, match="method.feature_layer: adaclip has no such"
  ):
    run_lib.make_method("adaclip", {"feature_layer": 3})
