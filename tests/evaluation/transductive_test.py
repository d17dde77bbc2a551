"""Scores over all images of a category: when, notes, and several processes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import types
from zsad_jax.datasets import index, references
from zsad_jax.evaluation import transductive
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.inference import few_shot
from zsad_jax.methods import adaclip, april_gan
from zsad_jax.metrics import accumulators

GIVEN = references.References({"bolt": ("a.png",)}, 1, 10)
SAMPLES = [
  index.Sample(f"{i}.png", "", "bolt", "", int(i > 1)) for i in range(4)
]
METHOD = april_gan.Method(transductive_score=True)


def test_scores_are_transductive_only_where_asked():
  assert GIVEN.images and not references.NONE.images
  assert isinstance(METHOD, types.Transductive)
  found = transductive.category_scores(METHOD, GIVEN)
  assert found == METHOD.category_scores
  assert transductive.category_scores(METHOD, references.NONE) is None
  for other in (april_gan.Method(), adaclip.Method()):
    assert transductive.category_scores(other, GIVEN) is None
    assert transductive.notes(other, GIVEN) == ()
    assert transductive.without(other) is other
  assert transductive.notes(METHOD, references.NONE) == ()
  (note,) = transductive.notes(METHOD, GIVEN)
  assert note.startswith("transductive: ")
  assert transductive.without(METHOD) == april_gan.Method()


def test_the_methods_own_comparison_is_kept():
  given = dict(feature_layers=(1,), vv_from=None)
  assert few_shot.with_memory_bank(METHOD, **given) is METHOD


def result_of(numbers, terms, category_scores):
  """Return the result of a process that has predicted these images."""
  result = CategoryResult(
    "bolt",
    GIVEN,
    SAMPLES,
    variant=accumulators.variant("streamed"),
    category_scores=category_scores,
  )
  for i in numbers:
    maps = np.full((1, 4, 4), terms[i, 1], np.float32)
    maps[0, 0, 0] = 0.0
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 1] = i > 1
    one, score = np.array([i]), terms[i : i + 1].mean(axis=1)
    known = np.ones(1, bool)
    passed = terms[i : i + 1] if result.needs_terms else None
    result.update(one, masks, known, maps, score, passed)
  return result


@pytest.mark.parametrize("together", [True, False])
def test_scores_of_two_processes(together):
  terms = np.random.default_rng(0).random((4, 2)).astype(np.float32)
  scores = METHOD.category_scores if together else None
  first, second = (result_of(i, terms, scores) for i in ((0, 1), (2, 3)))
  other = []
  second.merge(lambda value: [other.append(value) or value])
  received = iter(other)
  first.merge(lambda value: [value, next(received)])
  order = [s.image_path for s in first.samples]
  rows = [int(path[0]) for path in order]
  scaled = (terms[:, 1] - terms[:, 1].min()) / np.ptp(terms[:, 1])
  expected = 0.5 * (terms[:, 0] + (scaled if together else terms[:, 1]))
  np.testing.assert_allclose(first.pred_score, expected[rows], atol=1e-6)
  assert first.compute()["num_anomalous"] == 2


def test_predictions_give_the_terms():
  method = dataclasses.replace(METHOD, feature_layers=(1,), memory_layers=(1,))
  tokens = jnp.ones((2, 1, 4, 3))
  features = {
    "patch_tokens": tokens,
    "memory_bank": method.build_memory_bank({"patch_tokens": tokens[None]}),
  }
  zero_shot = {
    "anomaly_map": jnp.zeros((2, 8, 8)),
    "pred_score": jnp.array([0.2, 0.6]),
  }
  found = method.fuse_with_references(zero_shot, features)
  scores = method.category_scores(np.asarray(found["score_terms"]))
  np.testing.assert_allclose(scores, [0.1, 0.3], atol=1e-6)
