"""What computes."""

import jax


def one_cpu() -> bool:
  """Whether it is one CPU, which is faster image by image.

  Of several devices, as a CPU may pretend to be, each has its own images, and
  what goes through them one by one would bring them together.
  """
  return jax.default_backend() == "cpu" and jax.device_count() == 1
