"""Time of a prediction by stage, from the file to the metrics.

"head" is the time of a method on a CLIP whose towers do not run, "text" the
time its text tower adds to that, "vision" the rest. Needs neither TensorFlow
nor ml_collections.
"""

import functools
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage

from zsad_jax.backbones.clip import model as clip
from zsad_jax.benchmark import roofline
from zsad_jax.benchmark.clock import Clock
from zsad_jax.benchmark.methods import (
  Case,
  define_case_flags,
  random_backbone,
)
from zsad_jax.datasets import preprocess
from zsad_jax.layers import kernels, smoothing
from zsad_jax.metrics import streaming
from zsad_jax.runtime import environment, files

SIDE, SIGMA = 900, 4.0  # Pixels: of the file, of the Gaussian over maps.
STAGES = ("decode", "vision", "text", "head", "smooth", "metrics")
SKIPPED = {"whole": (), "no image": ("image",), "head": ("image", "text")}


@flax.struct.dataclass
class WithoutTowers(clip.Clip):
  """A CLIP of which the given towers, "image" or "text", do not run."""

  towers: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

  def image(self, image: jax.Array, **hooks: Any) -> Any:
    """Encode images, or return arrays of the same shapes."""
    return self._run("image", super().image, image, **hooks)

  def text(self, embeds: jax.Array, end: Any, **hooks: Any) -> Any:
    """Encode texts, or return arrays of the same shapes."""
    return self._run("text", super().text, embeds, end, **hooks)

  def _run(self, name, tower, *given, **hooks):
    run = functools.partial(tower, *given, **hooks)
    if name not in self.towers:
      return run()
    # No constants: the compiler would fold the operations that use them.
    value = given[0].ravel()[0]

    def pseudorandom(x):
      index = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)
      return jnp.cos(value + index).astype(x.dtype)

    return jax.tree.map(pseudorandom, jax.eval_shape(run))


def outside_the_method(
  side: int, maps: np.ndarray
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
  """Return function and arguments of each stage outside the method."""
  rng = np.random.default_rng(0)
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name) / "image.png"
  pixels = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3)).astype(np.uint8)
  image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
  image.save(path)
  masks = np.zeros(maps.shape, bool)
  masks[:, : side // 4, : side // 4] = True

  def decode(keep=folder):
    del keep  # Keeps the file alive.
    return [preprocess.load_image(path, side) for _ in maps]

  def smooth(maps):
    if kernels.smooths_maps():
      return jax.jit(lambda x: smoothing.gaussian(x, SIGMA))(maps)
    return ndimage.gaussian_filter(np.asarray(maps), (0, SIGMA, SIGMA))

  def metrics(maps):
    state = streaming.PixelState.init()
    state.update(masks, maps)
    return []

  return {
    "decode": (decode, ()),
    "smooth": (smooth, (maps,)),
    "metrics": (metrics, (np.asarray(maps),)),
  }


def define_flags() -> None:
  """Define the command's flags."""
  define_case_flags()


def main(options: Any) -> None:
  """Run the benchmark."""
  side, b = options.image_size, options.batch
  backbone = random_backbone(options)
  pixels = np.random.default_rng(0).integers(0, 256, (b, side, side, 3))
  clock, work, prediction = Clock(options.rounds), {}, {}
  for kind, towers in SKIPPED.items():
    twin = WithoutTowers(
      params=backbone.params,
      config=backbone.config,
      dtype=backbone.dtype,
      towers=towers,
    )
    for name in options.methods:
      case = Case(name, twin, jnp.asarray(pixels, jnp.uint8))
      function, arguments = case.inference(0)
      clock.add(f"{name}/{kind}", function, *arguments)
      work[f"{name}/{kind}"] = roofline.flops(function, *arguments) / b / 1e9
      prediction = function(*arguments)
  maps = np.asarray(prediction["anomaly_map"])
  for name, (function, arguments) in outside_the_method(side, maps).items():
    clock.add(name, function, *arguments)
  seconds = {name: value / b for name, value in clock.medians().items()}
  rows = {}
  for name in options.methods:
    outside = {k: seconds[k] for k in ("decode", "smooth", "metrics")}
    rows[name] = {**outside, **_inside(name, seconds)}
    rows[name]["gflop"] = _inside(name, work)
  print(f"{options.model} at {side} px, {b} images at a time: ms per image")
  print(f"{'':14}" + "".join(f"{stage:>10}" for stage in STAGES))
  for name, row in rows.items():
    print(
      f"{name:14}" + "".join(f"{1e3 * row[stage]:10.1f}" for stage in STAGES)
    )
  if options.json:
    document = dict(
      model=options.model,
      dtype=options.dtype,
      image_size=side,
      batch=b,
      rows=rows,
    )
    text = json.dumps({**document, **environment.setting()}, indent=1) + "\n"
    files.write_text(options.json, text)


def _inside(name, values):
  """Split seconds or FLOPs of a method's three programs into stages."""
  whole, no_image, head = (values[f"{name}/{kind}"] for kind in SKIPPED)
  return {"vision": whole - no_image, "text": no_image - head, "head": head}
