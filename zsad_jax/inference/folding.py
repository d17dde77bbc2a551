"""Evaluation of all parts of a function that do not depend on its input.

Text features of a class and resized position tables become constants of an
exported program, so that it does not contain the text encoder, where the text
does not depend on the image.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Primitives that call a function, by the parameter that holds it.
_CALLS = {
  "jit": "jaxpr",
  "pjit": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
  "checkpoint": "jaxpr",
  "remat2": "jaxpr",
}
# Primitives that return their input.
_IDENTITIES = {"copy", "copy_p", "name", "stop_gradient"}
_SIZE = "dim_as_value"  # The value of a symbolic size, which has no input.

Value = Any  # A `Var`, or an array that is known.


class Var:
  """A value that depends on the input.

  Attributes:
    shape: sizes; the batch size is symbolic.
    dtype: of the elements.
  """

  def __init__(self, shape: Sequence[Any], dtype: Any) -> None:
    self.shape = tuple(shape)
    self.dtype = dtype


@dataclasses.dataclass(frozen=True)
class Step:
  """Application of a primitive, of which an input is a `Var`.

  Attributes:
    primitive: of JAX.
    params: its parameters.
    inputs: a `Var` or an array each.
    outputs: results.
  """

  primitive: Any
  params: Mapping[str, Any]
  inputs: tuple[Value, ...]
  outputs: tuple[Var, ...]

  def bind(self, inputs: Sequence[Any]) -> list[Any]:
    """Return the results for other inputs."""
    return _bind(self.primitive, self.params, inputs)


@dataclasses.dataclass(frozen=True)
class Folded:
  """A function as steps that depend on its inputs.

  Attributes:
    inputs: of the function.
    steps: in the order of computation.
    outputs: a `Var`, or an array if it does not depend on the inputs.
  """

  inputs: tuple[Var, ...]
  steps: tuple[Step, ...]
  outputs: tuple[Value, ...]

  def constant_bytes(self) -> int:
    """Return the size of all constants."""
    found = [x for step in self.steps for x in step.inputs]
    arrays = {id(x): x for x in found if not isinstance(x, Var)}
    return sum(x.nbytes for x in arrays.values())

  def __call__(self, *inputs: Any) -> list[Any]:
    """Evaluate the function for inputs of the traced shapes."""
    values = dict(zip(self.inputs, inputs, strict=True))
    of = lambda x: values[x] if isinstance(x, Var) else x
    for step in self.steps:
      found = step.bind(list(map(of, step.inputs)))
      values |= zip(step.outputs, found, strict=True)
    return list(map(of, self.outputs))


def fold(
  function: Callable[..., Any], spec: jax.ShapeDtypeStruct, *, unroll: bool
) -> Folded:
  """Trace a function and evaluate what does not depend on its input.

  Args:
    function: of one array; returns a sequence of arrays.
    spec: shape, which may be symbolic, and dtype of the array.
    unroll: whether loops of a fixed number of steps are unrolled, so that
      what depends on the number of the step only becomes a constant.
  """
  traced = jax.make_jaxpr(function)(spec)
  x = Var(spec.shape, spec.dtype)
  return fold_jaxpr(traced, [x], (x,), unroll=unroll)


def fold_jaxpr(
  closed: core.ClosedJaxpr,
  arguments: Sequence[Value],
  inputs: tuple[Var, ...],
  *,
  unroll: bool,
) -> Folded:
  """Evaluate what does not depend on the arguments that are a `Var`.

  Args:
    closed: a traced function.
    arguments: of the function.
    inputs: of the result.
    unroll: see `fold`.
  """
  folder = _Folder(unroll)
  outputs = tuple(folder.run(closed.jaxpr, closed.consts, arguments))
  return Folded(inputs, _needed(folder.steps, outputs), outputs)


class _Folder:
  """Collects steps of nested functions in one list."""

  def __init__(self, unroll):
    self.steps: list[Step] = []
    self._unroll = unroll

  def run(self, jaxpr, constants, arguments) -> list[Value]:
    """Add the steps of a function and return its results."""
    values: dict[Any, Value] = {}
    values |= zip(jaxpr.constvars, constants, strict=True)
    values |= zip(jaxpr.invars, arguments, strict=True)
    of = lambda v: _literal(v) if isinstance(v, core.Literal) else values[v]
    for eqn in jaxpr.eqns:
      found = self._apply(eqn, [of(v) for v in eqn.invars])
      values |= zip(eqn.outvars, found, strict=True)
    return [of(v) for v in jaxpr.outvars]

  def _apply(self, eqn, inputs):
    name = eqn.primitive.name
    if name in _CALLS:
      called = eqn.params[_CALLS[name]]
      if isinstance(called, core.ClosedJaxpr):
        return self.run(called.jaxpr, called.consts, inputs)
      return self.run(called, (), inputs)
    if name in _IDENTITIES:
      return inputs
    known = name != _SIZE and not any(isinstance(x, Var) for x in inputs)
    if known and all(_is_static(v.aval) for v in eqn.outvars):
      return _bind(eqn.primitive, eqn.params, inputs)
    if name == "scan" and self._unroll:
      return self._repeat(eqn.params, inputs)
    outputs = tuple(Var(v.aval.shape, v.aval.dtype) for v in eqn.outvars)
    self.steps.append(Step(eqn.primitive, eqn.params, tuple(inputs), outputs))
    return outputs

  def _repeat(self, params, inputs):
    """Add the steps of a loop of fixed length."""
    body, length = params["jaxpr"], params["length"]
    constants = inputs[: params["num_consts"]]
    carry = inputs[len(constants) :][: params["num_carry"]]
    rows = inputs[len(constants) + len(carry) :]
    parts: list[Any] = [None] * length
    numbers = range(length)
    for i in reversed(numbers) if params["reverse"] else numbers:
      row = [self._row(x, i) for x in rows]
      found = self.run(body.jaxpr, body.consts, [*constants, *carry, *row])
      carry, parts[i] = found[: len(carry)], found[len(carry) :]
    return [*carry, *(self._stack(part) for part in zip(*parts))]

  def _row(self, x, i):
    return self._traced(lambda x: x[i], x)

  def _stack(self, parts):
    return self._traced(lambda *parts: jax.numpy.stack(parts), *parts)

  def _traced(self, function, *arguments):
    """Add the steps of a function of arrays, which returns one array."""
    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments]
    closed = jax.make_jaxpr(function)(*specs)
    return self.run(closed.jaxpr, closed.consts, arguments)[0]


def _bind(primitive, params, inputs):
  # Primitives that need other arguments are those in `_CALLS`.
  found = primitive.bind(*inputs, **params)
  return list(found) if primitive.multiple_results else [found]


def _literal(literal):
  return np.asarray(literal.val, literal.aval.dtype)


def _is_static(aval):
  return all(isinstance(size, (int, np.integer)) for size in aval.shape)


def _needed(steps, outputs):
  """Return the steps that the outputs depend on."""
  needed = {x for x in outputs if isinstance(x, Var)}
  kept = []
  for step in reversed(steps):
    if needed.intersection(step.outputs):
      kept.append(step)
      needed.update(x for x in step.inputs if isinstance(x, Var))
  return tuple(reversed(kept))
