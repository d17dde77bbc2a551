"""AdaptCLIP: its arithmetic by hand, and which number each flag changes.

Its numbers are judged by the reference tensors in parity_test.py, its layers
in adapters_test.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from tests.helpers import image_only, numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import (
  fused_heads,
  prompt_query,
  prompts,
  score_fusion,
  textual_adapter,
)
from zsad_jax.methods import adaptclip
from zsad_jax.runs import run as run_lib

SMALL = adaptclip.Method(
  feature_layers=(2, 3), vv_from=2, head_widths=(4, 3), pool_topk=3, sigma=2.0
)
NOTHING = dict(visual=False, textual=False, prompt_query=False)
TAU = 0.07
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def changed(**changes):
  return dataclasses.replace(SMALL, **changes)


def alone(**adapters):
  """The method with these adapters only."""
  return changed(**{**NOTHING, **adapters})


def init(method, backbone):
  """Shapes of parameters and statistics."""
  return jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))


@pytest.fixture(scope="module")
def model(small_clip):
  """Random parameters and running statistics, none at its default."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    offset = {"scale": 1.0, "var": 1.0}.get(path[-1].key, 0.0)
    value = offset + 0.3 * rng.uniform(-1, 1, x.shape)
    return jnp.asarray(value, x.dtype)

  return jax.tree_util.tree_map_with_path(draw, init(SMALL, small_clip))


@pytest.fixture(scope="module")
def aux(small_clip):
  return SMALL.prepare(small_clip, ["never used"])


@pytest.fixture(scope="module")
def batch():
  return numpy_reference.batch(3)


@pytest.fixture(scope="module")
def encoded(small_clip, batch):
  """Features with three settings, and plain CLIP's patches per layer."""

  @jax.jit
  def both(backbone, image):
    _, out = backbone.image(image, activation="quick")
    projected = [
      backbone.project(out[f"block{layer:02d}"], ln_post=True)[:, 1:]
      for layer in (1, 2, 3)
    ]
    encode = lambda method: method.encode(backbone, {"image": image})
    return {
      "ours": encode(SMALL),
      "plain": encode(changed(vv_from=None)),
      "alias": encode(changed(feature_layers=(1, 3), alias_feature_layer=True)),
      "clip": jnp.stack(projected, axis=1),
    }

  return both(small_clip, batch["image"])


@pytest.fixture(scope="module")
def features(encoded):
  """Features with two references per image: other rows, flipped."""
  ours = encoded["ours"]
  patches = ours["patch_units"][..., ::-1]
  order = jnp.array([[1, 2], [2, 0], [0, 1]])
  memory = SMALL.build_memory_bank({"patch_units": patches[order]})
  return {**ours, "memory_bank": memory}


def without_memory(features):
  return {k: x for k, x in features.items() if k != "memory_bank"}


@functools.partial(jax.jit, static_argnums=0)
def run(method, params, old, backbone, aux, features):
  """Branches and prediction."""
  given = params, old, backbone, aux, features
  found, _ = method.branches(*given, None)
  return found, method.predict(*given)


@functools.partial(jax.jit, static_argnums=0)
def compare(method, params, old, features, weight):
  """Levels and new statistics."""
  return method.compare(params, old, features, (32, 32), weight)


@functools.partial(jax.jit, static_argnums=0)
def text(method, params, backbone, aux):
  given = params["textual"], backbone, aux
  return textual_adapter.text(*given, method.activation)


@pytest.fixture(scope="module")
def official(model, small_clip, aux, features):
  """Branches, levels, prediction; one program, to compile less."""

  @jax.jit
  def all_three(params, old, backbone, aux, features):
    given = params, old, backbone, aux, features
    found, _ = SMALL.branches(*given, None)
    levels, _ = SMALL.compare(params, old, features, (32, 32), None)
    return found, levels, SMALL.predict(*given)

  return all_three(*model, small_clip, aux, features)


def against(image, patches, units):
  """Logits of images and probabilities of patches against two states."""
  logits = numpy_reference.unit(image) @ np.asarray(units).T / TAU
  cosines = numpy_reference.unit(patches) @ np.asarray(units).T
  return logits, numpy_reference.softmax(cosines / TAU)


