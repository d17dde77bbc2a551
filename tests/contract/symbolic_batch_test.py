"""Methods and their ablations with a batch of unknown size, as in exports."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import methods
from zsad_jax.inference import export, export_onnx, predictor, program
from zsad_jax.layers import kernels

SIDE = 32
NOT_TINY = {"prompt_depth", "deep_depth", "feature_layers", "num_patches"}


def variants():
  """Return methods that score images alone, with changed settings."""
  found = []
  for name in methods.single_image_names():
    module = importlib.import_module(f"configs.{name}")
    found.append(pytest.param(name, {}, id=name))
    found += [
      pytest.param(name, fields, id=f"{name}:{variant}")
      for variant, fields in module.ABLATIONS.items()
      # Others are for deeper backbones, or for features of another width.
      if not NOT_TINY & fields.keys()
    ]
  return found


def make_program(name, fields, backbone):
  """Make the program of a method with random parameters."""
  settings = {**methods.tiny_settings(name), **fields}
  if "views" in settings:
    settings["views"] = fields.get("views", 22)
  method = methods.module(name).Method(**settings)
  params, stats = method.init(jax.random.key(0), backbone)

  def bank(images):
    batch = {"image": images, "class_id": jnp.zeros(len(images), jnp.int32)}
    features = predictor.encode(method, backbone, batch)
    return method.build_memory_bank(jax.tree.map(lambda x: x[None], features))

  needs = method.needs_references
  given = jax.random.randint(jax.random.key(1), (2, SIDE, SIDE, 3), 0, 255)
  return program.make(
    method,
    backbone,
    params=params,
    stats=stats,
    class_name="bottle",
    memory_bank=jax.jit(bank)(given.astype(jnp.uint8)) if needs else None,
    image_size=SIDE,
    smooth_sigma=1.0,
  )


@pytest.mark.parametrize(("name", "fields"), variants())
def test_shapes_of_a_symbolic_batch(name, fields, small_clip):
  made = make_program(name, fields, small_clip)
  (b,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((b, SIDE, SIDE, 3), jnp.uint8)
  with kernels.assume(kernels.Machine("gpu")):
    score, anomaly_map = jax.eval_shape(made.function, images)
  assert score.shape == (b,)
  assert anomaly_map.shape == (b, SIDE, SIDE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), variants())
def test_variants_as_onnx(name, fields, small_clip, tmp_path):
  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  made = make_program(name, fields, small_clip)
  path = tmp_path / "detector.onnx"
  export_onnx.write(made, path)
  images = np.random.default_rng(2).integers(0, 256, (3, SIDE, SIDE, 3))
  images = images.astype(np.uint8)
  with kernels.assume(kernels.Machine("gpu")):  # It smooths maps itself.
    score, anomaly_map = map(np.asarray, jax.jit(made.function)(images))
  found = export.differences(export_onnx.load(path), images, score, anomaly_map)
  assert max(found.values()) < export.TOLERANCE
