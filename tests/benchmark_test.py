"""The benchmark compares what gives the same numbers."""

import json
import types

import numpy as np
import pytest

from zsad_jax.benchmark import data, metrics
from zsad_jax.datasets import preprocess
from zsad_jax.evaluation import variants


def test_all_parts_measure_the_same():
  _, streamed = metrics.streamed(2)
  _, exact = metrics.exact(2)
  _, peers = metrics.scikit_learn(2)
  _, slow = metrics.thresholds_200(2)
  for name in ("auroc", "ap", "aupro"):
    sorted_ = exact[f"pixel_{name}"]
    np.testing.assert_allclose(streamed[name], sorted_, atol=1e-4)
  np.testing.assert_allclose(peers["auroc"], exact["pixel_auroc"])
  np.testing.assert_allclose(peers["ap"], exact["pixel_ap"])
  masks, maps = (np.concatenate(x) for x in zip(*metrics.images(2)))
  np.testing.assert_allclose(
      slow["aupro_200"], variants.aupro_200(masks, maps), rtol=1e-6
  )


def test_ratios_are_printed_and_kept(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(
      metrics, "_run", lambda f, n: ({"streamed": 1.0}.get(f.__name__, 5.0),
                                     {"auroc": 0.5}, 100.0),
  )  # fmt: skip
  path = tmp_path / "numbers.json"
  options = dict(images=3, alone=False, slow=True, json=str(path))
  metrics.main(types.SimpleNamespace(**options))
  out = capsys.readouterr().out
  assert "scikit_learn / streamed: 5.0" in out
  assert "scikit_learn + thresholds_200 / streamed: 10.0" in out
  assert json.loads(path.read_text())["pixels"] == 3 * 518**2


def test_a_part_that_fails_is_named():
  with pytest.raises(RuntimeError, match="fail ended with 1"):
    metrics._run(fail, 1)


def fail(number):
  raise SystemExit(number)


def test_all_ways_read_the_same(tmp_path, capsys):
  samples = data.write(tmp_path, 10)
  (batch, last) = data._batches(samples)
  assert last["weight"].sum() == 2
  for i, sample in enumerate(samples[: data.BATCH]):
    image, mask = preprocess.load_pair(sample, data.SIZE)
    np.testing.assert_array_equal(batch["image"][i], image)
    np.testing.assert_array_equal(batch["mask"][i], mask)
    assert mask.any() == bool(sample.label)
  (tmp_path / "again").mkdir()
  found = data._measure(tmp_path / "again", 8, 16)
  assert len(found["images_per_second"]) == 4
  assert "pipeline, cached" in capsys.readouterr().out
