"""Digest of arrays: an independent computation, and what changes it."""

import hashlib

import jax.numpy as jnp
import numpy as np

from zsad_jax.runtime import digests

ARRAYS = [
  ("a", np.arange(6, dtype=np.float32).reshape(2, 3)),
  ("b", np.array(7, np.int32)),
]


def test_the_digest_is_that_of_names_types_shapes_and_bytes():
  text = b"xa float32 (2, 3)\n" + ARRAYS[0][1].tobytes()
  text += b"b int32 ()\n" + ARRAYS[1][1].tobytes()
  found = digests.of_arrays(ARRAYS, prefix=b"x")
  assert found == hashlib.sha256(text).hexdigest()


def test_every_property_of_an_array_counts_and_its_layout_does_not():
  x = ARRAYS[0][1]
  of = lambda array, name="a": digests.of_arrays([(name, array)])
  assert of(np.asfortranarray(x)) == of(jnp.asarray(x)) == of(x)
  others = [of(x, "c"), of(x.astype(np.int32)), of(x.T), of(x + 1)]
  others.append(of(jnp.asarray(x, jnp.bfloat16)))
  assert len({of(x), *others}) == 6
