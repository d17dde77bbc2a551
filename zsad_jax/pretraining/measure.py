"""What a pretrained CLIP knows of pictures and captions held out."""

import jax
import numpy as np

from zsad_jax.layers import prompts, similarity
from zsad_jax.metrics import exact
from zsad_jax.pretraining import batches, captions
from zsad_jax.pretraining.pictures import Pairs

BATCH = 32


def measure(model, pairs: Pairs, *, seed: int) -> dict[str, float]:
  """Measures on held-out pairs, in %.

  Returns:
    noun_accuracy: "a photo of a NOUN" among all nouns (chance: 1 of them);
    retrieval_auroc: true captions above false ones, all pictures x captions;
    state_auroc, pixel_auroc: of damage, by the ensemble of state sentences
      about an object, of pictures and of patches.
  """
  pictures = np.concatenate([pairs.images[:, 0], pairs.images[:, 1]])
  image, patches = _embed(model, pictures)
  sound = [batches.of_sound_twin(f) for f in pairs.facts]
  facts = [*sound, *pairs.facts]
  rng = np.random.default_rng((seed, 2))
  told = [captions.describe(rng, f) for f in facts]
  truth = batches.truth(facts, told)
  similar = image @ _read(model, [c.text for c in told]).T
  nouns = _read(model, [f"a photo of a {noun}." for noun in captions.NOUNS])
  guessed = np.array(captions.NOUNS)[(image @ nouns.T).argmax(1)]
  direction = _direction(model)
  damage = batches.patch_shares(pairs.masks, model.patch_size)
  damage = np.concatenate([np.zeros_like(damage), damage])
  auroc = lambda label, score: (
    100 * exact.auroc(label.ravel().astype(bool), score.ravel())
  )
  damaged = np.repeat([False, True], len(pairs.images))
  return {
    "noun_accuracy": 100 * np.mean(guessed == [f.noun for f in facts]),
    "retrieval_auroc": auroc(truth, similar),
    "state_auroc": auroc(damaged, image @ direction),
    "pixel_auroc": auroc(damage > 0.05, patches @ direction),
  }


def _direction(model):
  """From the mean normal to the mean anomalous sentence: (d,)."""
  normal, anomalous = (
    _read(model, prompts.fill_templates("object", states, prompts.PHOTOS)).mean(
      0
    )
    for states in prompts.STATES
  )
  return anomalous - normal


@jax.jit
def _image(model, image):
  embed, out = model.image(image)
  last = out[f"block{model.vision_layers:02d}"][:, 1:]
  return (
    similarity.unit(embed),
    similarity.unit(model.project(last, ln_post=True)),
  )


@jax.jit
def _text(model, ids, end):
  embed, _ = model.text(model.embed_tokens(ids), end)
  return similarity.unit(embed)


def _embed(model, pictures):
  starts = range(0, len(pictures), BATCH)
  batch = lambda i: model.normalize(pictures[i : i + BATCH])
  parts = [jax.device_get(_image(model, batch(i))) for i in starts]
  return tuple(np.concatenate(x) for x in zip(*parts))


def _read(model, texts):
  ids, end = batches.tokens(texts)
  return np.asarray(_text(model, ids, end))
