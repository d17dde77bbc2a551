"""Nearest-neighbour search in a large memory bank, and its greedy coreset.

The floor of the search is its products, of which only the largest value is
kept. The floor of a coreset's step is one pass over the bank, its product with
a vector.
"""

import functools
import json
import pathlib
import platform
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float

from zsad_jax.layers import coreset, kernels, neighbors
from zsad_jax.runtime import environment, files

ROWS = 4096  # Vectors that are drawn at a time.


@functools.partial(jax.jit, static_argnames=("count", "width"))
def draw(
  key: jax.Array, count: int, width: int
) -> Float[Array, "{count} {width}"]:
  """Draw unit vectors block by block, without a second copy of them."""
  bank = jnp.zeros((count, width), jnp.float32)
  rows = min(ROWS, count)

  def fill(i, bank):
    block = jax.random.normal(jax.random.fold_in(key, i), (rows, width))
    block /= jnp.linalg.norm(block, axis=1, keepdims=True)
    start = jnp.minimum(i * rows, count - rows)
    return jax.lax.dynamic_update_slice_in_dim(bank, block, start, 0)

  return jax.lax.fori_loop(0, -(-count // rows), fill, bank)


def peak_mib() -> float:
  """Return the peak memory: of the device where it states one, or process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 2**20
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(
  programs: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]],
  rounds: int,
) -> dict[str, tuple[float, Any]]:
  """Compile programs and run them in turns.

  Args:
    programs: function and arguments by name.
    rounds: runs of each program.

  Returns:
    Median seconds of each, without compilation, and its last result.
  """
  compiled = {
    name: (jax.jit(function).lower(*arguments).compile(), arguments)
    for name, (function, arguments) in programs.items()
  }
  seconds: dict[str, list[float]] = {name: [] for name in programs}
  results = {}
  for _ in range(rounds):
    for name, (program, arguments) in compiled.items():
      start = time.perf_counter()
      results[name] = jax.block_until_ready(program(*arguments))
      seconds[name].append(time.perf_counter() - start)
  return {n: (float(np.median(s)), results[n]) for n, s in seconds.items()}


def products(query: jax.Array, bank: jax.Array) -> jax.Array:
  """Return the largest product, by the blocks of the search."""
  queries, references = kernels.neighbor_block()
  n, rows = len(bank), min(references, len(bank))
  size = queries or len(query)
  tiles = jnp.pad(query, ((0, -len(query) % size), (0, 0)))

  def of_tile(tile):
    def largest(i, best):
      start = jnp.minimum(i * rows, n - rows)
      part = jax.lax.dynamic_slice_in_dim(bank, start, rows)
      axes = (((1,), (1,)), ((), ()))
      found = jax.lax.dot_general(tile, part, axes, precision=kernels.EXACT)
      return jnp.maximum(best, found.max())

    return jax.lax.fori_loop(0, -(-n // rows), largest, -jnp.inf)

  return jax.lax.map(of_tile, tiles.reshape(-1, size, query.shape[1])).max()


def search(
  query: jax.Array, bank: jax.Array, rounds: int
) -> dict[str, dict[str, float]]:
  """Return seconds of the floor and of both metrics, and units of the floor.

  Raises:
    ValueError: a vector of the bank is not found.
  """
  programs: dict[str, Any] = {"floor": (products, (query, bank))}
  for metric in neighbors.METRICS:
    run = functools.partial(neighbors.nearest, metric=metric)
    programs[metric] = run, (query, bank)
  found = measure(programs, rounds)
  floor = found["floor"][0]
  rows = {"floor": {"seconds": floor, "in_floors": 1.0}}
  for metric in neighbors.METRICS:
    seconds, (distance, _) = found[metric]
    if float(distance[0]) > 1e-3:  # The first query is in the bank.
      raise ValueError(f"{metric}: the distance of a stored vector is not 0.")
    rows[metric] = {"seconds": seconds, "in_floors": seconds / floor}
  return rows


def choice(
  bank: jax.Array, steps: int, rounds: int
) -> dict[str, dict[str, float]]:
  """Return seconds per step of the coreset, and units of a pass."""
  found = measure(
    {
      "pass": (lambda b: jnp.matmul(b, b[0]), (bank,)),
      "first": (lambda b: coreset.select(b, 1), (bank,)),
      "steps": (lambda b: coreset.select(b, 1 + steps), (bank,)),
    },
    rounds,
  )
  passing = found["pass"][0]
  step = (found["steps"][0] - found["first"][0]) / steps
  return {
    "pass": {"seconds": passing, "in_floors": 1.0},
    "coreset_step": {"seconds": step, "in_floors": step / passing},
  }


def define_flags() -> None:
  """Define the flags of this benchmark."""
  flags.DEFINE_integer("vectors", 1_000_000, "Vectors of the bank.", 1)
  flags.DEFINE_integer("width", 1024, "Width of the vectors.", 1)
  flags.DEFINE_integer("queries", 1369, "Patches of an image.", 1)
  flags.DEFINE_integer("steps", 4, "Steps of the coreset.", 1)
  flags.DEFINE_integer("rounds", 3, "Rounds, whose median counts.", 1)


def main(options: Any) -> None:
  """Run the benchmark."""
  environment.check()
  device = jax.local_devices()[0]
  key = jax.random.key(0)
  before = peak_mib()
  bank = jax.block_until_ready(draw(key, options.vectors, options.width))
  built = peak_mib()
  query = draw(jax.random.fold_in(key, 1), options.queries, options.width)
  query = query.at[0].set(bank[-1])
  rows = search(query, bank, options.rounds)
  searched = peak_mib()
  rows |= choice(bank, options.steps, options.rounds)
  document = dict(
    vectors=options.vectors,
    width=options.width,
    queries=options.queries,
    rounds=options.rounds,
    bank_mib=bank.nbytes / 2**20,
    peak_mib=dict(
      start=before, bank=built, search=searched, coreset=peak_mib()
    ),
    rows=rows,
    device=device.device_kind,
    machine=platform.processor(),
    jax=jax.__version__,
  )
  for name, row in rows.items():
    print(f"{name:13} {row['seconds']:9.3f} s {row['in_floors']:7.2f} floors")
  memory = ", ".join(f"{k} {v:,.0f}" for k, v in document["peak_mib"].items())
  print(f"bank {document['bank_mib']:,.0f} MiB; peak MiB: {memory}")
  if options.json:
    text = json.dumps(document, indent=1) + "\n"
    files.write_text(pathlib.Path(options.json), text)
