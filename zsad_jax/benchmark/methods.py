"""Time and memory of the vision tower and of each method, on random weights.

The unit is one plain pass of the vision tower over the same images, the floor
the rate of matrix products of its shapes; both are measured in the same run.
Needs neither TensorFlow nor ml_collections.
"""

import importlib
import json
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zsad_jax import files, predictor, setting
from zsad_jax.clip import backbone as clip
from zsad_jax.clip.config import MODELS, ClipConfig
from zsad_jax.datasets import preprocess

METHODS = ("clip", "anomalyclip", "faprompt", "adaptclip", "adaclip")


class Clock:
  """Times compiled functions in turns, so that disturbances hit all alike."""

  def __init__(self, rounds: int):
    self._rounds, self._calls, self.first = rounds, {}, {}

  def add(self, name: str, function, *arguments) -> None:
    """Compiles a function, which is timed from then on."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    self.first[name] = time.perf_counter() - start
    self._calls[name] = function, arguments

  def medians(self) -> dict[str, float]:
    """Seconds of each, the median of all rounds."""
    seconds = {name: [] for name in self._calls}
    for _ in range(self._rounds):
      for name, (function, arguments) in self._calls.items():
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def vision_flops(config: ClipConfig, side: int) -> int:
  """Of one image: projections and MLP of each block, attention, patches."""
  tokens, c = 1 + (side // config.patch_size) ** 2, config.vision_width
  block = 24 * tokens * c**2 + 4 * tokens**2 * c
  patches = 2 * (tokens - 1) * 3 * config.patch_size**2 * c
  return config.vision_layers * block + patches


def products(config: ClipConfig, tokens: int, dtype):
  """The matrix products of a block, and their FLOPs."""
  c = config.vision_width
  shapes = ((c, 3 * c), (c, c), (c, 4 * c), (4 * c, c))
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  pairs = [(draw(tokens, m), draw(m, n)) for m, n in shapes]
  flops = sum(2 * tokens * m * n for m, n in shapes)
  return jax.jit(lambda pairs: [x @ w for x, w in pairs]), pairs, flops


def torch_vision(config: ClipConfig, image):
  """transformers' CLIP on the same input; None where torch is missing."""
  try:
    import torch
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
  """Largest memory so far, of the device or, on a CPU, of the process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return stats["peak_bytes_in_use"] / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Case:
  """One method, with its fields, on one batch of random images."""

  def __init__(self, name, backbone, pixels, **fields):
    module = importlib.import_module(f"zsad_jax.methods.{name}")
    self.method = module.Method(**fields)
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

  def inference(self, shots: int):
    """A compiled prediction beside cached references, and its arguments."""
    method, keys = self.method, ("image", "class_id")
    if shots and not method.num_references:
      raise ValueError("Few-shot is measured for what learns from references.")

    def predict(model, backbone, aux, batch, memory):
      features = predictor.encode(method, backbone, batch)
      if memory is not None:
        features = {**features, "memory": memory}
      return method.predict(*model, backbone, aux, features)

    given = {key: self.batch[key] for key in keys}
    memory = self._memory(shots) if shots else None
    arguments = self.model, self._backbone, self.aux, given, memory
    return jax.jit(predict), arguments

  def _memory(self, shots):
    one = {k: self.batch[k][:1] for k in ("image", "class_id")}
    encode = jax.jit(lambda backbone, batch: predictor.encode(
        self.method, backbone, batch))  # fmt: skip
    features = encode(self._backbone, one)
    several = jax.tree.map(
        lambda x: jnp.repeat(x[None], shots, axis=1), features
    )
    return self.method.remember(several)

  def training(self, cached: bool, gradient: bool = True):
    """The gradient of a step, or its loss, and their arguments."""
    method, batch = self.method, dict(self.batch)
    encode = jax.jit(lambda backbone, batch: predictor.encode(
        method, backbone, batch))  # fmt: skip
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
def plain(backbone, pixels):
  """One pass of the vision tower."""
  return backbone.image(preprocess.normalize(pixels))[0]


def define_size_flags():
  """Flags of several parts."""
  flags.DEFINE_string("model", "ViT-L-14-336", "Sizes of the backbone.")
  flags.DEFINE_integer("image_size", 518, "Side of the images.", 14)
  flags.DEFINE_integer("rounds", 3, "Of which medians are taken.", 1)


def define_case_flags():
  """Flags of the parts that run some methods on one batch."""
  define_size_flags()
  flags.DEFINE_list("methods", list(METHODS), "To be measured.")
  flags.DEFINE_integer("batch", 1, "Images at a time.", 1)


def define_flags():
  """The command's flags; defined only when it is run."""
  define_case_flags()
  flags.DEFINE_bool("training", False, "Measure training steps, too.")
  flags.DEFINE_integer("shots", 4, "Cached references of AdaptCLIP.", 0)


