"""Tests of layers/prompts.py and layers/text_ensemble.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from zsad_jax.layers import prompts, text_ensemble


@struct.dataclass  # A pytree, as backbones are.
class Letters:
  """A text encoder that counts letters."""

  text_width: int = struct.field(pytree_node=False, default=1)
  text_layers: int = struct.field(pytree_node=False, default=0)

  def tokenize(self, texts):
    ids = np.zeros((len(texts), 26), np.int32)
    for row, text in zip(ids, texts):
      for letter in text:
        row[ord(letter) - ord("a")] += 1
    return ids, np.zeros(len(texts), np.int32)

  def embed_tokens(self, ids):
    return ids.astype(jnp.float32)[..., None]

  def text(self, embeds, end, *, activation):
    return embeds[..., 0], {}

  def project_text(self, tokens):
    return tokens


@pytest.mark.parametrize("average", ["unit", "raw"])
def test_means_are_those_of_each_states_prompts(average):
  of_class = {
    "x": (["ab", "aab"], ["b"]),
    "y": (["c"], ["ccd", "d", "dcc"]),
  }
  found = text_ensemble.embed(
    Letters(), list(of_class), of_class.get, average=average
  )
  assert found.shape == (2, 2, 26)
  unit = lambda x: x / np.linalg.norm(x) if average == "unit" else x
  for i, states in enumerate(of_class.values()):
    for j, texts in enumerate(states):
      counts = [np.array([t.count(x) for x in "abcd"], float) for t in texts]
      expected = np.mean([unit(x) for x in counts], axis=0)
      np.testing.assert_allclose(found[i, j, :4], expected, rtol=1e-6)


def test_lists_of_templates():
  plain = lambda templates: {t.rstrip(".") for t in templates}
  all_22 = plain(prompts.WINCLIP_TEMPLATES_22)
  assert len(all_22) == 22
  assert plain(prompts.WINCLIP_TEMPLATES_MALA_LAB) == all_22
  assert set(prompts.WINCLIP_TEMPLATES_CAOYUNKANG) == all_22  # No full stops.
  assert len(prompts.WINCLIP_TEMPLATES_21) == 21
  missing = {"a cropped photo of a {}", "a jpeg corrupted photo of a {}"}
  assert all_22 - plain(prompts.WINCLIP_TEMPLATES_21) == missing
  assert len(set(prompts.APRIL_GAN_TEMPLATES)) == 35
  assert set(prompts.APRIL_GAN_TEMPLATES) == set(prompts.PHOTOS)
  assert len(set(prompts.IMAGENET_TEMPLATES)) == 80


def test_ensembles_have_the_published_numbers_of_prompts():
  count = lambda states: tuple(len(set(texts)) for texts in states)
  assert count(prompts.winclip("bolt")) == (154, 88)
  assert count(prompts.april_gan("bolt")) == (245, 175)
  assert count(prompts.clip_ac("bolt")) == (80, 80)
  normal, anomalous = prompts.clip_ac("metal nut")
  assert normal[0] == "a bad photo of a normal metal nut."
  assert anomalous[-1] == "a tattoo of the anomalous metal nut."
  given = "bolt", prompts.WINCLIP_STATES, prompts.WINCLIP_TEMPLATES_21
  by_state = prompts.ensemble(*given)
  by_template = prompts.ensemble(*given, template_major=True)
  assert by_template[1][:2] == [
    "a cropped photo of the damaged bolt.",
    "a cropped photo of the bolt with flaw.",
  ]
  assert [sorted(x) for x in by_state] == [sorted(x) for x in by_template]
