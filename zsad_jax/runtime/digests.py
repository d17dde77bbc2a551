"""Digest of named arrays."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def of_arrays(named: Iterable[tuple[str, Any]], *, prefix: bytes = b"") -> str:
  """Return the SHA-256 of names, data types, shapes and values.

  Args:
    named: name and array of each, in the order that the digest depends on.
    prefix: data that the digest depends on as well.
  """
  found = hashlib.sha256(prefix)
  for name, x in named:
    array = np.asarray(x, order="C")
    found.update(f"{name} {array.dtype} {array.shape}\n".encode())
    found.update(array.reshape(-1).view(np.uint8).data)
  return found.hexdigest()
