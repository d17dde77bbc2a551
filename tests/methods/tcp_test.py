"""TCP: written prompts, class tokens and their distance.

Its numbers are judged by the reference tensors in parity_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.methods import tcp

SMALL = tcp.Method(**tcp.TINY, map_weight=0.0)
NAMES = ["metal_nut", "pcb"]


@pytest.mark.parametrize(
  "settings, count",
  [
    ({}, 743_616),
    ({"fixed_prompts": "winclip"}, 743_616),
    ({"num_class_tokens": 2}, 3_072 + 147_648 + 193 * 1_536),
  ],
)
def test_parameter_count_at_full_size(settings, count):
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  method = tcp.Method(**settings)
  params, stats = jax.eval_shape(
    lambda: method.init(jax.random.key(0), backbone)
  )
  assert sum(x.size for x in jax.tree.leaves(params)) == count
  assert not stats


def test_written_prompts():
  assert tcp.Method().written_prompts("metal_nut") == [
    ["This is a photo of metal nut."],
    ["This is a photo of damaged metal nut."],
  ]
  variant = tcp.Method(fixed_prompts="winclip")
  normal, anomalous = variant.written_prompts("metal_nut")
  assert (len(normal), len(anomalous)) == (154, 88)
  assert "a photo of the damaged metal nut." in anomalous


@pytest.fixture(scope="module")
def given(small_clip):
  """Large parameters, and the arranged prompts."""
  params = numpy_reference.initial(SMALL, small_clip)
  params = jax.tree.map(lambda x: 5 * x, params)
  return params, jax.jit(
    lambda backbone: jax.tree.map(
      jnp.asarray, SMALL.prepare(backbone, NAMES)["prompts"]
    )
  )(small_clip)


@pytest.mark.slow
def test_class_tokens_replace_the_context_at_a_block(small_clip, given):
  params, prompts = given
  rng = np.random.default_rng(0)
  fixed = numpy_reference.unit(rng.normal(size=(2, 2, 32))).astype(np.float32)
  aux = {"fixed_units": jnp.asarray(fixed), "prompts": prompts}
  run = jax.jit(
    lambda method, params, backbone, aux, class_id: method.text(
      params, backbone, aux, class_id
    ),
    static_argnums=0,
  )
  given = params, small_clip, aux, jnp.array([1])
  ours = run(SMALL, *given)
  # One prompt alone, with tokens by hand.
  first, second = (
    jax.tree.map(np.asarray, params["meta_net"][f"linear{i}"]) for i in (1, 2)
  )
  hidden = fixed[1, 1] @ first["kernel"] + first["bias"]
  hidden = hidden / (1 + np.exp(-1.702 * hidden))
  tokens = (hidden @ second["kernel"] + second["bias"]).reshape(4, 64)
  ids, end = small_clip.tokenize(["X X damaged pcb."])
  embeds = np.array(small_clip.embed_tokens(ids))
  embeds[0, 1:3] = params["context"]
  expected = numpy_reference.text(
    small_clip, jnp.asarray(embeds), end, {SMALL.class_token_block: tokens}
  )
  np.testing.assert_allclose(ours[0, 1], expected[0], rtol=1e-4, atol=1e-5)
  # Without weight the class tokens change nothing.
  none = dataclasses.replace(SMALL, class_token_weight=0.0)
  other = {**aux, "fixed_units": 2 * aux["fixed_units"]}
  np.testing.assert_allclose(
    run(none, *given),
    run(none, params, small_clip, other, given[-1]),
    atol=1e-6,
  )
  assert np.abs(ours - run(none, *given)).max() > 1e-2


def test_the_distance_is_of_all_classes(monkeypatch):
  rng = np.random.default_rng(0)
  text, fixed = (jnp.asarray(rng.normal(size=(3, 2, 8)), "f4") for _ in "ab")
  fixed = jnp.asarray(numpy_reference.unit(fixed), "f4")
  monkeypatch.setattr(tcp.Method, "text", lambda *given: text[given[-1]])
  sizes = config.MODELS["ViT-L-14-336"]
  backbone = clip.Clip({"logit_scale": jnp.zeros(())}, sizes)
  features = {
    "class_unit": jnp.asarray(
      numpy_reference.unit(rng.normal(size=(2, 8))), "f4"
    ),
    "patch_units": jnp.zeros((2, 4, 8)),
    "class_id": jnp.array([2, 2]),
  }
  batch = {"label": jnp.array([0, 1]), "weight": jnp.ones(2)}
  _, (parts, _) = SMALL.loss(
    {}, {}, backbone, {"fixed_units": fixed}, features, batch, None
  )
  none = dataclasses.replace(SMALL, fixed_weight=0.0)
  _, (others, _) = none.loss(
    {}, {}, backbone, {"fixed_units": fixed}, features, batch, None
  )
  assert set(parts) == {*others, "fixed_text"}
  cosines = (numpy_reference.unit(text) * np.asarray(fixed)).sum(axis=-1)
  np.testing.assert_allclose(
    parts["fixed_text"], 8 * (1 - cosines.mean()), rtol=1e-5
  )