def adapted(model, features, name, training=False):
  """Output of the visual adapter for the image or all tokens, by hand."""
  params, old = (part["visual"][name] for part in model)
  x = np.asarray(features[{"global": "image", "local": "tokens"}[name]])
  hidden = x @ np.asarray(params["down"]["kernel"])
  mean, var = old["norm"]["mean"], old["norm"]["var"]
  if training:  # Of the batch, the class tokens included.
    rows = hidden.reshape(-1, hidden.shape[-1])
    mean, var = rows.mean(axis=0), rows.var(axis=0)
  normed = (hidden - mean) / np.sqrt(var + 1e-5) * params["norm"]["scale"]
  normed = np.maximum(normed + params["norm"]["bias"], 0)
  return x + normed @ np.asarray(params["up"]["kernel"])


def by_visual(model, features, units, **options):
  """The visual adapter's logits and probabilities."""
  image, tokens = (
    adapted(model, features, name, **options) for name in ("global", "local")
  )
  return against(image, tokens[:, 1:], units)


def test_both_branches_by_hand(model, small_clip, aux, features, official):
  found, *_ = official
  assert set(found) == {"visual", "textual"}
  learned = numpy_reference.unit(text(SMALL, model[0], small_clip, aux))
  image, tokens = features["image"], features["tokens"][:, 1:]
  for name, expected in (
    ("visual", by_visual(model, features, aux["static_units"])),
    ("textual", against(image, tokens, learned)),
  ):
    for ours, theirs in zip(found[name], expected):
      close(ours, theirs, rtol=1e-3)


def test_joint_compares_adapted_tokens_with_learned_text(
  model, small_clip, aux, features
):
  method, zero_shot = changed(joint=True), without_memory(features)
  found, _ = run(method, *model, small_clip, aux, zero_shot)
  assert set(found) == {"joint"}
  learned = numpy_reference.unit(text(SMALL, model[0], small_clip, aux))
  expected = by_visual(model, features, learned)
  for ours, theirs in zip(found["joint"], expected):
    close(ours, theirs, rtol=1e-3)


def test_without_adapters_it_is_clip(small_clip, aux, features):
  method = alone()
  assert init(method, small_clip) == ({}, {})
  found, prediction = run(method, {}, {}, small_clip, aux, features)
  logits, prob = against(
    features["image"], features["tokens"][:, 1:], aux["static_units"]
  )
  close(found["clip"][0], logits, rtol=1e-3)
  close(found["clip"][1], prob)
  maps = numpy_reference.to_map(prob[..., 1])
  close(prediction["anomaly_map"], maps)
  peaks = [ndimage.gaussian_filter(m, 2.0).max() for m in maps]
  scores = numpy_reference.softmax(logits)[:, 1]
  close(prediction["pred_score"], (scores + peaks) / 2)


MAPS = np.random.default_rng(1).random((4, 2, 20, 20)).astype(np.float32)
SCORES = np.random.default_rng(2).random((3, 2)).astype(np.float32)


@pytest.mark.parametrize("few_shot", [False, True])
@pytest.mark.parametrize("fusion", ["official", "paper"])
def test_fusion_by_hand(fusion, few_shot):
  number = 3 if few_shot else 2
  maps, scores = list(MAPS[:number]), list(SCORES[:number])
  distance = MAPS[3] if few_shot else None
  fuse = jax.jit(functools.partial(score_fusion.fuse, mode=fusion, sigma=2.0))
  ours = fuse([*map(jnp.asarray, maps)], [*map(jnp.asarray, scores)], distance)
  anomaly_map, score = np.mean(maps, axis=0), np.mean(scores, axis=0)
  if fusion == "official":
    if few_shot:
      anomaly_map = stats.hmean([anomaly_map, distance])
    peak = [ndimage.gaussian_filter(m, 2.0).max() for m in anomaly_map]
    if few_shot:
      score = stats.hmean([score, peak])
    else:
      score = np.mean([*scores, peak], axis=0)
  close(ours["anomaly_map"], anomaly_map)
  close(ours["pred_score"], score)


