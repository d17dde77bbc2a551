"""Scores, maps and losses of images and their two prompts, by hand."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import text_pairs

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
BACKBONE = clip.Clip(
  {"logit_scale": jnp.log(3.0)}, config.MODELS["ViT-L-14-336"]
)


@pytest.fixture
def given():
  """Features of three images, and the embeddings of their prompts."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  units = lambda *shape: jnp.asarray(numpy_reference.unit(draw(*shape)), "f4")
  features = {"class_unit": units(3, 6), "patch_units": units(3, 16, 6)}
  return features, jnp.asarray(draw(3, 2, 6))


@pytest.mark.parametrize("temperature, scale", [(None, 3.0), (0.5, 2.0)])
def test_scores_and_maps_by_hand(given, temperature, scale):
  features, text = given
  result = text_pairs.compare(BACKBONE, features, text, temperature)
  units = numpy_reference.unit(text)
  logits = scale * np.einsum("bd,bsd->bs", features["class_unit"], units)
  patches = scale * np.einsum("bld,bsd->bls", features["patch_units"], units)
  close(result["text_units"], units)
  close(result["image_logits"], logits)
  prob = numpy_reference.softmax(patches)
  close(result["patch_prob"], prob)
  found = text_pairs.to_prediction(result, (32, 32))
  close(found["pred_score"], numpy_reference.softmax(logits)[:, 1])
  close(found["anomaly_map"], numpy_reference.to_map(prob[..., 1]))


def test_losses_by_hand(given):
  features, text = given
  batch = numpy_reference.batch(3)
  # The first image is padding; the third has no mask.
  batch["weight"] = jnp.array([0.0, 1.0, 1.0])
  batch["has_mask"] = jnp.array([True, True, False])
  result = text_pairs.compare(BACKBONE, features, text, 0.5)
  plain = text_pairs.loss_parts(result, batch, 0.0)
  logits = np.asarray(result["image_logits"])[1:]
  each = numpy_reference.cross_entropy(logits, batch["label"][1:])
  assert set(plain) == {"image_ce"}
  close(plain["image_ce"], each.mean())
  parts = text_pairs.loss_parts(result, batch, 4.0)
  close(parts.pop("image_ce"), plain["image_ce"])
  prob = np.asarray(result["patch_prob"])[1:2, :, 1]
  maps = numpy_reference.to_map(prob)
  states = np.stack([1 - maps, maps], axis=-1)
  terms = numpy_reference.segmentation(states, batch["mask"][1:2])
  names = ("pixel_focal", "dice_anomalous", "dice_normal")
  assert set(parts) == set(names)
  for name, value in zip(names, terms):
    close(parts[name], 4 * value[0])
