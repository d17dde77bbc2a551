"""The HTML page: self-contained, with published numbers and examples."""

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest

from zsad_jax.datasets import references
from zsad_jax.evaluation import paper_results
from zsad_jax.evaluation.protocol import Protocol
from zsad_jax.evaluation.results import Result, Setting
from zsad_jax.metrics import METRICS, accumulators, exact
from zsad_jax.reporting import details, figures, html


@pytest.fixture(scope="module")
def report():
  rng = np.random.default_rng(0)
  mask = np.zeros((6, 32, 32), bool)
  mask[3:, 4:12, 5:20] = True
  maps = (0.5 * rng.random(mask.shape) + 0.4 * mask).astype(np.float32)
  label, score = np.array([0, 0, 0, 1, 1, 1]), maps.mean(axis=(1, 2))
  variant = accumulators.variant("streamed")
  pixel = variant.pixel_metrics()
  pixel.update(mask, maps)
  row = variant.image_metrics(label, score) | pixel.compute()
  image = np.full((32, 32, 3), 120, np.uint8)
  strip = lambda mask: figures.example_strip(
    image, mask, maps[3], low=0.0, high=1.0
  )
  detail = details.Detail(
    exact.rank_items(label, score).curves(),
    pixel.curves(),
    [0.0, 0.5, 1.0],
    {"normal": [3, 0], "anomalous": [1, 2]},
    [("missed: scratch", strip(mask[3])), ("clear: normal", strip(None))],
  )
  result = Result(
    "adaclip_paper",
    "visa",
    "/data/visa",
    references.NONE,
    {"candle": {"num_normal": 3, "num_anomalous": 3, **row}},
    dict(trained_parameters=1, training_seconds=2.0, images_per_second=3.0),
    Protocol(("mvtec",), ("visa",), "last", ()),
    Setting("ViT-L-14-336", 518, 4.0, "last", 111, 7, "a remark"),
    ("adaclip_paper", "visa"),
    ("a note",),
  )
  return details.Report(result, {"candle": detail})


def test_the_page_shows_results_and_published_numbers(report):
  tables = paper_results.Tables(paper_results.read())
  text = html.render([report] * 2, tables, {"jax": "0.10"})
  ElementTree.fromstring(text.removeprefix("<!doctype html>"))
  assert "http" not in text and "<script" not in text
  for part in ("jax 0.10", "a note", "85.8", "± 0.0", "missed: scratch"):
    assert part in text
  # What was measured is shown before the first number.
  top = text[: text.index("<table")]
  for part in ("ViT-L-14-336, 518 px", "trained on mvtec", "a remark"):
    assert part in top
  assert f'title="{METRICS["image_ap"].title}"' in text
  assert "2 repetitions have 1 different seeds" in text
  assert text.count("<svg") == 5 and text.count("data:image/jpeg") == 2


def test_other_configurations_get_no_published_numbers(report):
  tables = paper_results.Tables(paper_results.read())
  result = dataclasses.replace(report.result, paper=None)
  text = html.render([dataclasses.replace(report, result=result)], tables, {})
  assert "85.8" not in text
