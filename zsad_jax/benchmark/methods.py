"""Time and memory of the vision tower and of each method, on random weights.

The unit is one plain pass of the vision tower over the same images. The
roofline bounds are the FLOPs, at the rate of matrix products of its shapes, and
the bytes, at the rate of copying and without any cache; both rates are measured
in the same run. Needs neither TensorFlow nor ml_collections.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zsad_jax import methods
from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip.config import MODELS, ClipConfig
from zsad_jax.benchmark import roofline
from zsad_jax.benchmark.clock import Clock
from zsad_jax.inference import predictor
from zsad_jax.runtime import environment, files

COPIED, COPIES = 2**28, 8  # Bytes, repetitions.
BLOCKS = 8  # Of the tower, whose matrix products are timed together.


def products(
  config: ClipConfig, tokens: int, dtype: str
) -> tuple[Callable[..., Any], jax.Array, list[jax.Array]]:
  """Return the matrix products of several blocks, and their arguments.

  Several, since the start of a program takes as long as those of one block on
  a GPU.
  """
  c = config.vision_width
  shapes = ((c, 3 * c), (c, c), (c, 4 * c), (4 * c, c))
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  weights = [draw(BLOCKS, m, n) / m**0.5 for m, n in shapes]

  def product(x, w):
    # As in the towers: some CPUs have fast bfloat16 for float32 sums alone.
    return jnp.matmul(x, w, preferred_element_type=jnp.float32).astype(dtype)

  def block(x, weights):
    queries, keys, values = jnp.split(product(x, weights[0]), 3, axis=1)
    x = product(queries + keys + values, weights[1])
    return product(product(x, weights[2]), weights[3]), None

  multiply = jax.jit(lambda x, weights: jax.lax.scan(block, x, weights)[0])
  return multiply, draw(tokens, c), weights


@jax.jit
def copy(x: jax.Array) -> jax.Array:
  """Read and write an array several times, with one allocation."""
  return jax.lax.fori_loop(0, COPIES, lambda _, x: x + 1, x)


def torch_vision(
  config: ClipConfig, image: jax.Array
) -> Callable[[], None] | None:
  """Return transformers' CLIP on the same input; None without torch."""
  try:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers
  except ImportError:
    return None
  sizes = transformers.CLIPVisionConfig(
    hidden_size=config.vision_width,
    intermediate_size=4 * config.vision_width,
    num_hidden_layers=config.vision_layers,
    num_attention_heads=config.vision_heads,
    image_size=config.image_size,
    patch_size=config.patch_size,
  )
  model = transformers.CLIPVisionModel(sizes).eval()
  pixels = torch.from_numpy(np.array(image).transpose(0, 3, 1, 2))

  def run():
    with torch.inference_mode():
      model(pixels, interpolate_pos_encoding=True)

  return run