def test_prediction_fuses_all_adapters(official):
  found, levels, prediction = official
  maps = [
    numpy_reference.to_map(np.asarray(p)[..., 1]) for _, p in found.values()
  ]
  maps.append(np.mean([x["maps"][..., 1] for x in levels], axis=0))
  positive = lambda x: numpy_reference.softmax(np.asarray(x))[:, 1]
  scores = [positive(x) for x, _ in found.values()]
  scores.append(np.mean([positive(x["logits"]) for x in levels], axis=0))
  distance = stats.hmean([np.asarray(x["distance"]) for x in levels])
  anomaly_map = stats.hmean([np.mean(maps, axis=0), distance])
  close(prediction["anomaly_map"], anomaly_map)
  peaks = [ndimage.gaussian_filter(m, 2.0).max() for m in anomaly_map]
  score = stats.hmean([np.mean(scores, axis=0), peaks])
  close(prediction["pred_score"], score)


def test_distance_is_the_least_of_all_references(features, official):
  _, levels, _ = official
  query, bank = np.asarray(features["patch_units"]), features["memory_bank"]
  for i, level in enumerate(levels):
    nearest = [
      1 - (q[i] @ np.asarray(r[:, i]).reshape(32, -1).T).max(axis=-1)
      for q, r in zip(query, bank)
    ]
    close(level["distance"], numpy_reference.to_map(np.stack(nearest)))


def test_plain_clip_patches(encoded):
  close(
    encoded["plain"]["patch_units"],
    numpy_reference.unit(encoded["clip"][:, 1:]),
  )
  plain = np.asarray(encoded["plain"]["patch_units"])
  ours = np.asarray(encoded["ours"]["patch_units"])
  assert (np.abs(ours - plain).max(axis=(0, 2, 3)) > 1e-2).all()


def test_aliased_layer_reads_the_last_one(encoded):
  last = encoded["ours"]["patch_units"][:, 1]
  for level in (0, 1):
    close(encoded["alias"]["patch_units"][:, level], last)
  first = numpy_reference.unit(
    encoded["clip"][:, 0]
  )  # What would be read else.
  assert np.abs(last - first).max() > 1e-2


@pytest.mark.parametrize("topk", [1, 3])
def test_pooling_is_mean_and_largest(model, topk):
  params, old = (x["prompt_query"]["global"]["0"] for x in model)
  rng = np.random.default_rng(3)
  x = rng.normal(size=(3, 16, 32)).astype(np.float32)
  before = rng.normal(size=(2, 32)).astype(np.float32)
  before = dict(zip(("scale", "bias"), before))
  ours, _ = jax.jit(
    lambda p, s, x: prompt_query.global_head(
      p, s, fused_heads.pool(x, before, topk=topk), weight=None
    )
  )(params, old, x)
  x = before["scale"] * x + before["bias"]  # Some scales are negative.
  largest = np.sort(x, axis=1)[:, -topk:].mean(axis=1)
  y = (x.mean(axis=1) + largest) / 2
  for k in (1, 2):
    y = y @ np.asarray(params[f"fc{k}"]["kernel"])
    norm, kept = params[f"norm{k}"], old[f"norm{k}"]
    y = (y - kept["mean"]) / np.sqrt(kept["var"] + 1e-5) * norm["scale"]
    y = np.maximum(y + norm["bias"], 0)
  close(ours, y @ np.asarray(params["out"]["kernel"]))


def test_context_is_the_query_itself():
  query, aligned = np.random.default_rng(4).normal(size=(2, 1, 5, 3))
  residual = np.abs(query - aligned)
  args = jnp.asarray(query, "float32"), jnp.asarray(aligned, "float32")
  close(prompt_query.joint(*args, context=False), residual)
  close(prompt_query.joint(*args, context=True), query + residual)


