"""Programs and formats without a stored run."""

import jax
import numpy as np
import pytest

from zsad_jax import methods
from zsad_jax.inference import (
  export,
  export_onnx,
  export_stablehlo,
  predictor,
  program,
)
from zsad_jax.runtime import distributed


def make(small_clip, name, **more):
  module = methods.module(name)
  method = module.Method(**module.TINY)
  params, stats = method.init(jax.random.key(0), small_clip)
  return method, program.make(
    method,
    small_clip,
    params=params,
    stats=stats,
    class_name="bottle",
    image_size=32,
    **{"smooth_sigma": 0.0, **more},
  )


def images(count):
  rng = np.random.default_rng(count)
  return rng.integers(0, 255, (count, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize(
  "name", ["clip", pytest.param("anomalyclip", marks=pytest.mark.slow)]
)
def test_stablehlo(small_clip, tmp_path, name):
  method, made = make(small_clip, name)
  folded, _ = made.fold(unroll=False)
  # The text encoder is not part of the program.
  text = sum(x.nbytes for x in jax.tree.leaves(small_clip.params["text"]))
  every = sum(x.nbytes for x in jax.tree.leaves(small_clip.params))
  assert folded.constant_bytes() < every - text + 2**17

  path = tmp_path / "detector.stablehlo"
  assert export_stablehlo.write(made, path) == [path]
  pixels = images(3)
  live = predictor.Predictor(
    method, small_clip, ["bottle"], distributed.make_mesh()
  )
  batch = {"image": pixels, "class_id": np.zeros(3, np.int32)}
  params, stats = method.init(jax.random.key(0), small_clip)
  (expected,) = live.predict(params, stats, live.encode(batch))
  found = export.differences(
    export_stablehlo.load(path),
    pixels,
    np.asarray(expected["pred_score"]),
    np.asarray(expected["anomaly_map"]),
  )
  assert max(found.values()) < 1e-5


def test_weights_that_are_too_large_for_a_file(
  small_clip, tmp_path, monkeypatch
):
  _, made = make(small_clip, "clip")
  monkeypatch.setattr(export_stablehlo, "LARGEST", 1000)
  with pytest.raises(ValueError, match="at most 1,000"):
    export_stablehlo.write(made, tmp_path / "x")
  assert not list(tmp_path.iterdir())


def test_large_weights_of_onnx_are_in_a_second_file(
  small_clip, tmp_path, monkeypatch
):
  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  _, made = make(small_clip, "clip")
  path = tmp_path / "a" / "detector.onnx"
  path.parent.mkdir()
  export_onnx.write(made, path)
  expected = export_onnx.load(path)(images(2))
  monkeypatch.setattr(export_onnx, "LARGEST", 1000)
  other = tmp_path / "b" / "detector.onnx"
  other.parent.mkdir()
  written = export_onnx.write(made, other)
  assert [each.name for each in written] == [
    "detector.onnx",
    "detector.onnx.data",
  ]
  assert written[0].stat().st_size < path.stat().st_size / 3
  for new, old in zip(export_onnx.load(other)(images(2)), expected):
    np.testing.assert_array_equal(new, old)


def test_bfloat16_is_refused_for_onnx(small_clip):
  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  _, made = make(small_clip.with_dtype("bfloat16"), "clip")
  with pytest.raises(ValueError, match="config.backbone.dtype is bfloat16"):
    export_onnx.check(made)


def test_missing_packages_are_named(small_clip, monkeypatch):
  _, made = make(small_clip, "clip")
  monkeypatch.setattr(export_onnx, "_PACKAGES", ("onnx_that_is_missing",))
  with pytest.raises(ValueError, match=r"pip install 'zsad_jax\[onnx\]'"):
    export_onnx.check(made)
