"""Data sets with several views: each is compared with its own references."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from tests.helpers import small_run
from zsad_jax.datasets import index, layouts, references
from zsad_jax.evaluation import evaluator
from zsad_jax.inference import few_shot
from zsad_jax.methods import clip
from zsad_jax.reporting import tables
from zsad_jax.runtime import distributed

VIEWS = {"bolt": "C1", "nut": "C2"}


def of_one_class(samples):
  """Two classes become two views of one; samples of one number belong so."""
  numbers = {}
  for sample in samples:
    number = numbers.setdefault(sample.class_name, iter(range(100)))
    yield dataclasses.replace(
      sample,
      class_name="part",
      view=VIEWS[sample.class_name],
      group=f"S{next(number)}",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("views")
  small_run.write_mvtec(folder)
  found = layouts.read_mvtec(folder)
  train, test = (list(of_one_class(part)) for part in (found.train, found.test))
  return index.make_dataset("views", folder, train=train, test=test)


def only(data, view):
  """The images of a view, as a data set without views."""
  train, test = (
    [
      dataclasses.replace(sample, view="", group="")
      for sample in part
      if sample.view == view
    ]
    for part in (data.train, data.test)
  )
  return index.make_dataset("view", data.root, train=train, test=test)


@pytest.fixture(scope="module")
def compare(small_clip):
  return evaluator.Evaluator(
    method=few_shot.with_memory_bank(
      clip.Method(), feature_layers=(2, 3), vv_from=2
    ),
    backbone=small_clip,
    mesh=distributed.make_mesh(),
    image_size=32,
    batch_size=4,
    smooth_sigma=0.0,
    prompt_names="verbatim",
    skip_corrupt=False,
  )


def scores(compare, data, choices):
  found = list(compare.categories({}, {}, data, choices))
  return [
    dict(zip([s.image_path for s in c.samples], c.pred_score)) for c in found
  ]


def test_a_view_is_compared_with_references_of_its_own(compare, data):
  chosen = references.sample(data, shots=2, seed=10)
  assert set(chosen.images) == {"part/C1", "part/C2"}
  zero_shot, fused = scores(compare, data, (references.NONE, chosen))
  for view in VIEWS.values():
    part = only(data, view)
    pool = [s.image_path for s in part.train]
    wanted = [pool[i] for i in references.indices(len(pool), 2, 10)]
    assert list(chosen.images[f"part/{view}"]) == wanted
    of_view = references.References({"part": tuple(wanted)}, 2)
    both = scores(compare, part, (references.NONE, of_view))
    for found, expected in zip((zero_shot, fused), both):
      for path, score in expected.items():
        np.testing.assert_allclose(found[path], score, rtol=1e-5)
  assert any(abs(zero_shot[path] - fused[path]) > 1e-3 for path in zero_shot)


def test_images_stay_with_their_numbers(compare, data):
  chosen = references.sample(data, shots=1, seed=10)
  compare = dataclasses.replace(compare, num_examples=1)
  (category,) = compare.categories({}, {}, data, [chosen])
  assert sorted(s.image_path for s in category.samples) == sorted(
    s.image_path for s in data.test
  )
  paths = [s.image_path for s in category.samples]
  known = dict(zip(paths, category.pred_score))
  for number, example in category.examples.kept.items():
    assert example.score == known[category.sample(number).image_path]


def test_a_sample_counts_as_its_worst_view(compare, data):
  (category,) = compare.categories({}, {}, data)
  row = category.compute()
  groups = sorted({s.group for s in data.test})
  of = lambda values, group: max(
    v for v, s in zip(values, category.samples) if s.group == group
  )
  label = [of(category.label, group) for group in groups]
  score = [of(category.pred_score, group) for group in groups]
  expected = sklearn_metrics.roc_auc_score(label, score)
  np.testing.assert_allclose(row["sample_auroc"], expected)
  text = tables.to_text({"part": row}, "views")
  assert f"sample_auroc {100 * expected:.1f}" in text
  (plain,) = compare.categories({}, {}, only(data, "C1"))
  assert "sample_auroc" not in plain.compute()


def test_a_list_may_name_views_or_the_class(data, tmp_path):
  of = lambda view: [s.image_path for s in data.train if s.view == view]
  listing = tmp_path / "list.json"
  listing.write_text(json.dumps({"part/C1": of("C1"), "part": of("C2")}))
  found = references.read(listing, data)
  assert found.of("part/C1", "part") == tuple(of("C1"))
  assert found.of("part/C2", "part") == tuple(of("C2"))
  listing.write_text(json.dumps({"part/C1": of("C1")}))
  with pytest.raises(ValueError, match="no reference of class 'part/C2'"):
    references.read(listing, data)