def test_flags_reach_the_prompt_query_adapter(model, features, official):
  """Context, pooling: each changes what it should of the levels."""
  first = {  # Of the levels alone, to compile less.
    "patch_units": features["patch_units"][:, :1],
    "memory_bank": features["memory_bank"][:, :, :1],
  }
  theirs = official[1][0]
  for changes, maps in ((dict(context=False), 1), (dict(pool_topk=1), 0)):
    (ours,), _ = compare(changed(**changes), *model, first, None)
    close(ours["distance"], theirs["distance"])
    assert np.abs(ours["logits"] - theirs["logits"]).max() > 1e-3
    assert (np.abs(ours["maps"] - theirs["maps"]).max() > 1e-3) == maps


def test_fewer_patches_than_are_pooled_are_refused(model, features):
  with pytest.raises(ValueError, match="pool_topk is 99, .* has 16 patches"):
    compare(changed(pool_topk=99), *model, features, None)


def test_loss_by_hand(model, small_clip, aux, features, batch, official):
  """Every term has weight 1, every level counts; the third has no mask."""
  batch = {**batch, "has_mask": jnp.array([True, True, False])}
  params, old = model

  @jax.jit
  def both(params, old, backbone, aux, features, batch):
    given = params, old, backbone, aux, features
    _, (parts, new) = SMALL.loss(*given, batch, None)
    levels, _ = SMALL.compare(params, old, features, (32, 32), batch["weight"])
    return parts, new, levels

  parts, new, levels = both(params, old, small_clip, aux, features, batch)
  found = {
    "visual": by_visual(model, features, aux["static_units"], training=True),
    "textual": official[0]["textual"],
  }
  said = {
    name: [(x, numpy_reference.to_map(np.asarray(p)[..., 1]))]
    for name, (x, p) in found.items()
  }
  said["prompt_query"] = [(x["logits"], x["maps"][..., 1]) for x in levels]
  for name, pairs in said.items():
    image = sum(
      numpy_reference.cross_entropy(x, batch["label"]) for x, _ in pairs
    )
    close(parts[f"{name}_global"], image.mean())
    pixel = 0
    for _, maps in pairs:
      states = np.stack([1 - maps, maps], axis=-1)[:2]
      pixel += sum(numpy_reference.segmentation(states, batch["mask"][:2]))
    close(parts[f"{name}_local"], pixel.mean())
  assert len(parts) == 6
  # Both levels go through the one pair of heads.
  head = lambda x: x["prompt_query"]["local"]["0"]["norm1"]["count"]
  assert head(new) - head(old) == 2


