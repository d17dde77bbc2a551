"""Methods and their ablations with a batch of unknown size, as in exports."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from zsad_jax import methods
from zsad_jax.inference import predictor, program
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


@pytest.mark.parametrize(("name", "fields"), variants())
def test_shapes_of_a_symbolic_batch(name, fields, small_clip):
  settings = {**methods.tiny_settings(name), **fields}
  if "views" in settings:
    settings["views"] = fields.get("views", 22)
  method = methods.module(name).Method(**settings)
  params, stats = method.init(jax.random.key(0), small_clip)

  def bank(images):
    batch = {"image": images, "class_id": jnp.zeros(len(images), jnp.int32)}
    features = predictor.encode(method, small_clip, batch)
    return method.build_memory_bank(jax.tree.map(lambda x: x[None], features))

  needs = method.needs_references
  given = jax.random.randint(jax.random.key(1), (2, SIDE, SIDE, 3), 0, 255)
  made = program.make(
    method,
    small_clip,
    params=params,
    stats=stats,
    class_name="bottle",
    memory_bank=jax.jit(bank)(given.astype(jnp.uint8)) if needs else None,
    image_size=SIDE,
    smooth_sigma=1.0,
  )
  (b,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((b, SIDE, SIDE, 3), jnp.uint8)
  with kernels.assume(kernels.Machine("gpu")):
    score, anomaly_map = jax.eval_shape(made.function, images)
  assert score.shape == (b,)
  assert anomaly_map.shape == (b, SIDE, SIDE)