def peak_gib() -> float:
  """Return the peak memory of the device or, on a CPU, of the process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return stats["peak_bytes_in_use"] / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_method(name: str, layers: int, **fields: Any) -> Any:
  """Build a method for a vision tower of the given depth.

  Defaults are for the 24 layers of ViT-L, or for those of the module's DEPTH.
  For another depth, feature layers are at the same fraction of the depth, and
  the value-value stream starts after the first quarter, as in AdaptCLIP's
  configuration for 12.
  """
  method, depth = methods.module(name).Method(), methods.depth(name)
  scaled = lambda layer: layer * layers // depth
  fit = {
    "feature_layer": scaled,
    "feature_layers": lambda chosen: tuple(map(scaled, chosen)),
    "vv_from": lambda _: layers // 4 + 1,
  }
  for field, fitted in fit.items():
    value = getattr(method, field, None)  # None does not depend on the depth.
    if layers != depth and value is not None:
      fields.setdefault(field, fitted(value))
  return dataclasses.replace(method, **fields)


class Case:
  """One method on one batch of random images.

  Args:
    name: of the method.
    backbone: a CLIP of any depth.
    pixels: uint8 (b, h, w, 3).
    **fields: settings of the method.
  """

  def __init__(
    self, name: str, backbone: clip.Clip, pixels: jax.Array, **fields: Any
  ):
    self.method = make_method(name, backbone.vision_layers, **fields)
    self._backbone, side = backbone, pixels.shape[1]
    b = len(pixels)
    self.batch = {
      "image": pixels,
      "class_id": jnp.zeros(b, jnp.int32),
      "mask": jnp.zeros((b, side, side), jnp.uint8).at[:, :50, :50].set(1),
      "has_mask": jnp.ones(b, bool),
      "label": jnp.ones(b, jnp.int32),
      "weight": jnp.ones(b, jnp.float32),
    }
    self.model = jax.jit(self.method.init)(jax.random.key(0), backbone)
    self.aux = self.method.prepare(backbone, ["object"])

  def inference(self, shots: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a prediction with cached references, and its arguments.

    Methods that predict only with references have one at least.
    """
    method, keys = self.method, ("image", "class_id")
    shots = shots or int(method.needs_references)
    if shots and not method.compares_references:
      raise ValueError(
        "Few-shot is measured for methods that compare references themselves."
      )

    def predict(model, backbone, aux, batch, memory):
      features = predictor.encode(method, backbone, batch)
      if memory is not None:
        features = {**features, "memory_bank": memory}
      return method.predict(*model, backbone, aux, features)

    given = {key: self.batch[key] for key in keys}
    memory = self._memory(shots) if shots else None
    arguments = self.model, self._backbone, self.aux, given, memory
    return jax.jit(predict), arguments

  def _memory(self, shots):
    one = {k: self.batch[k][:1] for k in ("image", "class_id")}
    encode = jax.jit(
      lambda backbone, batch: predictor.encode(self.method, backbone, batch)
    )
    features = encode(self._backbone, one)
    several = jax.tree.map(
      lambda x: jnp.repeat(x[None], shots, axis=1), features
    )
    return self.method.build_memory_bank(several)

  def training(
    self, cached: bool, gradient: bool = True
  ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a step's gradient, or its loss, and the arguments."""
    method, batch = self.method, dict(self.batch)
    encode = jax.jit(
      lambda backbone, batch: predictor.encode(method, backbone, batch)
    )
    given = {k: batch[k] for k in ("image", "class_id")}
    if method.num_references:
      given["references"] = batch["image"][:, None]
    if cached:
      batch["encoded"] = encode(self._backbone, given)
      del batch["image"]
    else:
      batch |= given

    def step(model, backbone, aux, batch):
      batch = dict(batch)
      features = batch.pop("encoded", None)
      if features is None:
        features = predictor.encode(method, backbone, batch)
      loss = lambda params: method.loss(
        params, model[1], backbone, aux, features, batch, jax.random.key(0)
      )
      if not gradient:
        return loss(model[0])[0]
      return jax.grad(loss, has_aux=True)(model[0])[0]

    return jax.jit(step), (self.model, self._backbone, self.aux, batch)


@jax.jit
def plain(backbone: clip.Clip, pixels: jax.Array) -> jax.Array:
  """Run one pass of the vision tower."""
  return backbone.image(backbone.normalize(pixels))[0]


def define_model_flags() -> None:
  """Define the flags of benchmarks with a backbone of full size."""
  flags.DEFINE_string(
    "model", "ViT-L-14-336", "Model whose sizes the backbone has."
  )
  flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of its matrix products."
  )


def define_rounds() -> None:
  """Define the flag of benchmarks that time functions in turns."""
  flags.DEFINE_integer("rounds", 3, "Rounds; medians are reported.", 1)


def random_backbone(options: Any) -> clip.Clip:
  """Build the backbone of the flags with random weights, on the device."""
  drawn = clip.random_clip(MODELS[options.model], 0)
  return jax.device_put(drawn.with_dtype(options.dtype))


def define_size_flags() -> None:
  """Define the flags of the model and the image size."""
  define_model_flags()
  flags.DEFINE_integer("image_size", 518, "Image size in pixels.", 14)


def define_case_flags() -> None:
  """Define the flags of benchmarks that run methods on one batch."""
  define_size_flags()
  define_rounds()
  flags.DEFINE_list(
    "methods", methods.single_image_names(), "Methods to measure."
  )
  flags.DEFINE_integer("batch", 1, "Batch size.", 1)


def define_flags() -> None:
  """Define the command's flags."""
  define_case_flags()
  flags.DEFINE_bool(
    "training",
    False,
    "Measure training steps, too, with and without cached features.",
  )
  flags.DEFINE_integer(
    "shots",
    4,
    "Cached references, for methods that compare references themselves.",
    0,
  )


