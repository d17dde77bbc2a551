"""Evaluation of what does not depend on the input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.inference import folding


def fold(function, *, unroll=False, batch="b"):
  shape = jax.export.symbolic_shape(f"{batch}, 4")
  spec = jax.ShapeDtypeStruct(shape, np.float32)
  return folding.fold(function, spec, unroll=unroll)


def primitives(folded):
  return [step.primitive.name for step in folded.steps]


def test_constants_are_evaluated_and_unused_steps_left_out():
  table = np.arange(16, dtype=np.float32).reshape(4, 4)

  @jax.jit
  def function(x):
    jnp.sin(x)  # Not used.
    return (x @ (jnp.asarray(table).T * 2 + 1),)

  folded = fold(function)
  assert primitives(folded) == ["dot_general"]
  (step,) = folded.steps
  np.testing.assert_array_equal(step.inputs[1], table.T * 2 + 1)
  assert folded.constant_bytes() == table.nbytes
  x = np.ones((3, 4), np.float32)
  np.testing.assert_allclose(folded(x)[0], function(x)[0])


@pytest.mark.parametrize("unroll", [False, True])
def test_loops_of_fixed_length(unroll):
  key = jax.random.key(3)

  def function(x):
    def body(i, x):
      return x * jax.random.normal(jax.random.fold_in(key, i), (4,))

    return (jax.lax.fori_loop(0, 3, body, x),)

  folded = fold(function, unroll=unroll, batch=2)
  # What depends on the number of the step alone is a constant.
  expected = ["mul"] * 3 if unroll else ["scan"]
  assert [p for p in primitives(folded) if p in ("mul", "scan")] == expected
  x = np.arange(8, dtype=np.float32).reshape(2, 4)
  np.testing.assert_allclose(folded(x)[0], function(x)[0], rtol=1e-6)


def test_reverse_loop_with_rows():
  def function(x):
    step = lambda total, row: (total + row, total)
    return jax.lax.scan(step, x[:, 0], x.T, reverse=True)

  folded = fold(function, unroll=True, batch=2)
  x = np.arange(8, dtype=np.float32).reshape(2, 4)
  for found, expected in zip(folded(x), function(x), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_constant_result():
  folded = fold(lambda x: (jnp.arange(3) + 1,))
  assert folded.steps == ()
  np.testing.assert_array_equal(folded(np.ones((2, 4)))[0], [1, 2, 3])
