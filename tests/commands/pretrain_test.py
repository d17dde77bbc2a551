"""Tests of pretraining: images, captions, batches, loss, command."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_clip
from tests.helpers import small_run
from zsad_jax import backbones, pretrain
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import model, tokenizer
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.datasets.synthetic import (
  benchmark,
  defects,
  invented,
  invented_objects,
  invented_textures,
)
from zsad_jax.datasets.synthetic.canvas import Flaw
from zsad_jax.pretraining import batches, captions, objective, synthetic_pairs
from zsad_jax.runs import checkpoint

SIZES = ClipConfig(
  embed_dim=32,
  image_size=64,
  patch_size=8,
  vision_width=64,
  vision_layers=2,
  text_width=64,
  text_layers=1,
)
PAIRS, HELD_OUT = 48, 16
FACTS = captions.Facts("disc", "metal", "red", True, "scratch")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pairs(cache):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(synthetic_pairs, "PAIRS_PER_FILE", PAIRS)
    return synthetic_pairs.ensure(cache, PAIRS, size=64, seed=0)


# ---- Families.


def test_families_for_pretraining_training_and_testing_are_disjoint():
  pretraining = set(captions.NOUNS)
  train, test = benchmark.TRAIN_CATEGORIES, benchmark.TEST_CATEGORIES
  assert len(pretraining) == 22
  assert not pretraining & {*train, *test} and not set(train) & set(test)
  generated = {
    getattr(family.draw, "func", family.draw)
    for family in benchmark.FAMILIES.values()
  }
  others = {
    *invented_textures.FAMILIES.values(),
    *invented_objects.FAMILIES.values(),
  }
  assert not generated & {getattr(f.draw, "func", f.draw) for f in others}


def test_every_generated_defect_has_phrases():
  generated = {
    defect
    for families in (invented_objects.FAMILIES, invented_textures.FAMILIES)
    for family in families.values()
    for defect in (*family.overlays, *family.structural)
  }
  assert generated == set(captions.DEFECTS)
  assert set(defects.OVERLAYS) <= generated


@pytest.mark.parametrize("noun", captions.NOUNS)
def test_designs_differ_and_are_reproducible(noun):
  source = invented_objects.FAMILIES | invented_textures.FAMILIES
  kinds = {noun: source[noun]}
  design = lambda seed: invented.invent(np.random.default_rng(seed), kinds)
  draw = lambda d: (
    d.family.draw(
      np.random.default_rng(5), 48, Flaw(None, np.random.default_rng(6))
    ).image
  )
  first = draw(design(0))
  assert np.array_equal(first, draw(design(0)))
  assert np.abs(first - draw(design(1))).mean() > 0.02
  assert np.isfinite(first).all() and first.shape == (48, 48, 3)


# ---- Pairs.


def test_both_images_of_a_pair_are_equal_outside_the_mask(pairs):
  normal, anomalous = np.moveaxis(pairs.images.astype(int), 1, 0)
  differs = np.abs(normal - anomalous).max(-1) > 0
  assert not (differs & ~pairs.masks).any()
  assert pairs.masks.any((1, 2)).all()
  assert {f.defect for f in pairs.facts} <= set(captions.DEFECTS)


def test_pairs_are_generated_once_and_stored_in_files(
  cache, pairs, monkeypatch
):
  monkeypatch.setattr(synthetic_pairs, "PAIRS_PER_FILE", PAIRS)
  monkeypatch.setattr(synthetic_pairs, "draw", None)
  again = synthetic_pairs.ensure(cache, 20, size=64, seed=0)
  np.testing.assert_array_equal(again.images, pairs.images[:20])
  np.testing.assert_array_equal(again.masks, pairs.masks[:20])
  assert again.facts == pairs.facts[:20]


def test_a_pair_depends_on_its_number_alone(pairs):
  images, mask, facts = synthetic_pairs.draw(17, size=64, seed=0)
  np.testing.assert_array_equal(images, pairs.images[17])
  np.testing.assert_array_equal(mask, pairs.masks[17])
  assert facts == pairs.facts[17]


# ---- Captions.


def test_captions_are_true_and_mention_a_fact():
  rng = np.random.default_rng(0)
  described = [captions.describe(rng, FACTS) for _ in range(200)]
  normal = batches.without_anomaly(FACTS)
  for caption in described:
    facts = dataclasses.asdict(caption.facts)
    mentioned = {k: v for k, v in facts.items() if v}
    assert mentioned and FACTS.match(caption.facts)
    for fact in ("noun", "color", "material"):
      assert (getattr(FACTS, fact) in caption.text) == (fact in mentioned)
    has_state = caption.facts.anomalous is not None
    assert normal.match(caption.facts) != has_state
  assert any(caption.facts.noun is None for caption in described)


def test_captions_of_other_facts_are_not_true():
  rng = np.random.default_rng(0)
  other = captions.Facts("plate", "wooden", "blue", False, "none")
  described = [captions.describe(rng, other) for _ in range(50)]
  truth = batches.truth([FACTS, other], described)
  assert not truth[0].any() and truth[1].all()


def test_unknown_words_are_one_untrained_token():
  known = set(captions.vocabulary().tolist())
  words = captions._unknown_words()
  ids = tokenizer.encode(words[::500])
  assert len(words) > 10_000
  assert (tokenizer.end_positions(ids) == 2).all()
  assert not known & set(ids[:, 1].tolist())


def test_the_vocabulary_covers_every_word_but_the_unknown():
  rng = np.random.default_rng(1)
  known = set(captions.vocabulary().tolist())
  unknown = set(captions._unknown_words())
  for _ in range(100):
    text = captions.describe(rng, FACTS).text
    words = [w for w in text.rstrip(".").split() if w not in unknown]
    assert set(tokenizer.encode([" ".join(words)]).ravel().tolist()) <= known


# ---- Batches.


def make(pairs, step, keep=None, pixels="openai"):
  return batches.make(
    pairs,
    step,
    batch_size=8,
    patch_size=8,
    pixels=pixels,
    keep=keep,
    states=2,
    seed=3,
  )


def test_a_batch_depends_on_its_step_alone(pairs):
  first, again, other = (make(pairs, step) for step in (4, 4, 5))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert np.abs(first["image"] - other["image"]).mean() > 0.1


def test_pixels_are_normalized_as_the_model_normalizes_them(pairs):
  openai, half = (make(pairs, 0, pixels=x)["image"] for x in ("openai", "half"))
  mean, std = (np.array(x) for x in clip_config.PIXELS["openai"])
  np.testing.assert_allclose(half, (openai * std + mean) * 2 - 1, atol=1e-6)


def test_an_epoch_has_every_pair_once(pairs):
  steps = batches.steps_per_epoch(pairs, 8)
  assert steps == PAIRS // 4
  found = [
    make(pairs, step)["anomalous_share"][4:].sum(1) for step in range(steps)
  ]
  shares = batches.patch_shares(pairs.masks, 8).sum(1)
  np.testing.assert_allclose(
    np.sort(np.concatenate(found)), np.sort(shares), rtol=1e-5
  )


def test_patch_shares_are_counts():
  mask = np.zeros((1, 4, 4), bool)
  mask[0, 0, 0] = mask[0, 2:, 2:] = True
  np.testing.assert_array_equal(
    batches.patch_shares(mask, 2), [[0.25, 0, 0, 1]]
  )


def test_masks_are_augmented_like_their_images(pairs):
  batch = make(pairs, 0)
  changed = np.abs(batch["image"][:4] - batch["image"][4:]).max(-1) > 1e-6
  shares = batches.patch_shares(changed, 8)
  assert (batch["anomalous_share"][:4] == 0).all()
  assert (batch["anomalous_share"][4:] >= shares - 1e-6).all()
  assert (shares.sum(1) > 0).all()


def test_both_images_of_a_pair_keep_the_same_patches(pairs):
  batch = make(pairs, 0, keep=30)
  keep = batch["keep"]
  assert keep.shape == (8, 30) and keep.max() < 64
  np.testing.assert_array_equal(keep[:4], keep[4:])
  assert all(len(set(row)) == 30 for row in keep)


# ---- The hook and the loss.


def test_keeping_every_patch_changes_nothing(pairs):
  clip = model.random_clip(SIZES, 0)
  image = jnp.asarray(make(pairs, 0)["image"])
  run = jax.jit(lambda keep: clip.image(image, keep=keep, vv_from=2))
  everything = jnp.tile(jnp.arange(64), (8, 1))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    run(everything),
    jax.jit(lambda: clip.image(image, vv_from=2))(),
  )
  kept = jnp.tile(jnp.arange(0, 64, 2), (8, 1))
  first = jax.jit(lambda keep: clip.image(image, keep=keep)[1])(kept)
  assert first["block01"].shape == (8, 33, 64)


def test_the_loss_equals_a_direct_computation(pairs):
  settings = tiny_clip.get_config().objective.to_dict()
  settings.update(feature_layers=("block02",), vv_from=None)
  goal = objective.Objective(**settings)
  vocabulary = captions.vocabulary()
  trainable, table = objective.init(SIZES, vocabulary, 0)
  batch = jax.tree.map(jnp.asarray, make(pairs, 0))
  loss, parts = jax.jit(
    lambda p: goal.loss(p, table, vocabulary, SIZES, batch)
  )(trainable)
  np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)
  clip = objective.assemble(trainable, table, vocabulary, SIZES)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  image, out = jax.jit(clip.image)(batch["image"])
  read = jax.jit(lambda ids, end: clip.text(clip.embed_tokens(ids), end)[0])
  texts = unit(np.asarray(read(batch["captions"], batch["end"])))
  z = np.exp(clip.params["logit_scale"]) * unit(image) @ texts.T - 2.0
  z = np.asarray(z, np.float64)
  sign = 2 * batch["truth"] - 1
  captions_loss = 0.1 * np.log1p(np.exp(-sign * z)).sum(1).mean()
  np.testing.assert_allclose(parts["captions"], captions_loss, rtol=1e-4)
  normal, anomalous = (
    unit(np.asarray(read(batch["states"][i], batch["states_end"][i])))
    for i in (0, 1)
  )
  direction = (anomalous - normal).T / 0.07
  patches = unit(np.asarray(clip.project(out["block02"][:, 1:], ln_post=True)))
  total = weights = 0.0
  for i in range(8):
    for j in range(64):
      share = batch["anomalous_share"][i, j]
      if 0 < share < 0.05:
        continue
      logits = patches[i, j] @ direction
      label = share >= 0.05
      weight = 3.0 if label else 1.0
      error = np.log1p(np.exp(-(2 * label - 1) * logits)).mean()
      total, weights = total + weight * error, weights + weight
  expected = goal.patches * total / weights
  np.testing.assert_allclose(parts["patches"], expected, rtol=1e-4)


# ---- The command.


@pytest.fixture
def config(cache, pairs, monkeypatch):
  """Configuration of a run of half a minute."""
  monkeypatch.setattr(synthetic_pairs, "PAIRS_PER_FILE", PAIRS)
  monkeypatch.setattr(synthetic_pairs, "ensure", ensure_small(cache, pairs))
  config = tiny_clip.get_config()
  config.model = {
    k: v for k, v in dataclasses.asdict(SIZES).items() if "heads" not in k
  }
  config.update(
    pairs=PAIRS,
    held_out=HELD_OUT,
    batch_size=16,
    keep=32,
    whole_steps=10,
    steps=60,
    warmup=5,
    log_steps=10,
    measure_steps=60,
    checkpoint_steps=20,
  )
  config.objective.update(feature_layers=("block02",), vv_from=2)
  return config


def ensure_small(cache, pairs):
  draw = synthetic_pairs.ensure

  def ensure(cache_dir, count, *, size, seed):
    del cache_dir
    return pairs if seed == 0 else draw(cache, count, size=size, seed=seed)

  return ensure


def metrics(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_short_run_learns_and_resumes(config, tmp_path, monkeypatch):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert pretrain.pretrain(config.lock(), whole)
  lines = metrics(whole)
  losses = [line["loss"] for line in lines if "loss" in line]
  assert losses[-1] < 0.9 * losses[0]
  found = lines[-1]
  assert found["retrieval_auroc"] > 55  # On held-out images and captions.

  with pytest.MonkeyPatch.context() as patch:
    stop = lambda: small_run.StopAfter(35)
    patch.setattr(pretrain.stopping, "Deferred", stop)
    assert not pretrain.pretrain(config, parts)
  saved = checkpoint.Checkpoints(parts / "checkpoints")
  assert saved.latest_step == 35
  saved.close()
  assert pretrain.pretrain(config, parts)
  assert metrics(parts) == lines
  first, again = (
    (folder / "weights.safetensors").read_bytes() for folder in (whole, parts)
  )
  assert first == again
  clip = backbones.load("embedded", str(whole / "weights.safetensors"))
  assert clip.config == SIZES


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
  code = "import sys; from zsad_jax.pretraining import synthetic_pairs as s\n"
  code += "if __name__ == '__main__':\n"
  code += "  s.ensure(sys.argv[1], 10**6, size=64, seed=0)"
  (tmp_path / "draw.py").write_text(code)
  process = subprocess.Popen(
    [sys.executable, tmp_path / "draw.py", tmp_path / "cache"],
    env=os.environ | {"PYTHONPATH": os.getcwd()},
  )
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
  workers, end = [], time.monotonic() + 120
  while len(workers) < 2 and time.monotonic() < end:  # And resource tracker.
    time.sleep(0.1)
    workers = children.read_text().split()
  process.kill()
  process.wait()
  assert len(workers) >= 2
  alive = lambda pid: pathlib.Path(f"/proc/{pid}/cmdline").is_file()
  while any(map(alive, workers)) and time.monotonic() < end:
    time.sleep(0.1)
  assert not any(map(alive, workers))
