"""InCTRL: parameter counts, groupings and prompts.

Its other numbers are judged by the reference tensors in parity_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import prompts
from zsad_jax.methods import inctrl
from zsad_jax.runs import run as run_lib

FULL = config.ClipConfig(
  embed_dim=640,
  image_size=240,
  patch_size=16,
  vision_width=896,
  vision_layers=12,
  text_width=640,
  text_layers=12,
)
SMALL = inctrl.Method(feature_layers=(1, 3), grid=2, head_widths=(8, 4))


def test_parameters_at_full_size():
  method = inctrl.Method()
  params, _ = jax.eval_shape(
    lambda key: method.init(key, clip.Clip({}, FULL)), jax.random.key(0)
  )
  assert run_lib.count_trained(method, params) == 333_186
  assert run_lib.count(params) == 334_916


@pytest.mark.parametrize(("b", "k"), [(1, 3), (4, 2)])
def test_mixed_batches_are_a_wrong_reshape(b, k):
  """The code lists items by layer, and reads the list by image."""
  rng, n = np.random.default_rng(0), 3
  units = rng.normal(size=(b, n, 2, 5))
  bank = {
    "embed": rng.normal(size=(b, k, 4)),
    "layer_units": rng.normal(size=(b, k, n, 2, 5)),
  }
  found, mixed = inctrl.mixed(
    jnp.asarray(units, jnp.float32),
    jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), bank),
  )
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6)
  close(found, units.swapaxes(0, 1).reshape(b, n, 2, 5))
  flat = bank["layer_units"].transpose(2, 1, 0, 3, 4).reshape(b, n, k, 2, 5)
  close(mixed["layer_units"], flat.swapaxes(1, 2))
  close(mixed["embed"], bank["embed"].swapaxes(0, 1).reshape(b, k, 4))
  if b == 1:  # A single image keeps its own.
    close(found, units)
    jax.tree.map(close, mixed, bank)


@pytest.fixture(scope="module")
def given():
  """Parameters, statistics, text, and features of two images."""
  rng = np.random.default_rng(1)
  backbone = clip.Clip({}, config.ClipConfig(32, 16, 8, 64, 3, 64, 3))
  params, stats = jax.jit(lambda key: SMALL.init(key, backbone))(
    jax.random.key(0)
  )
  unit = lambda *s: jnp.asarray(
    numpy_reference.unit(rng.normal(size=s)), "float32"
  )
  normal = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
  features = {
    "embed": normal(2, 32),
    "layer_units": unit(2, 2, 4, 64),
    "class_id": jnp.array([0, 0]),
  }
  bank = {"embed": normal(1, 3, 32), "layer_units": unit(1, 3, 2, 4, 64)}
  aux = {"text_units": unit(1, 2, 32)}
  return backbone, params, stats, aux, features, bank


def test_prediction_by_hand(given):
  backbone, params, stats, aux, features, bank = given
  predict = lambda f: SMALL.predict(params, stats, backbone, aux, f)
  found = jax.jit(predict)({**features, "memory_bank": bank})
  params, bank = jax.tree.map(np.asarray, (params, bank))
  relu = lambda x: np.maximum(x, 0)
  adapt = lambda x: relu(
    relu(x @ params["adapter"]["down"]["kernel"])
    @ params["adapter"]["up"]["kernel"]
  )

  def head(p, x):
    for i in (1, 2):  # The initial statistics are 0 and 1.
      x = relu(x @ p[f"linear{i}"]["kernel"] + p[f"linear{i}"]["bias"])
      x /= np.sqrt(1 + 1e-5)
    x = x @ p["linear3"]["kernel"] + p["linear3"]["bias"]
    return 1 / (1 + np.exp(-x[0]))

  for i in range(2):
    embed = np.asarray(features["embed"])[i]
    patch = np.mean(
      [
        0.5
        - 0.5
        * (
          np.asarray(features["layer_units"])[i, j]
          @ bank["layer_units"][0, :, j].reshape(-1, 64).T
        ).max(axis=1)
        for j in range(2)
      ],
      axis=0,
    )
    residual = adapt(bank["embed"][0]).mean(0) - adapt(embed)
    image = head(params["image_head"], residual)
    logits = (
      100 * numpy_reference.unit(embed) @ np.asarray(aux["text_units"])[0].T
    )
    text = 1 / (1 + np.exp(logits[0] - logits[1]))
    score = head(params["patch_head"], text + image + patch)
    expected = (score + patch.max()) / 2
    np.testing.assert_allclose(found["pred_score"][i], expected, rtol=1e-4)
    corners = np.asarray(found["anomaly_map"])[i][::15, ::15].ravel()
    np.testing.assert_allclose(corners, patch, rtol=1e-4)


def test_natural_classes_have_one_prompt_per_state():
  normal, anomalous = prompts.inctrl("bird")
  assert normal == ["a photo of bird for anomaly detection."]
  assert anomalous == ["a photo without bird for anomaly detection."]
  assert [*map(len, prompts.inctrl("metal_nut"))] == [154, 88]


def test_images_of_another_size_are_refused(given):
  backbone, batch = given[0], {"image": jnp.zeros((1, 32, 32, 3))}
  with pytest.raises(ValueError, match="grid is 2, for images of 16 pixels"):
    SMALL.encode(backbone, batch)
