"""Pretraining batches, a pure function of the seed and the step."""

import itertools
from collections.abc import Sequence

import numpy as np

from zsad_jax import types
from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip import tokenizer
from zsad_jax.pretraining import captions
from zsad_jax.pretraining.synthetic_pairs import Pairs

LENGTH = 24  # Token ids per caption; the longest caption has fewer.
PREFERENCE = 0.4  # Of anomalous patches when patches are dropped, in [0, 1].


def steps_per_epoch(pairs: Pairs, batch_size: int) -> int:
  """Return the number of batches per epoch; the incomplete one is dropped."""
  return len(pairs.images) // (batch_size // 2)


def make(
  pairs: Pairs,
  step: int,
  *,
  batch_size: int,
  patch_size: int,
  pixels: str,
  keep: int | None,
  states: int,
  seed: int,
) -> types.Batch:
  """Return the batch of a step.

  Args:
    pairs: pairs of images to select from.
    step: number of the batch, from 0.
    batch_size: number of images; a batch holds both images of a pair, with the
      same augmentation.
    patch_size: side of a patch in pixels.
    pixels: normalization of pixels, a key of `clip.config.PIXELS`.
    keep: number of patches per image that are not dropped; None for all.
    states: number of pairs of state prompts.
    seed: seed of order, augmentation and captions.

  Returns:
    The arrays that `Objective.loss` takes.
  """
  half, each = batch_size // 2, steps_per_epoch(pairs, batch_size)
  order = np.random.default_rng((seed, 0, step // each)).permutation(
    len(pairs.images)
  )
  chosen = order[step % each * half :][:half]
  rng = np.random.default_rng((seed, 1, step))
  augmented = [_augment(rng, pairs.images[i], pairs.masks[i]) for i in chosen]
  images, masks = (np.stack(x) for x in zip(*augmented))
  anomalous = patch_shares(masks, patch_size)
  normal_facts = [without_anomaly(pairs.facts[i]) for i in chosen]
  facts = [*normal_facts, *(pairs.facts[i] for i in chosen)]
  described = [captions.describe(rng, f) for f in facts]
  state_pairs = [captions.state_pair(rng) for _ in range(states)]
  ids, end = tokens([caption.text for caption in described])
  state_ids, state_end = tokens([*itertools.chain(*zip(*state_pairs))])
  return {
    "image": clip.normalize(np.concatenate(images.swapaxes(0, 1)), pixels),
    "anomalous_share": np.concatenate([np.zeros_like(anomalous), anomalous]),
    "keep": np.tile(_select_patches(rng, anomalous, keep), (2, 1)),
    "captions": ids,
    "end": end,
    "truth": truth(facts, described),
    "states": state_ids.reshape(2, states, -1),
    "states_end": state_end.reshape(2, states),
  }


def patch_shares(masks: np.ndarray, patch_size: int) -> np.ndarray:
  """Return the share of each patch in a mask: (n, s, s) to float32 (n, l)."""
  n, side, p = len(masks), masks.shape[1] // patch_size, patch_size
  cells = masks.reshape(n, side, p, side, p).astype(np.float32)
  return cells.mean((2, 4)).reshape(n, -1)


def _select_patches(rng, anomalous, keep):
  """Return sorted indices (n, keep) of patches; prefer anomalous patches."""
  if keep is None:
    return np.tile(np.arange(anomalous.shape[1]), (len(anomalous), 1))
  priority = rng.random(anomalous.shape) - (anomalous > 0) * PREFERENCE
  return np.sort(np.argpartition(priority, keep, axis=1)[:, :keep], axis=1)


def without_anomaly(facts: captions.Facts) -> captions.Facts:
  """Return the facts of the normal image of a pair."""
  return captions.Facts(facts.noun, facts.material, facts.color, False, "none")


def truth(
  facts: Sequence[captions.Facts], described: Sequence[captions.Caption]
) -> np.ndarray:
  """Return 1 where a caption (column) is true of an image (row), else 0.

  Args:
    facts: facts of n images.
    described: k captions.

  Returns:
    float32 (n, k).
  """
  return np.array(
    [[f.match(caption.facts) for caption in described] for f in facts],
    np.float32,
  )


def tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Return token ids (n, LENGTH) and positions of end tokens (n,).

  Raises:
    ValueError: a text needs more ids.
  """
  ids = tokenizer.encode(texts, context_length=LENGTH)
  return ids, tokenizer.end_positions(ids)


def _augment(rng, images, mask):
  """Apply a random symmetry of the square and a random change of light."""
  quarter, flip = int(rng.integers(4)), bool(rng.integers(2))
  light = rng.uniform(0.85, 1.15) * rng.uniform(0.93, 1.07, 3)
  images = np.rot90(images, quarter, (1, 2))
  mask = np.rot90(mask, quarter)
  if flip:
    images, mask = images[:, :, ::-1], mask[:, ::-1]
  lit = np.clip(images * light.astype(np.float32) + 0.5, 0, 255)
  return lit.astype(np.uint8), mask
