"""Results of categories: one process, several processes, examples."""

import types

import numpy as np
import pytest
from PIL import Image

from zsad_jax.datasets import index, references
from zsad_jax.evaluation import compared, evaluator
from zsad_jax.evaluation import speed as speed_lib
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.evaluation.examples import Example, ExampleSelector
from zsad_jax.inference import inputs
from zsad_jax.metrics import accumulators
from zsad_jax.runtime import packing

SAMPLES = [
  index.Sample(f"{i}.png", "", "bolt", "", int(i % 3 > 0)) for i in range(11)
]


def empty_result(variant="streamed"):
  return CategoryResult(
    "bolt",
    references.NONE,
    SAMPLES,
    variant=accumulators.variant(variant),
    num_examples=2,
    threshold=0.5,
  )


def result_of(variant, halves):
  """Result of these halves of each batch."""
  result = empty_result(variant)
  for batch in np.split(np.arange(11), [4, 8]):
    part = np.concatenate([np.array_split(batch, 2)[half] for half in halves])
    maps = [np.random.default_rng(i).random((6, 6)) for i in part]
    maps = np.reshape(maps, (-1, 6, 6)).astype(np.float32)
    mask = (maps > 0.8) & (part % 3 > 0)[:, None, None]
    has_mask = np.ones(len(part), bool)
    result.update(part, mask, has_mask, maps, maps.mean(axis=(1, 2)))
  result.skipped.append(f"broken by {halves[0]}")
  return result


@pytest.mark.parametrize("variant", ["streamed", "exact", "adaptclip"])
def test_two_processes_give_the_results_of_one(variant):
  alone, first, second = (result_of(variant, p) for p in ((0, 1), (0,), (1,)))
  alone.merge(lambda value: [value])
  sent = []
  second.merge(lambda value: [sent.append(packing.pack(value)) or value])
  received = iter(sent)
  first.merge(lambda value: [value, packing.unpack(next(received))])
  assert first.compute() == alone.compute()
  assert first.samples == alone.samples == SAMPLES
  numbers = lambda examples: [e.number for e in examples]
  kinds = lambda r: {k: numbers(v) for k, v in r.examples.compute().items()}
  assert kinds(first) == kinds(alone)
  assert first.examples.kept.keys() == alone.examples.kept.keys()
  assert first.skipped == ["broken by 0", "broken by 1"]


@pytest.mark.parametrize("skipped", [[], ["broken"]])
def test_a_category_without_an_image_is_named(skipped):
  result = empty_result()
  result.skipped = skipped
  reason = "can be read" if skipped else "is scored"
  with pytest.raises(ValueError, match=f"test images of .* {reason}, first 0"):
    result.merge(lambda value: [value])


def test_nan_in_a_prediction_names_the_image():
  result = result_of("streamed", (0,))
  maps = np.full((1, 6, 6), np.nan, np.float32)
  score = np.zeros(1, np.float32)
  fine = np.zeros_like(maps)
  for some_map, some_score in (
    (maps, score),
    (fine + np.float32(np.inf), score),
    (fine, score + np.float32(np.nan)),
    (fine, score - np.float32(np.inf)),
  ):
    with pytest.raises(ValueError, match="3.png: the prediction contains NaN"):
      result.update(
        np.array([3]), maps > 0, np.ones(1, bool), some_map, some_score
      )


def test_the_selector_keeps_the_extreme_images():
  selector = ExampleSelector(num_per_kind=2, threshold=0.5, always=[3])
  scores = [0.1, 0.9, 0.48, 0.2, 0.7, 0.05, 0.6, 0.95]
  labels = [0, 0, 0, 0, 1, 1, 1, 1]
  empty = np.zeros((2, 2), np.float32)
  for i, (label, score) in enumerate(zip(labels, scores)):
    selector.update(label, Example(i, score, empty, None))
  numbers = {k: [e.number for e in v] for k, v in selector.compute().items()}
  # Each image once, under the first of its kinds.
  assert numbers == {
    "missed": [5, 6],
    "false alarm": [1, 2],
    "found": [7, 4],
    "clear": [0, 3],
  }
  assert list(selector.kept) == [3]
  one = ExampleSelector(num_per_kind=1, threshold=0.5)
  for i, (label, score) in enumerate(zip(labels, scores)):
    one.update(label, Example(i, score, empty, None))
  assert [e.number for e in one.compute()["borderline"]] == [2]


def test_speed_counts_batches_without_compilation(monkeypatch):
  clock, compiled = [0.0], [0]
  monkeypatch.setattr(speed_lib.time, "perf_counter", lambda: clock[0])
  monkeypatch.setattr(speed_lib, "_compilations", lambda: compiled[0])
  speed = speed_lib.Speed()
  for seconds, programs, images in ((50, 2, 8), (2, 0, 8), (1, 0, 4)):
    clock[0] += seconds
    compiled[0] += programs
    speed.add(images)
    clock[0] += 7  # A figure is drawn.
    speed.start()
  assert speed.compute() == 4.0
  assert np.isnan(speed_lib.Speed().compute())


def test_references_of_the_test_part_are_not_scored():
  chosen = references.References({}, 1, 10, left_out=("0.png", "5.png"))
  kept = compared.scored(SAMPLES, chosen)
  assert np.flatnonzero(~kept).tolist() == [0, 5]


def test_a_given_reference_in_another_format_is_not_scored(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
  for name in ("a.png", "copy.bmp"):
    Image.fromarray(pixels).save(tmp_path / name)
  few = types.SimpleNamespace(image_size=8, tiles=None)
  paths = {"bolt": (str(tmp_path / "copy.bmp"),)}
  for seed, number in ((None, 1), (10, 0)):  # Sampled ones are published.
    chosen = [references.NONE, references.References(paths, 1, seed)]
    given = evaluator.Evaluator._given(few, chosen, "bolt", "bolt")
    assert len(given) == number
    if given:
      with pytest.raises(ValueError, match=r"0.png has the pixels of .*bmp"):
        compared.check_not_given(inputs.digest(pixels), SAMPLES[0], given)
    other = inputs.digest(pixels[::-1])
    compared.check_not_given(other, SAMPLES[0], given)
