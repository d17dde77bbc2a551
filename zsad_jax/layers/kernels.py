"""Choice of the computation by backend.

No other module asks which backend runs. All choices compute the same function
and differ by rounding alone; each of them can be run on any machine, by name or
under `assume`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.runtime import distributed

# Number of keys from which attention is faster head by head on one CPU;
# measured (benchmarks/README.md).
MANY_KEYS = 256
# Number of keys from which the TPU kernel is used, where it is chosen.
FLASH_KEYS = 512
# Queries and references of a product in `layers.neighbors`; None: all queries.
CPU_NEIGHBORS, NEIGHBORS = (128, 1024), (None, 8192)
# Of products whose rounding decides a result: distances, labels, maps.
EXACT = jax.lax.Precision.HIGHEST
ATTENTION = ("exact", "flash")  # Values of `config.backbone.attention`.


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices that programs are traced for.

  Attributes:
    backend: "cpu", "gpu" or "tpu".
    device_count: number of devices of all processes.
    compute_capability: of an NVIDIA GPU, such as (8, 0); (0, 0) for others.
    mesh: of the devices; None for the present ones.
  """

  backend: str
  device_count: int = 1
  compute_capability: tuple[int, int] = (0, 0)
  mesh: jax.sharding.Mesh | None = None


_assumed: Machine | None = None


@contextlib.contextmanager
def assume(machine: Machine) -> Iterator[None]:
  """Trace programs for another machine; for compilation without it."""
  global _assumed
  before, _assumed = _assumed, machine
  jax.clear_caches()  # Of programs that were traced for another machine.
  try:
    yield
  finally:
    _assumed = before
    jax.clear_caches()


def backend() -> str:
  """Return the name of the default backend: "cpu", "gpu" or "tpu"."""
  return _assumed.backend if _assumed else jax.default_backend()


def device_count() -> int:
  """Return the number of devices of all processes."""
  return _assumed.device_count if _assumed else jax.device_count()


def mesh() -> jax.sharding.Mesh:
  """Return the mesh of all devices; images are split over its axis "data"."""
  if _assumed and _assumed.mesh:
    return _assumed.mesh
  return distributed.make_mesh()


def compute_capability() -> tuple[int, int]:
  """Return the compute capability of an NVIDIA GPU, (0, 0) for others."""
  if _assumed:
    return _assumed.compute_capability
  text = getattr(jax.local_devices()[0], "compute_capability", "")
  major, _, minor = str(text).partition(".")
  if not (major.isdecimal() and minor.isdecimal()):
    return 0, 0  # AMD's GPUs have names, such as "gfx90a".
  return int(major), int(minor)


def one_cpu() -> bool:
  """Tell if a single CPU device runs, where sequential loops are faster.

  With several CPU devices each one holds its own images: a loop over all
  images would gather them on every device.
  """
  return backend() == "cpu" and device_count() == 1


def neighbor_block() -> tuple[int | None, int]:
  """Return the numbers of queries and references of `neighbors.nearest`.

  On a CPU the products of a block stay in its cache.
  """
  return CPU_NEIGHBORS if backend() == "cpu" else NEIGHBORS


def splits_loops(images: Any) -> bool:
  """Tell if a loop over images has to be split over devices by `shard_map`.

  Accelerators run no such loops, and the devices of a CPU only where each has
  the same number of images.

  Args:
    images: number of images of all devices; in exported programs a symbol.
  """
  several = backend() == "cpu" and device_count() > 1
  return several and images % device_count() == 0


def attention_kernel(
  q: Float[Array, "b t h d"],
  k: Float[Array, "b s h d"],
  *,
  causal: bool,
  flash: bool = False,
) -> Literal["by_head", "cudnn", "flash", "xla"]:
  """Choose the implementation of attention without an explicit mask.

  Args:
    q: queries.
    k: keys.
    causal: if a query attends only to keys up to its own position.
    flash: whether the kernel for TPUs may be used.

  Returns:
    "by_head" for one head after the other, so that the t x s weights of a
    head stay in a CPU's cache; "cudnn" for the fused kernel of cuDNN; "flash"
    for that of TPUs; "xla" for the default lowering.
  """
  if one_cpu() and not causal and k.shape[1] >= MANY_KEYS:
    return "by_head"
  if backend() == "tpu" and flash and not causal:
    # The padding of few queries or keys is more work than it saves.
    many = min(q.shape[1], k.shape[1]) >= FLASH_KEYS
    return "flash" if many and q.shape[0] % device_count() == 0 else "xla"
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  # The least for which cuDNN has fused attention: not a T4.
  fused = backend() == "gpu" and compute_capability() >= (8, 0)
  return "cudnn" if fused and half else "xla"


def dot_general() -> Callable[..., jax.Array] | None:
  """Return the matrix product for `flax.linen.Dense`; None for the default.

  Some CPUs are fast at bfloat16, but XLA uses their instructions only for
  products with float32 sums.
  """
  if backend() == "cpu":
    return functools.partial(
      jax.lax.dot_general, preferred_element_type=jnp.float32
    )
  return None


def smooths_maps() -> bool:
  """Tell if anomaly maps are smoothed on the device.

  Smoothing is a product of matrices there, which accelerators compute faster
  than SciPy filters on the host; on a CPU SciPy is faster.
  """
  return backend() != "cpu"