def main(options: Any) -> None:
  """Run the benchmark."""
  side, b = options.image_size, options.batch
  backbone = random_backbone(options)
  rng = np.random.default_rng(0)
  pixels = jnp.asarray(rng.integers(0, 256, (b, side, side, 3)), jnp.uint8)
  clock, facts = Clock(options.rounds), {}

  def add(name, function, *arguments):
    facts[name] = examine(function, *arguments)
    clock.add(name, facts[name].pop("program"), *arguments)

  add("copy", copy, jnp.zeros(COPIED // 4))
  tokens = b * (1 + (side // backbone.patch_size) ** 2)
  add("matrix products", *products(backbone.config, tokens, options.dtype))
  add("vision tower", plain, backbone, pixels)
  image = jnp.asarray(backbone.normalize(pixels))
  peer = torch_vision(backbone.config, image)
  if peer:
    clock.add("transformers", peer)
  for name in options.methods:
    case = Case(name, backbone, pixels)
    few = case.method.compares_references and options.shots
    counts = [0, options.shots] if few else [0]
    if case.method.needs_references:
      counts = [options.shots or 1]
    for shots in counts:
      function, arguments = case.inference(shots)
      add(f"{name}, {shots} shots" if shots else name, function, *arguments)
    learns = bool(jax.tree.leaves(case.model[0]))
    for kind in ["cached step", "step"] if options.training and learns else []:
      function, arguments = case.training(cached=kind == "cached step")
      add(f"{name}, {kind}", function, *arguments)
  report(options, clock, facts)


def examine(function: Any, *arguments: Any) -> dict[str, Any]:
  """Compile a jitted function; measure compilation, memory, FLOPs, bytes."""
  start = time.perf_counter()
  program = function.lower(*arguments).compile()
  return {
    "program": program,
    "compile_seconds": time.perf_counter() - start,
    # Without the arguments.
    "gib": program.memory_analysis().temp_size_in_bytes / 2**30,
    "flops": roofline.flops(function, *arguments),
    "bytes": roofline.moved(function, *arguments),
  }


def report(
  options: Any, clock: Clock, facts: dict[str, dict[str, Any]]
) -> None:
  """Print the table and write the numbers."""
  seconds = clock.medians()
  rate = facts["matrix products"]["flops"] / seconds["matrix products"]
  bandwidth = 2 * COPIES * COPIED / seconds.pop("copy")
  print(
    f"{options.model} at {options.image_size} px, batch {options.batch}, "
    f"{options.dtype}; matrix products of its shapes: "
    f"{rate / 1e9:.0f} GFLOP/s; copying: {bandwidth / 1e9:.0f} GB/s"
  )
  rows = {}
  for name, value in seconds.items():
    known = facts.get(name, {})
    rows[name] = row = {
      "seconds": value,
      "images_per_second": options.batch / value,
      "vision_passes": value / seconds["vision tower"],
      "first_seconds": clock.first[name] + known.get("compile_seconds", 0.0),
    }
    if known:
      row["gib"] = known["gib"]
      row["gflop"] = known["flops"] / options.batch / 1e9
      row["gbyte"] = known["bytes"] / options.batch / 1e9
      row["rate_share"] = known["flops"] / value / rate
      row["flop_seconds"] = known["flops"] / rate
      row["byte_seconds"] = known["bytes"] / bandwidth
    print(_line(name, row))
  ratios = _ratios(rows)
  for name, value in ratios.items():
    print(f"{name}: {value:.2f}")
  print(f"peak memory: {peak_gib():.2f} GiB")
  if options.json:
    document = dict(
      model=options.model,
      image_size=options.image_size,
      batch=options.batch,
      dtype=options.dtype,
      matrix_gflops=rate / 1e9,
      copy_gbytes=bandwidth / 1e9,
      rows=rows,
      ratios=ratios,
      peak_gib=peak_gib(),
      **environment.setting(),
    )
    files.write_text(options.json, json.dumps(document, indent=1) + "\n")


def _line(name, row):
  """Format a row of the table."""
  parts = [
    f"{name:26}{row['seconds']:9.3f} s",
    f"{row['images_per_second']:8.2f} images/s",
    f"{row['vision_passes']:6.2f} passes",
    f"first {row['first_seconds']:5.1f} s",
  ]
  if "gflop" in row:
    parts.append(f"{row['gib']:6.2f} GiB")
    parts.append(
      f"{row['gflop']:7.0f} GFLOP and {row['gbyte']:5.1f} GB an image"
    )
    parts.append(f"{100 * row['rate_share']:3.0f} % of the products' rate")
    parts.append(
      f"bounds {row['flop_seconds']:.3f} and {row['byte_seconds']:.3f} s"
    )
  return "  ".join(parts)


def _ratios(rows):
  tower = rows["vision tower"]
  ratios = {"vision tower / matrix products, rate": tower["rate_share"]}
  if "transformers" in rows:
    seconds = rows["transformers"]["seconds"]
    ratios["transformers / vision tower, time"] = seconds / tower["seconds"]
  return ratios
