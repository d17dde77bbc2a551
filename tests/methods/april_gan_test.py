"""APRIL-GAN: its fusion with references by hand, and its parameter count.

Its other numbers are judged by the reference tensors in parity_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.methods import april_gan
from zsad_jax.runs import run as run_lib

# Layers in another order than that of the tower.
SMALL = april_gan.Method(feature_layers=(3, 1), memory_layers=(2, 3))
RNG = np.random.default_rng(0)
SIDE, GRID, WIDTH, EMBED = 32, 4, 64, 32


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def corners(values):
  """Resize patch values (b, l): bilinear, corner on corner."""
  line = np.linspace(0, GRID - 1, SIDE)
  low = np.minimum(line.astype(int), GRID - 2)
  matrix = np.zeros((SIDE, GRID))
  matrix[np.arange(SIDE), low] = 1 - (line - low)
  matrix[np.arange(SIDE), low + 1] += line - low
  grids = np.asarray(values, np.float64).reshape(-1, GRID, GRID)
  return np.einsum("Hh,bhw,Ww->bHW", matrix, grids, matrix)


@pytest.fixture(scope="module")
def given():
  """Parameters, text and features of three images, as arrays."""
  text = jnp.asarray(numpy_reference.unit(normal(2, 2, EMBED)), jnp.float32)
  heads = {
    str(i): {"kernel": normal(WIDTH, EMBED), "bias": normal(EMBED)}
    for i in range(2)
  }
  features = {
    "class_unit": jnp.asarray(
      numpy_reference.unit(normal(3, EMBED)), "float32"
    ),
    "patch_tokens": normal(3, 3, GRID**2, WIDTH),  # Of layers 1, 2, 3.
    "class_id": jnp.array([0, 1, 0]),
  }
  return {"patch_projection": heads}, {"text_units": text}, features


BACKBONE = clip.Clip(
  {}, config.ClipConfig(EMBED, SIDE, SIDE // GRID, WIDTH, 3, WIDTH, 3)
)


def predict(method, given, bank=None):
  params, aux, features = given
  if bank is not None:
    features = {**features, "memory_bank": bank}
  return method.predict(params, {}, BACKBONE, aux, features)


def zero_shot_by_hand(given, scale):
  """Return the sum of the maps of layers 3 and 1, and the text scores."""
  params, aux, features = given
  text = np.asarray(aux["text_units"])[np.asarray(features["class_id"])]
  total = 0.0
  for i, row in enumerate((2, 0)):
    head = params["patch_projection"][str(i)]
    tokens = np.asarray(features["patch_tokens"])[:, row]
    units = numpy_reference.unit(tokens @ head["kernel"] + head["bias"])
    logits = scale * np.einsum("bld,bsd->sbl", units, text)
    maps = np.stack([corners(each) for each in logits], axis=-1)
    total = total + numpy_reference.softmax(maps)[..., 1]
  cosines = np.einsum("bd,bsd->bs", features["class_unit"], text)
  return total, numpy_reference.softmax(scale * cosines)[:, 1]


@pytest.mark.parametrize("scale", [100.0, 5.0])
def test_zero_shot_by_hand(given, scale):
  method = dataclasses.replace(SMALL, cosine_scale=scale)
  total, score = zero_shot_by_hand(given, scale)
  found = predict(method, given)
  np.testing.assert_allclose(found["anomaly_map"], total / 2, atol=1e-4)
  np.testing.assert_allclose(found["pred_score"], score, atol=1e-4)
  assert "score_terms" not in found


def test_references_by_hand(given):
  references = normal(2, 3, GRID**2, WIDTH)  # Two of them.
  bank = SMALL.build_memory_bank({"patch_tokens": references[None]})
  assert bank.shape == (1, 2, 2, GRID**2, WIDTH)
  total, score = zero_shot_by_hand(given, 100.0)
  for row in (1, 2):  # Layers 2 and 3.
    query = numpy_reference.unit(given[2]["patch_tokens"][:, row])
    pool = numpy_reference.unit(references[:, row].reshape(-1, WIDTH))
    total = total + corners((1 - query @ pool.T).min(axis=-1))
  found = predict(SMALL, given, bank)
  np.testing.assert_allclose(found["anomaly_map"], total / 6, atol=1e-4)
  terms = np.stack([score, total.max(axis=(1, 2)) / 6], axis=1)
  np.testing.assert_allclose(found["score_terms"], terms, atol=1e-4)
  np.testing.assert_allclose(found["pred_score"], terms.mean(1), atol=1e-4)


def test_predictions_of_single_images_are_never_transductive(given):
  bank = SMALL.build_memory_bank({"patch_tokens": normal(1, 1, 3, 16, WIDTH)})
  other = dataclasses.replace(SMALL, transductive_score=True)
  found = [predict(m, given, bank)["pred_score"] for m in (SMALL, other)]
  np.testing.assert_array_equal(*found)


def test_scores_of_a_category_are_those_of_the_authors():
  terms = np.array([[0.2, 0.3], [0.6, 0.5], [0.4, 0.4]], np.float32)
  scores = SMALL.category_scores(terms)
  np.testing.assert_allclose(scores, [0.1, 0.8, 0.45], atol=1e-6)
  equal = SMALL.category_scores(np.full((2, 2), 0.5, np.float32))
  np.testing.assert_allclose(equal, 0.25)


def test_the_loss_has_no_dice_of_the_normal_state(given):
  params, aux, features = given
  mask = np.zeros((3, SIDE, SIDE), np.uint8)
  mask[1, 4:20, 8:30] = 1
  batch = {
    "mask": jnp.asarray(mask),
    "has_mask": jnp.array([True, True, False]),
    "weight": jnp.ones(3),
  }
  _, (parts, _) = SMALL.loss(params, {}, BACKBONE, aux, features, batch, None)
  assert parts.keys() == {"pixel_focal", "dice_anomalous"}
  both = {name: 0.0 for name in parts}
  for layer in (3, 1):
    head = {"0": params["patch_projection"][str((3, 1).index(layer))]}
    one = dataclasses.replace(
      SMALL, feature_layers=(layer,), memory_layers=(1, 2, 3)
    )
    maps = one.predict({"patch_projection": head}, {}, BACKBONE, aux, features)[
      "anomaly_map"
    ]
    states = np.stack([1 - maps, maps], axis=-1)
    # The third image has no mask.
    focal, dice, _ = numpy_reference.segmentation(states[:2], mask[:2])
    both["pixel_focal"] += focal.mean()
    both["dice_anomalous"] += dice.mean()
  for name, value in both.items():
    np.testing.assert_allclose(parts[name], value, rtol=2e-3)


def test_a_layer_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match="no layer 4"):
    dataclasses.replace(SMALL, memory_layers=(4,)).encode(
      BACKBONE, {"image": jnp.zeros((1, SIDE, SIDE, 3))}
    )
  with pytest.raises(ValueError, match="cosine_scale has to be"):
    run_lib.make_method("april_gan", {"cosine_scale": 0.0})


def test_parameter_count_at_full_size():
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  params, stats = jax.eval_shape(
    lambda: april_gan.Method().init(jax.random.key(0), backbone)
  )
  assert sum(x.size for x in jax.tree.leaves(params)) == 3_148_800
  assert not stats
