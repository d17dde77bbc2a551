"""Training from cached features: the feature pass and the epochs after it.

The first epoch is the feature pass over all images and its steps, a further
epoch is the steps alone; both without compilation. For comparison some steps
encode their images; they must have the same loss.
"""

import dataclasses
import json
import pathlib
import tempfile
import time
import types as python_types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zsad_jax import methods, types
from zsad_jax.backbones.clip import model as clip
from zsad_jax.benchmark import data
from zsad_jax.benchmark.methods import (
  define_size_flags,
  make_method,
  random_backbone,
)
from zsad_jax.datasets import index, pipeline
from zsad_jax.inference import predictor
from zsad_jax.runtime import distributed, environment, files
from zsad_jax.training import feature_cache, optimizer, update_step

ADAM = {"learning_rate": 0.001, "b1": 0.5, "b2": 0.999, "eps": 1e-8}
BATCH, EPOCHS = 8, 2


def define_flags() -> None:
  """Define the command's flags."""
  define_size_flags()
  flags.DEFINE_list(
    "methods",
    None,
    "Methods to measure; default: all that are trained and cache all features "
    "of the image encoder.",
  )
  flags.DEFINE_integer("images", 32, "Images per epoch.", BATCH)
  flags.DEFINE_integer(
    "references", 4, "Normal reference images in addition.", 1
  )
  flags.DEFINE_integer(
    "encoding", 1, "Number of steps that encode their images.", 0
  )


def caching_methods(backbone: clip.Clip, image_size: int) -> list[str]:
  """Return the methods that are trained and need no pixels after encoding."""
  return [
    name for name in methods.names() if _caches(name, backbone, image_size)
  ]


def _caches(name, backbone, image_size):
  method = make_method(name, backbone.vision_layers)
  init = lambda: method.init(jax.random.key(0), backbone)
  params, _ = jax.eval_shape(init)
  batch = {
    "image": jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8),
    "class_id": jax.ShapeDtypeStruct((1,), jnp.int32),
  }
  encode = lambda batch: predictor.encode(method, backbone, batch)
  features = jax.eval_shape(encode, batch)
  return bool(jax.tree.leaves(params)) and "pixels" not in features


class Trainer:
  """A method with its parameters and optimizer state."""

  def __init__(self, method: types.Method, backbone: clip.Clip, mesh: Any):
    self._mesh = mesh
    params, stats = jax.jit(method.init)(jax.random.key(0), backbone)
    tx = optimizer.make("adam", ADAM, method.trainable_mask(params))
    self._state = {
      "model": {"params": params, "stats": stats},
      "training": {"opt": tx.init(params), "step": jnp.int32(0)},
    }
    self._frozen = backbone, method.prepare(backbone, ["x"])
    self._update, self._program = update_step.make(method, tx), None

  def step(self, batch: types.Batch) -> tuple[float, float]:
    """Take a step; return its loss and its seconds without compilation."""
    start = time.perf_counter()
    batch = {k: v for k, v in batch.items() if k != "index"}
    batch = predictor.put_batch(batch, self._mesh)
    rng = jax.random.key(0)
    if self._program is None:
      begin = time.perf_counter()
      lowered = self._update.lower(self._state, *self._frozen, batch, rng)
      self._program = lowered.compile()
      start += time.perf_counter() - begin
    self._state, found = self._program(self._state, *self._frozen, batch, rng)
    return float(found["loss"]), time.perf_counter() - start


def _config(image_size):
  """Return the fields of a configuration that the feature cache reads."""
  return python_types.SimpleNamespace(
    features=python_types.SimpleNamespace(
      storage="auto", dtype="float32", folder=""
    ),
    image_size=image_size,
    batch_size=BATCH,
    eval_batch_size=1,
    seed=0,
    skip_corrupt=False,
    decoded_cache="",
  )


def measure(
  name: str,
  backbone: clip.Clip,
  dataset: index.Dataset,
  options: Any,
) -> dict[str, Any]:
  """Measure the feature pass, steps from it and steps that encode."""
  method = make_method(name, backbone.vision_layers)
  mesh = distributed.make_mesh()
  config = _config(options.image_size)
  some = lambda samples: dataclasses.replace(dataset, test=samples)
  # One image first: its compiled programs are found in the cache.
  opened = lambda samples: feature_cache.FeatureCache(
    config, method, backbone, mesh, [some(samples)]
  )
  opened(dataset.test[:1]).compute()
  frozen = opened(dataset.test)
  start = time.perf_counter()
  frozen.compute()
  passed = time.perf_counter() - start
  per_epoch = pipeline.steps_per_epoch(len(dataset.test), BATCH)
  cached = Trainer(method, backbone, mesh)
  losses, seconds = _take(cached, _timed(frozen, per_epoch * EPOCHS))
  encoding = pipeline.train_batches(
    [dataset],
    image_size=options.image_size,
    batch_size=BATCH,
    seed=0,
    num_references=method.num_references,
    num_devices=jax.device_count(),
  )
  batches = ((next(encoding), 0.0) for _ in range(options.encoding))
  anew, spent = _take(Trainer(method, backbone, mesh), batches)
  first, last = sum(seconds[:per_epoch]), sum(seconds[-per_epoch:])
  return {
    "pass": passed,
    "first_epoch": passed + first,
    "last_epoch": last,
    "ratio": last / (passed + first),
    "steps": seconds,
    "encoding_steps": spent,
    "losses": losses,
    "difference": _difference(losses, anew),
  }


def _timed(frozen, number):
  """Yield batches of cached features, and the seconds to read each."""
  batches = frozen.batches(start_step=0)
  for _ in range(number):
    start = time.perf_counter()
    batch = next(batches)
    yield batch, time.perf_counter() - start


def _take(trainer, batches):
  """Take a step for each batch; return losses and seconds."""
  taken = []
  for batch, before in batches:
    loss, seconds = trainer.step(batch)
    taken.append((loss, before + seconds))
  return [loss for loss, _ in taken], [seconds for _, seconds in taken]


def _difference(losses, anew) -> float | None:
  """Return the largest difference between losses of the same step."""
  pairs = zip(losses, anew, strict=False)
  return max((abs(a - b) for a, b in pairs), default=None)


def main(options: Any) -> None:
  """Run the benchmark."""
  backbone = random_backbone(options)
  rows = {}
  with tempfile.TemporaryDirectory() as folder:
    number = options.images + 2 * options.references  # Every second is normal.
    samples = data.write(pathlib.Path(folder), number)
    normal = [s for s in samples[options.images :] if not s.label]
    dataset = index.make_dataset(
      "photographs", folder, train=normal, test=samples[: options.images]
    )
    names = options.methods or caching_methods(backbone, options.image_size)
    for name in names:
      rows[name] = row = measure(name, backbone, dataset, options)
      print(_line(name, row), flush=True)
  if options.json:
    document = dict(
      model=options.model,
      dtype=options.dtype,
      image_size=options.image_size,
      images=options.images,
      references=options.references,
      batch=BATCH,
      rows=rows,
      **environment.setting(),
    )
    files.write_text(options.json, json.dumps(document, indent=1) + "\n")


def _line(name, row):
  """Format a row of the table."""
  parts = [
    f"{name:12} feature pass {row['pass']:8.2f} s",
    f"steps {np.median(row['steps']):7.3f} s each",
    f"further epoch {100 * row['ratio']:.1f} % of the first",
  ]
  if row["encoding_steps"]:
    spent = np.median(row["encoding_steps"])
    parts.append(f"steps that encode {spent:8.2f} s")
    parts.append(f"losses differ by {row['difference']:.1e}")
  return "  ".join(parts)
