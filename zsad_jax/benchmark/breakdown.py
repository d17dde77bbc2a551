"""Where the time of a prediction goes, from the file to the metrics.

The head is a method on a CLIP whose towers do not run, the text what its text
tower adds, vision the rest. Needs neither TensorFlow nor
ml_collections.
"""

import functools
import json
import pathlib
import tempfile

import flax
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage

from zsad_jax.backbones.clip import model as clip
from zsad_jax.benchmark import roofline
from zsad_jax.benchmark.methods import (
  Case,
  Clock,
  define_case_flags,
  random_backbone,
)
from zsad_jax.datasets import preprocess
from zsad_jax.layers import kernels, smoothing
from zsad_jax.metrics import streaming
from zsad_jax.runtime import environment, files

SIDE, SIGMA = 900, 4.0  # Of the file, of the Gaussian over maps, in pixels.
PARTS = ("decode", "vision", "text", "head", "smooth", "metrics")
WITHOUT = {"whole": (), "blind": ("image",), "head": ("image", "text")}


@flax.struct.dataclass
class Without(clip.Clip):
  """A CLIP some of whose towers, "image" and "text", do not run."""

  towers: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

  def image(self, image, **hooks):
    return self._run("image", super().image, image, **hooks)

  def text(self, embeds, end, **hooks):
    return self._run("text", super().text, embeds, end, **hooks)

  def _run(self, name, tower, *given, **hooks):
    run = functools.partial(tower, *given, **hooks)
    if name not in self.towers:
      return run()
    # Nothing constant, with which the compiler would shorten what follows.
    value = given[0].ravel()[0]

    def drawn(x):
      places = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)
      return jnp.cos(value + places).astype(x.dtype)

    return jax.tree.map(drawn, jax.eval_shape(run))


def on_the_host(side: int, maps: np.ndarray):
  """What happens outside the method: function and arguments of each part."""
  rng = np.random.default_rng(0)
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name) / "image.png"
  pixels = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3)).astype(np.uint8)
  picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.BICUBIC)
  picture.save(path)
  masks = np.zeros(maps.shape, bool)
  masks[:, : side // 4, : side // 4] = True

  def decode(keep=folder):
    del keep  # The file is there as long as it is read.
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


define_flags = define_case_flags


def main(options):
  side, b = options.image_size, options.batch
  backbone = random_backbone(options)
  pixels = np.random.default_rng(0).integers(0, 256, (b, side, side, 3))
  clock, work = Clock(options.rounds), {}
  for kind, towers in WITHOUT.items():
    twin = Without(
      backbone.params, backbone.config, backbone.dtype, towers=towers
    )
    for name in options.methods:
      case = Case(name, twin, jnp.asarray(pixels, jnp.uint8))
      function, arguments = case.inference(0)
      clock.add(f"{name}/{kind}", function, *arguments)
      work[f"{name}/{kind}"] = roofline.flops(function, *arguments) / b / 1e9
  maps = np.asarray(function(*arguments)["anomaly_map"])
  for name, (function, arguments) in on_the_host(side, maps).items():
    clock.add(name, function, *arguments)
  seconds = {name: value / b for name, value in clock.medians().items()}
  rows = {}
  for name in options.methods:
    outside = {k: seconds[k] for k in ("decode", "smooth", "metrics")}
    rows[name] = {**outside, **_inside(name, seconds)}
    rows[name]["gflop"] = _inside(name, work)
  print(f"{options.model} at {side} px, {b} images at a time: ms per image")
  print(f"{'':14}" + "".join(f"{part:>10}" for part in PARTS))
  for name, row in rows.items():
    print(f"{name:14}" + "".join(f"{1e3 * row[part]:10.1f}" for part in PARTS))
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
  """Each part of a method, of seconds or FLOPs of its three programs."""
  whole, blind, head = (values[f"{name}/{kind}"] for kind in WITHOUT)
  return {"vision": whole - blind, "text": blind - head, "head": head}
