"""Evaluation of a pretrained CLIP on held-out images and captions."""

import jax
import numpy as np

from zsad_jax.backbones.clip.model import Clip
from zsad_jax.layers import prompts, similarity
from zsad_jax.metrics import exact
from zsad_jax.pretraining import batches, captions
from zsad_jax.pretraining.synthetic_pairs import Pairs

BATCH = 32  # Images per call of the model.
MIN_SHARE = 0.05  # Of an anomalous patch.


def measure(model: Clip, pairs: Pairs, *, seed: int) -> dict[str, float]:
  """Compute metrics on held-out pairs.

  Args:
    model: the CLIP.
    pairs: held-out pairs of images.
    seed: seed of the captions.

  Returns:
    Percentages:
      noun_accuracy: classification by "a photo of a NOUN" among all nouns;
        chance is 1 / number of nouns.
      retrieval_auroc: AUROC of true captions, over all pairs of image and
        caption.
      state_auroc: AUROC of anomalous images, by an ensemble of state prompts.
      pixel_auroc: the same for patches.
  """
  images = np.concatenate([pairs.images[:, 0], pairs.images[:, 1]])
  image_units, patch_units = _embed_images(model, images)
  normal_facts = [batches.without_anomaly(f) for f in pairs.facts]
  facts = [*normal_facts, *pairs.facts]
  rng = np.random.default_rng((seed, 2))
  described = [captions.describe(rng, f) for f in facts]
  truth = batches.truth(facts, described)
  similarities = (
    image_units @ _embed_texts(model, [c.text for c in described]).T
  )
  nouns = _embed_texts(
    model, [f"a photo of a {noun}." for noun in captions.NOUNS]
  )
  predicted = np.array(captions.NOUNS)[(image_units @ nouns.T).argmax(1)]
  direction = _direction(model)
  shares = batches.patch_shares(pairs.masks, model.patch_size)
  shares = np.concatenate([np.zeros_like(shares), shares])
  auroc = lambda label, score: (
    100 * exact.auroc(label.ravel().astype(bool), score.ravel())
  )
  anomalous = np.repeat([False, True], len(pairs.images))
  return {
    "noun_accuracy": 100 * np.mean(predicted == [f.noun for f in facts]),
    "retrieval_auroc": auroc(truth, similarities),
    "state_auroc": auroc(anomalous, image_units @ direction),
    "pixel_auroc": auroc(shares > MIN_SHARE, patch_units @ direction),
  }


def _direction(model):
  """Return the mean anomalous minus the mean normal prompt: (d,)."""
  normal, anomalous = (
    _embed_texts(
      model, prompts.fill_templates("object", states, prompts.PHOTOS)
    ).mean(0)
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


def _embed_images(model, images):
  """Return unit embeddings of images (n, d) and of their patches (n, l, d)."""
  starts = range(0, len(images), BATCH)
  batch = lambda i: model.normalize(images[i : i + BATCH])
  parts = [jax.device_get(_image(model, batch(i))) for i in starts]
  return tuple(np.concatenate(x) for x in zip(*parts))


def _embed_texts(model, texts):
  """Return unit embeddings of texts (n, d)."""
  ids, end = batches.tokens(texts)
  return np.asarray(_text(model, ids, end))