def main(options):
  config, side, b = MODELS[options.model], options.image_size, options.batch
  backbone = jax.device_put(clip.random_clip(config, 0))
  rng = np.random.default_rng(0)
  pixels = jnp.asarray(rng.integers(0, 256, (b, side, side, 3)), jnp.uint8)
  clock = Clock(options.rounds)

  tokens = b * (1 + (side // config.patch_size) ** 2)
  multiply, pairs, product_flops = products(config, tokens, jnp.float32)
  clock.add("matrix products", multiply, pairs)
  clock.add("vision tower", plain, backbone, pixels)
  peer = torch_vision(config, preprocess.normalize(pixels))
  if peer:
    clock.add("transformers", peer)
  for name in options.methods:
    case = Case(name, backbone, pixels)
    shots = [0]
    if case.method.num_references and options.shots:
      shots.append(options.shots)
    for k in shots:
      function, arguments = case.inference(k)
      clock.add(f"{name}, {k} shots" if k else name, function, *arguments)
    if options.training and name != "clip":
      cached = name != "adaclip"
      function, arguments = case.training(cached)
      what = "cached step" if cached else "step"
      clock.add(f"{name}, {what}", function, *arguments)
  seconds = clock.medians()
  report(options, clock, seconds, product_flops, vision_flops(config, side) * b)


def report(options, clock, seconds, product_flops, flops):
  """Prints the table; keeps the numbers."""
  rate = product_flops / seconds["matrix products"]
  unit = seconds["vision tower"]
  print(
      f"{options.model} at {options.image_size} px, {options.batch} images at "
      "a time, float32; matrix products of its shapes: "
      f"{rate / 1e9:.0f} GFLOP/s"
  )
  rows = {}
  for name, value in seconds.items():
    row = {"seconds": value, "first_seconds": clock.first[name]}
    row["images_per_second"] = options.batch / value
    row["vision_passes"] = value / unit
    rows[name] = row
    print(
        f"{name:24} {value:9.3f} s {row['images_per_second']:8.2f} images/s "
        f"{row['vision_passes']:6.2f} passes, "
        f"first {row['first_seconds']:.1f} s"
    )
  share = flops / unit / rate
  ratios = {"vision tower / matrix products, rate": share}
  if "transformers" in seconds:
    ratios["transformers / vision tower, time"] = seconds["transformers"] / unit
  for name, value in ratios.items():
    print(f"{name}: {value:.2f}")
  print(f"peak memory: {peak_gib():.2f} GiB")
  if options.json:
    document = dict(
        model=options.model, image_size=options.image_size, batch=options.batch,
        matrix_gflops=rate / 1e9, vision_gflop=flops / options.batch / 1e9,
        rows=rows, ratios=ratios, peak_gib=peak_gib(), **setting.setting(),
    )  # fmt: skip
    files.write_text(options.json, json.dumps(document, indent=1) + "\n")
