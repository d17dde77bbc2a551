"""Choice of the computation by backend.

No other module asks which backend runs. All choices compute the same function
and differ by rounding alone; the tests run each of them on any machine by
replacing `backend` and `device_count`.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Number of keys from which attention is faster head by head on one CPU;
# measured (benchmarks/README.md).
MANY_KEYS = 256


def backend() -> str:
  """Return the name of the default backend: "cpu", "gpu" or "tpu"."""
  return jax.default_backend()


def device_count() -> int:
  """Return the number of devices of all processes."""
  return jax.device_count()


def one_cpu() -> bool:
  """Tell if a single CPU device runs, where sequential loops are faster.

  With several CPU devices each one holds its own images: a loop over all
  images would gather them on every device.
  """
  return backend() == "cpu" and device_count() == 1


def attention_kernel(
  q: Float[Array, "b t h d"], k: Float[Array, "b s h d"], *, causal: bool
) -> Literal["by_head", "cudnn", "xla"]:
  """Choose the implementation of attention without an explicit mask.

  Args:
    q: queries.
    k: keys.
    causal: if a query attends only to keys up to its own position.

  Returns:
    "by_head" for one head after the other, so that the t x s weights of a
    head stay in a CPU's cache; "cudnn" for the fused kernel of cuDNN; "xla"
    for the default lowering.
  """
  if one_cpu() and not causal and k.shape[1] >= MANY_KEYS:
    return "by_head"
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  # cuDNN's backward pass takes even lengths only.
  even = not (q.shape[1] % 2 or k.shape[1] % 2)
  return "cudnn" if backend() == "gpu" and half and even else "xla"


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
