"""A new metric is one row of `metrics.METRICS`; nothing else is edited."""

import pathlib
import shutil
import subprocess
import sys

import pytest

import zsad_jax

PACKAGE = pathlib.Path(zsad_jax.__file__).parent
ROWS = """
import numpy as np


def _fpr95(label, score):
  threshold = np.quantile(score[label == 1], 0.05, method="lower")
  return np.mean(score[label == 0] >= threshold)


def _mean_iou(gt_mask, anomaly_map):
  found = anomaly_map >= 0.5
  union = ((gt_mask != 0) | found).sum()
  return ((gt_mask != 0) & found).sum() / union


_NEW = (
  Metric(
    "image_fpr95",
    level="image",
    title="false positive rate at a recall of 95 %",
    function=_fpr95,
    higher_is_better=False,
  ),
  Metric("pixel_iou", level="pixel", title="IoU at 0.5", function=_mean_iou),
)
METRICS |= {metric.name: metric for metric in _NEW}
"""
USE = """
import sys

import numpy as np

from zsad_jax.metrics import accumulators
assert not {"jax", "tensorflow"} & {*sys.modules}

label, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
mask = np.zeros((2, 4, 4), bool)
mask[0, :2] = True
maps = np.where(mask, 0.75, 0.25).astype(np.float32)
maps[1, 0] = 0.6
for name in ("streamed", "exact"):
  variant = accumulators.variant(name)
  pixel = variant.pixel_metrics()
  pixel.update(mask, maps)
  row = variant.image_metrics(label, score) | pixel.compute()
  assert row["image_fpr95"] == 0.5, row
  if name == "exact":
    assert row["pixel_iou"] == 8 / 12, row

from zsad_jax.reporting import tables

rows = {"bolt": row}
for text in (
  tables.to_text(rows, "title"),
  tables.to_markdown(rows, "title"),
  tables.to_csv(rows),
  tables.summary_to_markdown({"run": [row]}, "title"),
):
  assert "image_fpr95" in text and "pixel_iou" in text
assert " 50.0 " in tables.to_text(rows, "title")
assert " 66.7 " in tables.to_text(rows, "title")
assert "sample_fpr95" in tables.SAMPLE_METRICS
streamed = accumulators.StreamingPixelMetrics()
streamed.update(mask, maps)
assert "n/a" in tables.to_text({"bolt": streamed.compute()}, "title")
assert np.isnan(streamed.compute()["pixel_iou"])
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
  """A copy of the package with two more rows in the table of metrics."""
  folder = tmp_path_factory.mktemp("copy")
  ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
  shutil.copytree(PACKAGE, folder / "zsad_jax", ignore=ignored)
  path = folder / "zsad_jax" / "metrics" / "__init__.py"
  path.write_text(path.read_text() + ROWS)
  return folder


def run(folder, *arguments):
  return subprocess.run(
    [sys.executable, *arguments], cwd=folder, capture_output=True, text=True
  )


def test_a_row_reaches_results_and_tables(copy):
  done = run(copy, "-c", USE)
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_row_reaches_the_help(copy):
  done = run(copy, "-m", "zsad_jax.evaluate", "--help")
  text = " ".join(done.stdout.split())
  assert "image_fpr95: false positive rate at a recall of 95 %" in text