ADAPTERS = {
  "visual": (dict(visual=True), {"visual"}, {"visual"}),
  "textual": (dict(textual=True), {"textual"}, {"textual"}),
  "prompt_query": (dict(prompt_query=True), {"prompt_query"}, {"prompt_query"}),
  "joint": (
    dict(visual=True, textual=True, joint=True),
    {"visual", "textual"},
    {"joint"},
  ),
  "none": ({}, set(), {"clip"}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_adapter_alone_has_its_parameters_and_losses(
  small_clip, aux, features, batch, name
):
  adapters, kept, terms = ADAPTERS[name]
  method = alone(**adapters)
  params, old = init(method, small_clip)
  assert set(params) == kept and set(old) == kept - {"textual"}
  assert method.num_references == ("prompt_query" in kept)
  _, (parts, _) = jax.eval_shape(
    lambda *given: method.loss(*given, batch, None),
    *(params, old, small_clip, aux, features),
  )
  kinds = ("global", "local")
  assert set(parts) == {f"{term}_{kind}" for term in terms for kind in kinds}


def test_prompt_query_alone_needs_references(model, small_clip, aux, features):
  method = alone(prompt_query=True)
  predict = functools.partial(jax.eval_shape, method.predict)
  given = *model, small_clip, aux
  found = predict(*given, features)
  assert found["anomaly_map"].shape == (3, 32, 32)
  with pytest.raises(ValueError, match="needs references"):
    predict(*given, without_memory(features))


def test_wrong_choices_are_errors():
  with pytest.raises(ValueError, match="config.method.fusion.*'mean'"):
    run_lib.make_method("adaptclip", {"fusion": "mean"})
  for missing in ("visual", "textual"):
    with pytest.raises(ValueError, match="config.method.joint"):
      changed(joint=True, **{missing: False})


def test_learned_prompts(small_clip, aux):
  np.testing.assert_array_equal(aux["end"], [14, 14])
  ids = np.array([[49406, *[343] * 12, 269, 49407]] * 2)
  table = np.asarray(small_clip.params["text"]["token_embedding"])
  np.testing.assert_array_equal(aux["embeds"], table[ids])


def test_learned_vectors_replace_the_placeholders(model, aux):
  ours = np.asarray(textual_adapter.learned_prompts(model[0]["textual"], aux))
  for i, state in enumerate(("normal", "anomalous")):
    vectors = model[0]["textual"][state]
    np.testing.assert_array_equal(ours[i, 1:13], vectors)
  np.testing.assert_array_equal(
    ours[:, [0, 13, 14]], np.asarray(aux["embeds"])[:, [0, 13, 14]]
  )


def test_learned_text_by_hand_on_the_whole_context(model, small_clip, aux):
  """No deep tokens; 77 tokens and few give the same."""
  pad = np.asarray(small_clip.params["text"]["token_embedding"])[0]
  short = textual_adapter.learned_prompts(model[0]["textual"], aux)
  k, t, c = short.shape
  padding = np.broadcast_to(pad, (k, 77 - t, c))
  whole = jnp.asarray(np.concatenate([short, padding], axis=1))
  expected = jax.jit(
    lambda backbone, x: numpy_reference.text(backbone, x, aux["end"], {})
  )(small_clip, whole)
  ours = text(SMALL, model[0], small_clip, aux)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_fixed_prompts(small_clip, aux):
  normal, anomalous = prompts.adaptclip()
  assert (len(normal), len(anomalous)) == (7 * 21, 4 * 21)
  assert (len(set(normal)), len(set(anomalous))) == (7 * 20, 4 * 20)
  assert normal.count("a jpeg corrupted photo of the flawless object.") == 2
  assert "a photo of a object with damage for anomaly detection." in anomalous
  assert not any("broken" in x for x in anomalous)
  # The mean of the embeddings as they are, duplicates included.
  ids, end = small_clip.tokenize(normal + anomalous)
  embeds, _ = jax.jit(
    lambda x, end: small_clip.text(x, end, activation="quick")
  )(small_clip.embed_tokens(ids), end)
  for unit, some in zip(aux["static_units"], np.split(np.array(embeds), [147])):
    close(unit, numpy_reference.unit(some.mean(axis=0)))


def test_parameter_counts_at_full_size():
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  params, _ = init(adaptclip.Method(), backbone)
  assert count(params["textual"]) == 18_432
  assert count(params["visual"]) == 590_592
  assert count(params) == 1_763_266  # 1.8 M in the paper.
  own, _ = init(adaptclip.Method(share_heads=False), backbone)
  assert [len(own["prompt_query"][k]) for k in ("local", "global")] == [4, 4]
  assert 5.15e6 < count(own) < 5.25e6
  smaller = clip.Clip({}, config.MODELS["ViT-B-16-plus-240"])
  assert count(init(adaptclip.Method(), smaller)[0]) == 1_414_978


def test_prompt_query_alone_needs_no_text(small_clip, batch):
  backbone = image_only.ImageOnly(small_clip)
  method = alone(prompt_query=True)
  params, old = init(method, backbone)
  assert set(params) == {"prompt_query"}
  assert method.prepare(backbone, ["nut"]) == {}

  def run(params, old, image):
    features = method.encode(backbone, {"image": image})
    references = jax.tree.map(lambda x: x[:, None], features)
    features["memory_bank"] = method.build_memory_bank(references)
    return method.predict(params, old, backbone, {}, features)

  found = jax.eval_shape(run, params, old, batch["image"])
  assert found["anomaly_map"].shape == batch["image"].shape[:3]
  for name in ("visual", "textual"):
    with pytest.raises(ValueError, match="no text encoder"):
      alone(**{name: True}).prepare(backbone, ["nut"])
