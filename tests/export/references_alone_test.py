"""Export of methods of references alone, on a DINOv2."""

import numpy as np
import pytest

from zsad_jax import methods
from zsad_jax.backbones.dinov2 import model as dinov2
from zsad_jax.backbones.dinov2.config import DinoConfig
from zsad_jax.inference import export, program
from zsad_jax.inference.predictor import Predictor
from zsad_jax.runtime import distributed

SETTINGS = {
  "anomalydino": dict(masking="always", mask_threshold=0.5, rotations=(0.0,)),
  "subspacead": dict(feature_layers=(1, 2), num_rotations=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", export.FORMATS)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_program_computes_what_the_method_does(name, form, tmp_path):
  if form == "onnx":
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
  sizes = DinoConfig(
    width=64, layers=2, image_size=64, patch_size=8, registers=2
  )
  backbone = dinov2.random_dinov2(sizes, 0)
  method = methods.module(name).Method(**SETTINGS[name])
  mesh = distributed.make_mesh()
  predictor = Predictor(method, backbone, ["x"], mesh)
  images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
  bank = predictor.build_memory_bank(images[:2], 0, batch_size=2)
  batch = {"image": images[2:], "class_id": np.zeros(3, np.int32)}
  (found,) = predictor.predict({}, {}, predictor.encode(batch), (bank,))
  made = program.make(
    method,
    backbone,
    params={},
    stats={},
    class_name="x",
    memory_bank=bank,
    image_size=64,
    smooth_sigma=0.0,
  )
  module = export.module(form)
  path = tmp_path / f"detector{module.SUFFIX}"
  module.check(made)
  module.write(made, path)
  maps = np.asarray(found["anomaly_map"])
  difference = export.differences(
    module.load(path), images[2:], np.asarray(found["pred_score"]), maps
  )
  assert max(difference.values()) < export.TOLERANCE
