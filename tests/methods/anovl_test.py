"""Tests of methods/anovl.py and its variants, without vision tower."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.evaluation import paper_results
from zsad_jax.methods import anovl

SIDE, D, M, SIZE = 4, 6, 5, (8, 8)
SMALL = {
  name: anovl.Method(**{**settings, "steps": 3, "learning_rate": 0.05})
  for name, settings in {"mvtec": {}, **anovl.VARIANTS}.items()
}


def draw(rng, *shape):
  return rng.standard_normal(shape).astype("f")


def given(variant, seed=0, tiles=1):
  """An adapter, tokens, noise, text and bank of one image."""
  rng = np.random.default_rng(seed)
  width = M if variant == "mvtec" else D
  adapter = {"kernel": draw(rng, D, width), "bias": draw(rng, width)}
  tokens, noise = draw(rng, tiles, 16, D), 0.1 * draw(rng, 3, tiles, 16, D)
  text, bank = draw(rng, 2, D), draw(rng, M, D)
  return adapter, tokens, noise, text, bank if variant == "mvtec" else None


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def adapted(adapter, tokens, bank):
  """Unit mixtures of tokens and adapter, in float64."""
  found = unit(tokens) @ adapter["kernel"] + adapter["bias"]
  if bank is not None:
    found = np.tanh(found) @ bank
  return unit(0.5 * tokens + 0.5 * found)


def enlarge(grid, size):
  """Resize a grid, corner on corner, by loops over the pixels."""
  out = np.zeros((*size, grid.shape[-1]))
  for i in range(size[0]):
    for j in range(size[1]):
      y = i * (grid.shape[0] - 1) / (size[0] - 1)
      x = j * (grid.shape[1] - 1) / (size[1] - 1)
      a, b = min(int(y), SIDE - 2), min(int(x), SIDE - 2)
      u, v = y - a, x - b
      top = (1 - v) * grid[a, b] + v * grid[a, b + 1]
      low = (1 - v) * grid[a + 1, b] + v * grid[a + 1, b + 1]
      out[i, j] = (1 - u) * top + u * low
  return out


def join(tiles, width):
  """Merge square tiles at both edges, pixel by pixel."""
  side, offset = tiles.shape[1], width - tiles.shape[1]
  out = np.zeros((side, width, tiles.shape[-1]))
  for x in range(width):
    found = [tiles[0][:, x]] if x < side else []
    if len(tiles) == 2 and x >= offset:
      found.append(tiles[1][:, x - offset])
    out[:, x] = np.mean(found, axis=0)
  return out


def probabilities(logits):
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def loss(variant, adapter, tokens, noise, text, bank, size):
  """The loss of one image in float64."""

  def probs(tokens):
    logits = adapted(adapter, tokens, bank) @ text.T
    if variant == "visa":
      grids = logits.reshape(-1, SIDE, SIDE, 2)
      tiles = np.stack([enlarge(g, (size[0], size[0])) for g in grids])
      logits = join(tiles, size[1])
    return probabilities(logits)

  clean, noisy = probs(tokens), probs(tokens + noise)
  entropy = -(clean * np.log(clean)).sum(-1).mean()
  pair = -np.log(noisy[..., 1]).mean() - np.log(clean[..., 0]).mean()
  return entropy + 0.5 * pair


def run_loss(variant, rest, adapter):
  return loss(variant, adapter, *rest)


def numpy(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize(
  "variant, tiles, width", [("mvtec", 1, 8), ("visa", 2, 11)]
)
def test_adaptation_is_that_of_a_numpy_implementation(variant, tiles, width):
  """Three steps of AdamW with gradients by finite differences."""
  method, size = SMALL[variant], (8, width)
  adapter, tokens, noise, text, bank = given(variant, tiles=tiles)
  run = jax.jit(lambda *given: method.adapt(*given, size))
  state = method.optimizer.init(adapter)
  (after, _), losses = run(adapter, state, tokens, noise, text, bank)
  x, tokens, noise, text, bank = numpy((adapter, tokens, noise, text, bank))
  moments = jax.tree.map(lambda a: np.zeros((2, *a.shape)), x)
  for step in range(3):
    given_noise = (tokens, noise[step], text, bank, size)
    run = functools.partial(run_loss, variant, given_noise)
    np.testing.assert_allclose(losses[step], run(x), rtol=1e-5)
    new = {}
    for name, value in x.items():
      grad = np.zeros(value.shape)
      for at in np.ndindex(*value.shape):
        move = np.zeros(value.shape)
        move[at] = 1e-5
        up, down = (run({**x, name: value + s * move}) for s in (1, -1))
        grad[at] = (up - down) / 2e-5
      m, v = moments[name]
      m[:] = 0.9 * m + 0.1 * grad
      v[:] = 0.999 * v + 0.001 * grad**2
      mean, square = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
      update = mean / (np.sqrt(square) + 1e-8) + 0.01 * value
      new[name] = value - 0.05 * update
    x = new
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), after, x
  )


def test_moments_are_kept_only_if_they_are_given():
  method = SMALL["mvtec"]
  first, second = given("mvtec", 0), given("mvtec", 1)
  adapt = jax.jit(lambda *given: method.adapt(*given, SIZE))
  run = lambda state, x: adapt(x[0], state, *x[1:])
  fresh = method.optimizer.init(first[0])
  (_, state), _ = run(fresh, first)
  (kept, _), losses = run(state, second)
  (anew, _), same = run(fresh, second)
  assert losses[0] == same[0] and losses[2] != same[2]
  assert np.abs(kept["kernel"] - anew["kernel"]).max() > 1e-3


def test_maps_are_means_of_neighbors_resized_and_merged():
  _, tokens, _, text, _ = given("visa", tiles=2)
  units = unit(np.asarray(tokens, np.float64))
  found = SMALL["visa"].to_map(
    jnp.asarray(units, "f"), jnp.asarray(text), (8, 11)
  )
  probs = probabilities(units @ np.asarray(text, np.float64).T)[..., 1]
  tiles = []
  for grid in probs.reshape(2, SIDE, SIDE):
    padded = np.pad(grid, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    tiles.append(enlarge(windows.mean((2, 3))[..., None], (8, 8)))
  expected = join(np.stack(tiles), 11)[..., 0]
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture(scope="module")
def features():
  """Text of two classes, features of three images."""
  rng = np.random.default_rng(3)
  aux = {
    "text_units": unit(draw(rng, 2, 2, D)),
    "prompt_units": unit(draw(rng, 2, M, D)),
  }
  return aux, {
    "tokens": draw(rng, 3, 16, D),
    "view_units": unit(draw(rng, 3, 22, D)),
    "class_id": np.array([0, 1, 0]),
  }


@functools.partial(jax.jit, static_argnums=0)
def predict(method, backbone, given):
  return method.predict({}, {}, backbone, *given)


@pytest.mark.parametrize("variant", SMALL)
def test_predictions_use_the_class_and_the_seed(variant, features, small_clip):
  method = SMALL[variant]
  found = predict(method, small_clip, features)
  aux, given = features
  text = np.asarray(aux["text_units"])[[0, 1, 0]]
  cosines = np.einsum("bvd,bsd->bvs", given["view_units"], text)
  expected = probabilities(cosines)[..., 1].mean(axis=1)
  np.testing.assert_allclose(found["pred_score"], expected, atol=1e-6)
  other = {**given, "class_id": np.array([1, 1, 0])}
  changed = predict(method, small_clip, (aux, other))["anomaly_map"]
  difference = np.abs(changed - found["anomaly_map"]).max(axis=(1, 2))
  assert difference[0] > 1e-4 and (difference[1:] == 0).all()
  change = dict(seed=1) if variant == "visa" else dict(adapter=None)
  other = predict(dataclasses.replace(method, **change), small_clip, features)
  assert np.abs(other["anomaly_map"] - found["anomaly_map"]).max() > 1e-4


def test_adapters_have_the_number_of_parameters_of_the_paper():
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  for variant, expected in (("mvtec", 592_284), ("visa", 410_240)):
    init = functools.partial(
      SMALL[variant].init_adapter, d=640, num_prompts=924
    )
    assert count(jax.eval_shape(init, jax.random.key(0))) == expected


def test_prompts_name_the_domain():
  method = anovl.Method()
  normal, anomalous = method.state_prompts("metal_nut")
  assert len(normal) == len(anomalous) == 462
  assert normal[0] == "a cropped industrial photo of the normal metal_nut"
  assert normal[6] == (
    "a cropped industrial photo of the metal_nut without damage"
  )
  assert normal[7] == "a cropped industrial photo of a normal metal_nut"
  assert anomalous[12 * 7 + 1] == "an industrial photo of a abnormal metal_nut"
  assert normal[-1] == (
    "a manufacturing image of a metal_nut without damage for anomaly detection"
  )
  normal, _ = method.state_prompts("wood")
  assert normal[22 * 7].startswith("a cropped textural photo of the normal")
  assert method.state_prompts("macaroni2") == method.state_prompts("macaroni")


def test_encoded_views_and_their_number(small_clip):
  batch = {"image": jnp.zeros((2, 32, 32, 3)), "class_id": jnp.zeros(2, int)}
  for views in (22, 1):
    method = anovl.Method(views=views)
    found = jax.eval_shape(method.encode, small_clip, batch)
    assert found["view_units"].shape == (2, views, 32)
    assert found["tokens"].shape == (2, 16, 32)


def test_fields_are_checked():
  for settings, message in (
    (dict(steps=0), "steps has to be at least 1"),
    (dict(mix=1.5), r"mix has to be in \[0, 1\]"),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(anovl.Method(), **settings)


def test_names_in_the_tables_of_the_papers():
  name = paper_results.method_name
  assert name("anovl_paper_mvtec", few_shot=False) == "AnoVL"
  assert name("anovl_paper_visa", few_shot=False) == "AnoVL"
