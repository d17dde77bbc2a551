"""FAPrompt: its arithmetic by hand, and which number each flag changes.

Its numbers are judged by the reference tensors in parity_test.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.methods import faprompt
from zsad_jax.runs import run as run_lib

SMALL = faprompt.Method(
  feature_layer=3,
  vv_from=2,
  num_prompts=3,
  normal_length=3,
  abnormal_length=2,
  num_patches=4,
  deep_length=2,
  deep_depth=3,
)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def changed(**changes):
  return dataclasses.replace(SMALL, **changes)


@pytest.fixture(scope="module")
def params(small_clip):
  found = numpy_reference.initial(SMALL, small_clip)
  # Large vectors and a large prior, to see effects.
  prior = jax.tree.map(lambda x: 3 * x, found.pop("prior"))
  return jax.tree.map(lambda x: 10 * x, found) | {"prior": prior}


@pytest.fixture(scope="module")
def aux(small_clip):
  return SMALL.prepare(small_clip, ["never used"])


@pytest.fixture(scope="module")
def batch():
  return numpy_reference.batch(3)


@pytest.fixture(scope="module")
def features(small_clip, batch):
  return jax.jit(SMALL.encode)(small_clip, batch)


@functools.partial(jax.jit, static_argnums=0)
def forward(method, params, backbone, aux, features):
  result = method.forward(params, backbone, aux, features)
  return result, method.to_prediction(result, (32, 32))


@functools.partial(jax.jit, static_argnums=0)
def parts(method, result, batch):
  return method.parts(result, batch)


@functools.partial(jax.jit, static_argnums=0)
def text(method, params, backbone, prompts, end):
  return method.text(params, backbone, prompts, end)


@pytest.fixture(scope="module")
def official(params, small_clip, aux, features):
  return forward(SMALL, params, small_clip, aux, features)


@pytest.fixture(scope="module")
def topk(params, small_clip, aux, features):
  method = changed(prior_select="topk", max_weights=(1.0, 1.0))
  return forward(method, params, small_clip, aux, features)


def by_state(features, normal, abnormal):
  """Probabilities of patches, logits of images against two prototypes."""
  units = numpy_reference.unit([normal, np.mean(abnormal, axis=0)])
  patches = np.asarray(features["patch_units"], np.float64)
  image = np.asarray(features["class_unit"], np.float64)
  return numpy_reference.softmax(
    patches @ units.T / 0.07
  ), image @ units.T / 0.07


@pytest.mark.parametrize(
  "select, weights", [("first", (2 / 3, 1 / 3)), ("topk", (0.5, 0.5))]
)
def test_both_passes_by_hand(request, params, features, select, weights):
  fixture = {"first": "official", "topk": "topk"}[select]
  result, prediction = request.getfixturevalue(fixture)
  normal, abnormal = result["normal_text"][0], result["abnormal_text"]
  first, _ = by_state(features, normal, abnormal)
  close(result["patch_prob"], first)
  for i in range(3):
    patches = np.asarray(features["patch_units"])[i]
    order = np.arange(16)
    if select == "topk":
      order = np.argsort(-first[i, :, 1])
      assert set(order[:4]) != {0, 1, 2, 3}
    close(result["selected"][i], patches[order[:4]])
    one, two = params["prior"]["1"], params["prior"]["2"]
    hidden = patches[order[:4]].reshape(-1) @ one["kernel"] + one["bias"]
    prior = np.maximum(hidden, 0) @ two["kernel"] + two["bias"]
    close(result["prior"][i], prior)
    second, logits = by_state(features, normal, result["refined_text"][i])
    close(result["refined_prob"][i], second[i])
    close(result["image_logits"][i], logits[i], rtol=1e-3)
    maxima = first[i, :, 1].max(), second[i, :, 1].max()
    probability = numpy_reference.softmax(logits[i])[1]
    score = 0.5 * (probability + np.dot(weights, maxima))
    close(prediction["pred_score"][i], score)
    mean = 0.5 * (first[i] + second[i])[:, 1]
    close(prediction["anomaly_map"][i], numpy_reference.to_map(mean[None])[0])


def test_the_prior_enters_the_own_vectors_of_its_image(
  params, small_clip, aux, official
):
  result, _ = official
  prompts = np.array(SMALL.prompts(params, aux)[1])
  end = jnp.full(3, aux["end"][1])
  ours = text(SMALL, params, small_clip, jnp.asarray(prompts), end)
  close(ours, result["abnormal_text"])
  prompts[:, 4:6] += np.asarray(result["prior"][1])
  ours = text(SMALL, params, small_clip, jnp.asarray(prompts), end)
  close(ours, result["refined_text"][1])
  assert np.abs(ours - result["refined_text"][0]).max() > 1e-3


def test_prompts_are_shared_normal_and_own_vectors(params, aux):
  normal, abnormal = map(np.asarray, SMALL.prompts(params, aux))
  context = params["context"]
  np.testing.assert_array_equal(normal[0, 1:4], context["normal"])
  for k in range(3):
    np.testing.assert_array_equal(abnormal[k, 1:4], context["normal"])
    np.testing.assert_array_equal(abnormal[k, 4:6], context["anomalous"][k])
    np.testing.assert_array_equal(abnormal[k, 6:], aux["embeds"][1, 6:])
  np.testing.assert_array_equal(normal[0, 4:], aux["embeds"][0, 4:])


def test_without_prior_the_passes_are_one(
  params, small_clip, aux, features, batch, official
):
  method = changed(prior=False, oc_weight=0.0)
  fewer = {k: x for k, x in params.items() if k != "prior"}
  made = jax.eval_shape(lambda: method.init(jax.random.key(0), small_clip)[0])
  assert set(made) == set(fewer)
  result, _ = forward(method, fewer, small_clip, aux, features)
  close(result["patch_prob"], official[0]["patch_prob"])
  close(result["refined_prob"], result["patch_prob"])
  for refined in result["refined_text"]:
    close(refined, result["abnormal_text"])
  without = {"map1", "map2", "image_ce", "image_focal"}
  assert set(parts(method, result, batch)) == without


def test_loss_by_hand(official, batch):
  result, _ = official
  found = parts(SMALL, result, batch)
  names = ("map1", "map2", "image_ce", "image_focal", "orthogonality", "prior")
  assert set(found) == set(names)
  for name, prob, weight in (
    ("map1", result["patch_prob"], 1.0),
    ("map2", result["refined_prob"], 0.5),
  ):
    maps = numpy_reference.to_map(np.asarray(prob)[..., 1])
    states = np.stack([1 - maps, maps], axis=-1)
    terms = numpy_reference.segmentation(states, batch["mask"])
    close(found[name], weight * np.mean(sum(terms)))
  label, score = np.asarray(batch["label"]), np.asarray(result["score"])
  entropy = numpy_reference.cross_entropy(result["image_logits"], label)
  close(found["image_ce"], entropy.mean())
  e = np.log1p(np.exp(score)) - score * label  # The score is a logit here.
  close(found["image_focal"], np.mean((1 - np.exp(-e)) ** 2 * e))
  close(found["orthogonality"], 0.1 * pairs(result["abnormal_text"]))
  normal = np.asarray(result["prior"])[label == 0]
  close(found["prior"], sum(np.mean(p**2) for p in normal))


def pairs(text):
  """Sum of |cosine| over unordered pairs."""
  u = numpy_reference.unit(text)
  return sum(abs(u[k] @ u[m]) for k in range(len(u)) for m in range(k))


def test_flags_of_the_loss(official, batch):
  result, _ = official
  default = parts(SMALL, result, batch)
  ours = parts(
    changed(
      prior_reduce="sum",
      prior_weight=3.0,
      oc_weight=1.0,
      oc_ordered=True,
      map_weights=(1.0, 1.0),
      image_loss="paper",
    ),
    result,
    batch,
  )
  channels = result["prior"].shape[1]
  close(ours["prior"], 3 * channels * default["prior"])
  close(ours["orthogonality"], 20 * default["orthogonality"])
  close(ours["map1"], default["map1"])
  close(ours["map2"], 2 * default["map2"])
  # One focal loss, of the score as a probability.
  assert "image_ce" not in ours
  label, score = np.asarray(batch["label"]), np.asarray(result["score"])
  right = np.where(label, score, 1 - score)
  close(ours["image_focal"], np.mean(-((1 - right) ** 2) * np.log(right)))


def test_padding_and_images_without_masks_enter_no_term(official, batch):
  result, _ = official
  weight = jnp.array([1.0, 1.0, 0.0])
  padded = parts(SMALL, result, {**batch, "weight": weight})
  two = {"abnormal_text", "normal_text", "text_units"}
  first = {k: x if k in two else x[:2] for k, x in result.items()}
  few = parts(SMALL, first, {k: x[:2] for k, x in batch.items()})
  for name in few:
    close(padded[name], few[name])
  unknown = {**batch, "has_mask": jnp.zeros(3, bool)}
  maps = [parts(SMALL, result, unknown)[f"map{i}"] for i in (1, 2)]
  assert maps == [0, 0]


def test_rounding_is_that_of_the_deep_tokens(params, small_clip, aux):
  half = lambda x: jnp.asarray(np.asarray(x).astype(np.float16), jnp.float32)
  rounded = {**params, "deep": jax.tree.map(half, params["deep"])}
  prompts, end = SMALL.prompts(params, aux)[1], jnp.full(3, aux["end"][1])
  exact = changed(round_fp16=False)
  ours = text(SMALL, params, small_clip, prompts, end)
  np.testing.assert_allclose(  # GPUs fuse the two programs differently.
    ours, text(exact, rounded, small_clip, prompts, end), atol=2e-6
  )
  unrounded = text(exact, params, small_clip, prompts, end)
  assert 1e-6 < np.abs(ours - unrounded).max() < 1e-2


def test_cutting_the_padding_changes_nothing(params, small_clip, aux):
  pad = np.asarray(small_clip.params["text"]["token_embedding"])[0]
  prompts, end = SMALL.prompts(params, aux)[1], jnp.full(3, aux["end"][1])
  k, t, c = prompts.shape
  padding = np.broadcast_to(pad, (k, 77 - t, c))
  whole = jnp.asarray(np.concatenate([prompts, padding], axis=1))
  np.testing.assert_allclose(
    text(SMALL, params, small_clip, prompts, end),
    text(SMALL, params, small_clip, whole, end),
    atol=1e-5,
  )


@pytest.mark.parametrize("damaged_word", [True, False])
def test_prompts_and_end_positions(small_clip, damaged_word):
  method = faprompt.Method(damaged_word=damaged_word)
  aux = method.prepare(small_clip, [])
  start, end, n, a, pad = 49406, 49407, 333, 320, 0
  damaged, rest = [13568] * damaged_word, [14115, 269, end]
  normal, abnormal = [start, *[n] * 5], [start, *[n] * 5, a, a, *damaged]
  np.testing.assert_array_equal(aux["end"], [8, 10 + damaged_word])
  ids = [normal + rest, abnormal + rest]
  ids[0] += [pad] * (len(ids[1]) - len(ids[0]))
  table = np.asarray(small_clip.params["text"]["token_embedding"])
  np.testing.assert_array_equal(aux["embeds"], table[np.array(ids)])


def test_parameter_count_at_full_size():
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  params, stats = jax.eval_shape(
    lambda: faprompt.Method().init(jax.random.key(0), backbone)
  )
  # The published 9,612,256 without 5,512,192 that are never used.
  assert sum(x.size for x in jax.tree.leaves(params)) == 4_100_064
  assert not stats and params["prior"]["1"]["kernel"].shape == (7680, 480)


@pytest.mark.parametrize(
  "field", ["prior_select", "prior_reduce", "image_loss"]
)
def test_unknown_choices_are_errors(field):
  with pytest.raises(ValueError, match=f"config.method.{field}.*'best'"):
    run_lib.make_method("faprompt", {field: "best"})
