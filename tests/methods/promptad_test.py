"""PromptAD: its losses and prediction by hand, prompts, parameter counts.

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
from zsad_jax.layers import category_prompts, defect_phrases
from zsad_jax.methods import promptad
from zsad_jax.runs import run as run_lib

SMALL = promptad.Method(context_length=2, feature_layers=(1, 2), score_side=40)
NAMES = ["capsule", "gear"]  # 13 and 8 phrases for anomalies.
FULL = config.ClipConfig(
  embed_dim=640,
  image_size=240,
  patch_size=16,
  vision_width=896,
  vision_layers=12,
  text_width=640,
  text_layers=12,
)


@pytest.mark.parametrize(("branch", "count"), [("seg", 5120), ("cls", 10240)])
def test_parameters_at_full_size(branch, count):
  method = promptad.Method(**promptad.branch_settings(branch))
  backbone = clip.Clip({}, FULL)
  params, stats = jax.eval_shape(
    lambda key: method.init(key, backbone), jax.random.key(0)
  )
  assert run_lib.count_trained(method, params) == count and not stats


def random_text(names, method, seed=0):
  """Return embeddings of all prompts (b, s, 5), and the weights of groups."""
  count = max(len(defect_phrases.phrases(n)) for n in names)
  used = np.zeros((len(names), count + method.contexts.learned))
  used[:, -method.contexts.learned :] = 1
  for i, name in enumerate(names):
    used[i, : len(defect_phrases.phrases(name))] = 1
  size = (len(names), method.num_normal + used.shape[1], 5)
  rng = np.random.default_rng(seed)
  return rng.normal(size=size), used


def loss_by_hand(method, text, used, units, scale):
  """Return the three losses of one image with units (l, d)."""
  n, learned = method.num_normal, method.contexts.learned
  unit = numpy_reference.unit
  rows = text[n:][used > 0]
  a, mean = unit(text[:n].mean(0)), unit(rows.mean(0))
  logits = scale * units @ np.concatenate([a[None], unit(rows)]).T
  contrast = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
  axis = 0 if method.branch == "seg" and method.triplet == "tokens" else 1
  to = lambda x: np.square(units - x).sum(axis)
  triplet = np.maximum(to(a) - to(mean), 0).mean()
  gap = unit(rows[:-learned]).mean(0) - unit(rows[-learned:]).mean(0)
  return contrast, triplet, method.match_weight * np.square(gap).sum()


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"triplet": "features"},
    {"scale": "exp"},
    {"branch": "cls", "num_normal": 3},
  ],
  ids=str,
)
def test_losses_by_hand(settings, monkeypatch):
  method = dataclasses.replace(SMALL, **settings)
  text, used = random_text(NAMES, method)
  rng = np.random.default_rng(1)
  features = {
    "class_unit": numpy_reference.unit(rng.normal(size=(3, 5))),
    "patch_units": numpy_reference.unit(rng.normal(size=(3, 4, 5))),
    "class_id": np.array([0, 1, 1]),
  }
  arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (text, used))
  monkeypatch.setattr(
    promptad.Method, "text", lambda *given: arrays[0][given[-1]]
  )
  backbone = clip.Clip({"logit_scale": jnp.float32(np.log(10.0))}, FULL)
  as_float = lambda x: jnp.asarray(x, "float32" if x.ndim > 1 else "int32")
  weight = np.array([1.0, 1.0, 0.0])  # The last one is padding.
  given = jax.tree.map(as_float, features)
  batch = {"weight": jnp.asarray(weight, jnp.float32)}
  loss, (parts, _) = jax.jit(
    lambda aux, x: method.loss({}, {}, backbone, aux, x, batch, None)
  )({"used": arrays[1]}, given)
  scale = 10.0 if method.scale == "exp" else np.log(10.0)
  found = []
  for i, c in enumerate(features["class_id"][:2]):
    units = features["patch_units"][i]
    if method.branch == "cls":
      units = features["class_unit"][i : i + 1]
    found.append(loss_by_hand(method, text[c], used[c], units, scale))
  expected = np.mean(found, axis=0)
  values = [parts[k] for k in ("contrastive", "triplet", "match")]
  np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)
  assert expected[1] > 0  # The triplet loss is active.


@pytest.mark.parametrize("branch", ["seg", "cls"])
def test_prediction_by_hand(branch, monkeypatch):
  """Maps are 1 / (1 / t + 1 / v), scores those of the image or of the map."""
  method = dataclasses.replace(SMALL, branch=branch, score_side=2)
  text, used = random_text(["gear"], method)
  rng = np.random.default_rng(2)
  unit = lambda *s: numpy_reference.unit(rng.normal(size=s))
  features = {
    "class_unit": unit(1, 5),
    "patch_units": unit(1, 4, 5),
    "layer_units": unit(1, 2, 4, 6),
  }
  bank = unit(1, 3, 2, 4, 6)
  monkeypatch.setattr(
    promptad.Method, "text", lambda *_: jnp.asarray(text, jnp.float32)
  )
  scale = 2.0
  backbone = clip.Clip({"logit_scale": jnp.float32(scale)}, FULL)
  single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, "float32"), tree)
  given = {**single(features), "class_id": jnp.zeros(1, jnp.int32)}
  aux, stats = {"used": single(used)}, {"memory_bank": single(bank)}
  predict = jax.jit(lambda *x: method.predict({}, x[0], backbone, aux, x[1]))
  found = predict(stats, given)
  # A memory bank of the features replaces that of the statistics.
  other = {"memory_bank": 0.0 * stats["memory_bank"] + 1.0}
  again = {**given, "memory_bank": stats["memory_bank"]}
  again = predict(other, again)
  jax.tree.map(np.testing.assert_array_equal, found, again)

  anchors = category_prompts.anchors(single(text), single(used))[0]
  units = features["patch_units"][0]
  if branch == "cls":
    units = features["class_unit"]
  logits = scale * units @ np.asarray(anchors).T
  t = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
  cosines = [
    features["layer_units"][0, i] @ bank[0, :, i].reshape(-1, 6).T
    for i in range(2)
  ]
  v = np.mean([0.5 * (1 - c.max(axis=1)) for c in cosines], axis=0)
  value = 1 / (1 / t + 1 / (v.max() if branch == "cls" else v))
  np.testing.assert_allclose(found["pred_score"], [value.max()], rtol=1e-5)
  # The corners of the map are the patches.
  corners = np.asarray(found["anomaly_map"])[0][::31, ::31].ravel()
  expected = v if branch == "cls" else value
  np.testing.assert_allclose(corners, expected, rtol=1e-5)


@pytest.mark.slow  # The reference tensors are of two numbers of phrases, too.
def test_the_own_prompts_of_a_class_do_not_depend_on_other_classes(small_clip):
  """Groups of a class with fewer phrases are filled without effect."""
  params, _ = SMALL.init(jax.random.key(0), small_clip)
  text = jax.jit(SMALL.text)
  alone, both = (
    SMALL.prepare(small_clip, names) for names in (NAMES[1:], NAMES)
  )
  found = text(params, small_clip, alone, jnp.array([0]))
  mixed = text(params, small_clip, both, jnp.array([1]))
  every = text(params, small_clip, both, jnp.array([0, 1]))
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5)
  close(mixed, every[1:])
  anchors = lambda x, aux, i: category_prompts.anchors(x, aux["used"][i])
  close(anchors(mixed, both, jnp.array([1])), anchors(found, alone, np.s_[:1]))
  assert both["used"].sum(1).tolist() == [13 + 4, 8 + 4]


def test_prompts_pair_the_contexts_by_their_remainders(small_clip):
  """With 2 and 4 contexts only half of the pairs occur, as in the code."""
  contexts = category_prompts.Contexts(2, 3, 4, 1)
  *_, learned = contexts.symbols(small_clip, "metal_nut")
  vectors = [[-1 - x for x in row if x < 0] for row in learned]
  assert vectors == [
    [*range(r % 2 * 3, r % 2 * 3 + 3), 6 + r % 4] for r in range(8)
  ]
  normal, written, _ = contexts.prompts("macaroni1")
  assert normal == ["N N N macaroni."] * 2
  assert written[-1] == "N N N macaroni with cracks." and len(written) == 26


def test_a_layer_before_the_mlp_is_in_the_next_block(small_clip):
  method = dataclasses.replace(SMALL, feature_layers=(1, 3))
  image = {"image": jnp.zeros((1, 32, 32, 3)), "class_id": jnp.zeros(1, int)}
  with pytest.raises(ValueError, match="no layer 4"):
    method.encode(small_clip, image)
