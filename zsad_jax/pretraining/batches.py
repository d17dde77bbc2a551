"""Batches for pretraining: a pure function of the seed and the step."""

import itertools

import numpy as np

from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip import tokenizer
from zsad_jax.pretraining import captions
from zsad_jax.pretraining.pictures import Pairs

LENGTH = 24  # Ids of a caption; the longest needs fewer.
PREFERENCE = 0.4  # For damaged patches when some are dropped.


def steps_per_epoch(pairs: Pairs, batch_size: int) -> int:
  """Batches in which each pair is used once; the rest of a shuffle is not."""
  return len(pairs.images) // (batch_size // 2)


def make(
  pairs: Pairs,
  step: int,
  *,
  batch_size: int,
  patch_size: int,
  keep: int | None,
  states: int,
  seed: int,
):
  """Returns the batch of a step, see `Objective.loss`.

  Args:
    pairs: what to choose from.
    step: number of the batch, from 0.
    batch_size: pictures; both of a pair are in the same batch, turned alike.
    patch_size: side of a patch in pixels.
    keep: patches of each picture to be seen; None: all of them.
    states: pairs of sentences about states.
    seed: of order, turning and captions.
  """
  half, each = batch_size // 2, steps_per_epoch(pairs, batch_size)
  order = np.random.default_rng((seed, 0, step // each)).permutation(
    len(pairs.images)
  )
  chosen = order[step % each * half :][:half]
  rng = np.random.default_rng((seed, 1, step))
  turned = [_turned(rng, pairs.images[i], pairs.masks[i]) for i in chosen]
  images, masks = (np.stack(x) for x in zip(*turned))
  damage = patch_shares(masks, patch_size)
  sound = [of_sound_twin(pairs.facts[i]) for i in chosen]
  facts = [*sound, *(pairs.facts[i] for i in chosen)]
  told = [captions.describe(rng, f) for f in facts]
  stated = [captions.state_pair(rng) for _ in range(states)]
  ids, end = tokens([caption.text for caption in told])
  state_ids, state_end = tokens([*itertools.chain(*zip(*stated))])
  return {
    "image": clip.normalize(np.concatenate(images.swapaxes(0, 1))),
    "damage": np.concatenate([np.zeros_like(damage), damage]),
    "keep": np.tile(_kept(rng, damage, keep), (2, 1)),
    "captions": ids,
    "end": end,
    "truth": truth(facts, told),
    "states": state_ids.reshape(2, states, -1),
    "states_end": state_end.reshape(2, states),
  }


def patch_shares(masks: np.ndarray, patch_size: int) -> np.ndarray:
  """Share of each patch inside the mask: (n, s, s) -> float32 (n, l)."""
  n, side, p = len(masks), masks.shape[1] // patch_size, patch_size
  cells = masks.reshape(n, side, p, side, p).astype(np.float32)
  return cells.mean((2, 4)).reshape(n, -1)


def _kept(rng, damage, keep):
  """Patches to be seen: damaged ones are preferred, in both twins alike."""
  if keep is None:
    return np.tile(np.arange(damage.shape[1]), (len(damage), 1))
  priority = rng.random(damage.shape) - (damage > 0) * PREFERENCE
  return np.sort(np.argpartition(priority, keep, axis=1)[:, :keep], axis=1)


def of_sound_twin(facts: captions.Facts) -> captions.Facts:
  """The facts of the sound twin of a damaged picture."""
  return captions.Facts(facts.noun, facts.material, facts.color, False, "none")


def truth(facts, told) -> np.ndarray:
  """Which caption (columns) is true of which picture: float32 (n, k)."""
  return np.array(
    [[f.told_by(caption.says) for caption in told] for f in facts], np.float32
  )


def tokens(texts) -> tuple[np.ndarray, np.ndarray]:
  """Ids (n, LENGTH) and end positions (n,).

  Raises:
    ValueError: a text is longer.
  """
  ids = tokenizer.encode(texts, context_length=LENGTH)
  return ids, tokenizer.end_positions(ids)


def _turned(rng, images, mask):
  """One of the eight symmetries of the square, in other light."""
  quarter, flip = int(rng.integers(4)), bool(rng.integers(2))
  light = rng.uniform(0.85, 1.15) * rng.uniform(0.93, 1.07, 3)
  images = np.rot90(images, quarter, (1, 2))
  mask = np.rot90(mask, quarter)
  if flip:
    images, mask = images[:, :, ::-1], mask[:, ::-1]
  lit = np.clip(images * light.astype(np.float32) + 0.5, 0, 255)
  return lit.astype(np.uint8), mask
