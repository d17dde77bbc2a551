"""Tests of methods/winclip.py and its variants, without vision tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.evaluation import paper_results
from zsad_jax.methods import winclip
from zsad_jax.parity import winclip as parity

SIDE, D, C = 4, 6, 5


def units(rng, *shape):
  x = rng.standard_normal(shape).astype("f")
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_features(rng, *rows):
  """Features of images; leaves (*rows, ...)."""
  return {
    "windows_2": units(rng, *rows, 9, D),
    "windows_3": units(rng, *rows, 4, D),
    "class_unit": units(rng, *rows, D),
    "patch_units": units(rng, *rows, 16, C),
    "class_id": rng.integers(0, 2, rows).astype("i"),
  }


@pytest.fixture(scope="module")
def given():
  """Text of two classes, features of two images and three references."""
  rng = np.random.default_rng(0)
  aux = {"text_units": units(rng, 2, 2, D)}
  trees = aux, random_features(rng, 2), random_features(rng, 1, 3)
  return jax.tree.map(jnp.asarray, trees)


def cover(values, size, mean):
  """Average over the windows that contain each patch, by loops."""
  edge = SIDE - size + 1
  grid, total = values.reshape(edge, edge), np.zeros((SIDE, SIDE))
  count = np.zeros((SIDE, SIDE))
  for i in range(edge):
    for j in range(edge):
      value = grid[i, j] if mean == "arithmetic" else 1 / grid[i, j]
      total[i : i + size, j : j + size] += value
      count[i : i + size, j : j + size] += 1
  return total / count if mean == "arithmetic" else count / total


def probability(unit, text, temperature):
  """Probability of the normal and the anomalous state."""
  powers = np.exp(unit @ text.T.astype(float) / temperature)
  return powers / powers.sum(-1, keepdims=True)


def distance(query, bank):
  return 0.5 * (1 - (query @ bank.reshape(-1, bank.shape[-1]).T).max(-1))


def anomalib(text, image, bank):
  """Text map, map of distances and score of one image."""
  prob = lambda level: probability(image[level], text, 0.07)[..., 1]
  z = prob("class_unit")
  maps = [cover(prob(f"windows_{s}"), s, "harmonic") for s in (2, 3)]
  text_map = 3 / (1 / z + sum(1 / m for m in maps))
  found = {k: distance(image[k], bank[k]) for k in bank}
  visual = [cover(found[f"windows_{s}"], s, "harmonic") for s in (2, 3)]
  visual = (sum(visual) + found["patch_units"].reshape(SIDE, SIDE)) / 3
  return (text_map, z), (0.5 * (text_map + visual), 0.5 * (z + visual.max()))


def caoyunkang(text, image, bank):
  """Text map and fused map; the score is the maximum of a resized map."""
  inverse = [
    cover(1 / probability(image[f"windows_{s}"], text, 0.01)[:, 0], s, mean)
    for s, mean in ((2, "arithmetic"), (3, "arithmetic"))
  ]
  text_map = 1 - 1 / np.mean(inverse, axis=0)
  first, second = (
    distance(image[f"windows_{s}"], bank[f"windows_{s}"]) for s in (2, 3)
  )
  second[0] = distance(image["windows_3"][0], bank["windows_2"])
  visual = [cover(first, 2, "arithmetic"), cover(second, 3, "arithmetic")]
  fused = 1 / (1 / text_map + 1 / np.mean(visual, axis=0))
  return (text_map / 2, None), (fused, None)


def mala_lab(text, image, bank):
  """The image's probability, and the map of distances."""
  z = probability(image["class_unit"], text, 0.01)[1]
  (_, _), (mean, _) = anomalib(text, image, bank)
  zero, _ = anomalib(text, image, bank)[0]
  visual = 2 * mean - zero
  return (np.full((SIDE, SIDE), z), z), (visual, 0.5 * (z + visual.max()))


@pytest.mark.parametrize("reference", [anomalib, caoyunkang, mala_lab])
def test_predictions_are_those_of_a_numpy_implementation(
  reference, given, small_clip
):
  aux, features, references = given
  name = reference.__name__
  settings = winclip.VARIANTS.get(name, {}) | dict(score_side=SIDE)
  method = winclip.Method(**settings)
  bank = method.build_memory_bank(references)
  predict = jax.jit(
    lambda features: method.predict({}, {}, small_clip, aux, features)
  )
  zero, few = predict(features), predict({**features, "memory_bank": bank})
  aux, features, bank = jax.tree.map(np.asarray, (aux, features, bank))
  for i in range(2):
    image = {k: x[i] for k, x in features.items()}
    text = aux["text_units"][image["class_id"]]
    flat = {k: x[0] for k, x in bank.items()}
    for found, (values, score) in zip(
      (zero, few), reference(text, image, flat)
    ):
      resized = method.to_map(jnp.asarray(values, "f").reshape(1, -1), 32)[0]
      np.testing.assert_allclose(found["anomaly_map"][i], resized, atol=2e-6)
      score = values.max() if score is None else score
      np.testing.assert_allclose(found["pred_score"][i], score, atol=2e-6)


def test_the_first_window_of_a_scale_is_compared_with_that_scale(given):
  """Unless caoyunkang's code is followed, whose effect is in the corner."""
  aux, features, references = given
  maps = []
  for shift in (True, False):
    settings = winclip.VARIANTS["caoyunkang"] | dict(gallery_shift=shift)
    method = winclip.Method(**settings)
    bank = method.build_memory_bank(references)
    distances = method.distances({**features, "memory_bank": bank})
    maps.append(method.map_from_references(distances).reshape(2, SIDE, SIDE))
  changed = ~np.isclose(*maps, atol=1e-7)
  assert changed[:, :3, :3].all() and changed.sum() == 2 * 9


def test_variants_differ_from_the_default_in_each_setting():
  default = vars(winclip.Method())
  for name, settings in winclip.VARIANTS.items():
    assert all(default[k] != value for k, value in settings.items()), name


def test_only_what_is_used_is_encoded(small_clip):
  batch = {"image": jnp.zeros((1, 32, 32, 3)), "class_id": jnp.zeros(1, int)}
  scales = {"windows_2", "windows_3", "class_id"}
  both = scales | {"class_unit", "patch_units"}
  for name, expected in (
    ("anomalyclip", both),
    ("caoyunkang", scales),
    ("mala_lab", both),
  ):
    method = winclip.Method(**winclip.VARIANTS[name])
    found = jax.eval_shape(method.encode, small_clip, batch)
    assert set(found) == expected


def test_scales_are_checked():
  with pytest.raises(ValueError, match="there has to be one, got none"):
    winclip.Method(scales=())
  with pytest.raises(ValueError, match="scales has to be at least 1"):
    winclip.Method(scales=(2, 0))


def test_tiles_of_a_wide_image():
  """Those of the stored examples; the flush tile can occur twice."""
  assert parity.tile_offsets(150, 112) == [0, 38]
  assert parity.tile_offsets(190, 112) == [0, 78, 78]


def test_names_in_the_tables_of_the_papers():
  name = paper_results.method_name
  assert name("winclip_paper", few_shot=False) == "WinCLIP"
  assert name("winclip_paper_mvtec", few_shot=True) == "WinCLIP+"
  assert name("winclip_paper_caoyunkang", few_shot=False) == "WinCLIP"
  assert name("clip_paper_ac", few_shot=False) == "CLIP-AC"
  assert name("clip_paper_pair", few_shot=False) == "CLIP"
