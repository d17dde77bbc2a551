"""Export of a program to StableHLO, by `jax.export`.

The file runs on CPUs, NVIDIA GPUs and TPUs, with JAX alone:

  import jax, pathlib
  data = pathlib.Path("detector.stablehlo").read_bytes()
  exported = jax.export.deserialize(bytearray(data))
  scores, maps = exported.call(images)  # uint8 (b, s, s, 3)

JAX reads files of versions that are at most six months older, and at most three
weeks newer.
"""

import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np

from zsad_jax.inference import program as program_lib

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
NOTE = (
  "JAX reads StableHLO files for six months: export again with a later version "
  "of JAX."
)
# A file has at most 2 GiB.
LARGEST = 2**31 - 2**20


def check(program: program_lib.Program) -> None:
  """Check that a program can be exported; all can."""
  del program


def versions() -> dict[str, Any]:
  """Return the versions that the file depends on."""
  found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
  return {**found, "platforms": list(PLATFORMS)}


def write(
  program: program_lib.Program, path: pathlib.Path
) -> list[pathlib.Path]:
  """Write a program to a file and return the files.

  Raises:
    ValueError: the weights are too large for a file.
  """
  folded, batch = program.fold(unroll=False)
  side = program.image_size
  spec = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)
  size = folded.constant_bytes()
  if size > LARGEST:
    raise ValueError(
      f"--format=stablehlo: the weights have {size:,} bytes, but a file of "
      f"jax.export holds at most {LARGEST:,}; use --format=onnx."
    )
  exported = jax.export.export(
    jax.jit(lambda image: tuple(folded(image))), platforms=PLATFORMS
  )(spec)
  path.write_bytes(exported.serialize())
  return [path]


def load(
  path: pathlib.Path,
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """Return the function of a file; see `Program.function`."""
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  call: Any = jax.jit(exported.call)

  def run(images):
    scores, maps = call(images)
    return np.asarray(scores), np.asarray(maps)

  return run
