"""Each primitive that is converted to ONNX, run by onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from zsad_jax.inference import folding

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from zsad_jax.inference import onnx_graph, onnx_lowering  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 6)).astype(np.float32)
Y = RNG.standard_normal((3, 6, 5)).astype(np.float32)
N = RNG.integers(-9, 9, (3, 4)).astype(np.int32)


def convert(function, example):
  """Return the model of a function whose batch size is symbolic."""
  (b,) = jax.export.symbolic_shape("b")
  spec = jax.ShapeDtypeStruct((b, *example.shape[1:]), example.dtype)
  folded = folding.fold(lambda x: (function(x),), spec, unroll=True)
  return onnx_lowering.to_model(folded, ("x", "y"), b)


def run(function, example):
  """Return the result of onnxruntime."""
  model = convert(function, example)
  onnx.checker.check_model(model, full_check=True)
  session = onnxruntime.InferenceSession(model.SerializeToString())
  return session.run(None, {"x": example})[0]


def until_small(x):
  """Halve each row until the largest value of all is below 0.1."""
  body = lambda s: (s[0] * 0.5, s[1] + 1)
  return lax.while_loop(lambda s: (s[0] > 0.1).any(), body, (x, 0))


def summed(x):
  """Return cumulative sums by a loop of fixed length."""
  step = lambda total, row: (total + row, total * row)
  total, rows = lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))
  return rows.swapaxes(0, 1) + total[:, None]


FLOATS = {
  "abs": jnp.abs,
  "argmax": lambda x: jnp.argmax(x, axis=2),
  "argmin": lambda x: jnp.argmin(x, axis=1),
  "bool_max": lambda x: jnp.maximum(x > 0, x > 1).astype(jnp.float32),
  "bool_select": lambda x: jnp.where(x > 0, x > 1, x < -1).sum(-1),
  "broadcast": lambda x: x.mean(-1, keepdims=True) * jnp.ones((4, 6)),
  "categorical": jax.vmap(
    lambda x: jax.random.categorical(jax.random.key(1), x, axis=-1)
  ),
  "ceil_floor": lambda x: jnp.ceil(x) + 2 * jnp.floor(x),
  "clamp": lambda x: jnp.clip(x, -0.5, 0.7),
  "comparisons": lambda x: (
    (x > 0) * 1 + (x >= 1) * 2 + (x < -1) * 4 + (x <= 0.5) * 8
  ),
  "concatenate": lambda x: jnp.concatenate([x, x[:, :2]], axis=1),
  "cumsum": lambda x: jnp.cumsum(x, axis=1),
  "divide": lambda x: x / (2 + jnp.abs(x)),
  "dynamic_slice": lambda x: lax.dynamic_slice_in_dim(
    x, jnp.argmax(x.max(0)[:, 0]), 2, axis=2
  ),
  "erf": jax.scipy.special.erf,
  "exp_log": lambda x: jnp.log(1 + jnp.exp(x)),
  "finite": lambda x: jnp.isfinite(1 / jnp.maximum(x, 0)).astype(jnp.int32),
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "iota": lambda x: x + jnp.arange(x.shape[0])[:, None, None],
  "layer_norm": lambda x: (
    (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
  ),
  "logical": lambda x: (~(x > 0) & (x > -1) | (x > 1)).astype(jnp.int32),
  "pad_edge": jax.vmap(
    lambda row: jnp.pad(row[None], ((0, 0), (1, 1), (0, 0)), mode="edge")
  ),
  "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=2.0),
  "power": lambda x: x**3 + jnp.abs(x) ** 0.7,
  "product_batched": lambda x: jnp.einsum("bij,bjk->bik", x, x.swapaxes(1, 2)),
  "product_free": lambda x: jnp.einsum("bij,kj->bki", x, Y[0, :, :].T),
  "product_left": lambda x: jnp.einsum(
    "Hh,bhw,Ww->bHW", Y[0, :5, :4], x, Y[1].T
  ),
  "product_many": lambda x: jnp.einsum(
    "bij,ijk->bk", x, Y[:, :, :].repeat(2, 0)[:4]
  ),
  "product_self": lambda x: jnp.einsum("bij,bkj->bik", x, x),
  "product_vector": lambda x: x @ Y[0, :, 0],
  "reductions": lambda x: x.max(1) + x.min(1) + x.sum(1) + x.prod(1),
  "reduce_logical": lambda x: (x > 1).any(1) * 2 + (x > -2).all(1),
  "reverse": lambda x: x[:, ::-1],
  "round": lambda x: jnp.round(4 * x) + jnp.round(x),
  "scan": summed,
  "scatter": lambda x: x.at[:, 2].set(x[:, 0] + 1),
  "shape": lambda x: x.reshape(-1, 6).reshape(x.shape[0], 24),
  "sigmoid_tanh": lambda x: jax.nn.sigmoid(x) + jnp.tanh(x),
  "sign": lambda x: jnp.sign(x) - x,
  "sine": lambda x: jnp.sin(x) * jnp.cos(x),
  "slice": lambda x: lax.slice_in_dim(x, 1, 4, stride=2, axis=1)[..., -3:],
  "softmax": jax.nn.softmax,
  "split": lambda x: jnp.concatenate(jnp.split(x, 3, axis=2)[::-1], axis=1),
  "stack": lambda x: jnp.stack([x, 2 * x], axis=2),
  "squares": lambda x: jnp.sqrt(jnp.square(x) + 1),
  "take_along_axis": lambda x: jnp.take_along_axis(
    x,
    jnp.argsort(N, axis=1)[:1, :2, None] % 4 + 0 * x[:, :2, :1].astype(int),
    axis=1,
  ),
  "take_rows": lambda x: jnp.asarray(Y)[(x[:, 0, 0] > 0).astype(jnp.int32)],
  "take_constant": lambda x: x[:, np.array([3, 0, 0])],
  "take_outside": lambda x: jnp.asarray(Y)[0][
    (x[:, 0, 0] > 0).astype(jnp.int32) * 70
  ],
  "take_one_each": jax.vmap(lambda x: x[:, jnp.argmax(x[0])]),
  "take_rows_each": jax.vmap(lambda x: x[jnp.argsort(N[0])[:2] % 4 + 0]),
  "take_slices_each": jax.vmap(
    lambda x: lax.dynamic_slice_in_dim(x, jnp.argmax(x[:, 0]), 1, axis=0)
  ),
  "tile": lambda x: jnp.tile(jnp.asarray(Y[0]), (x.shape[0], 1)),
  "top_k": lambda x: lax.top_k(jnp.floor(2 * jnp.abs(x)), 3)[1],
  "top_values": lambda x: lax.top_k(x, 3)[0],
  "transpose": lambda x: x.transpose(2, 0, 1),
  "vmap_while": lambda x: jax.vmap(until_small)(x)[1],
  "while": lambda x: until_small(x)[0],
  "window_sum": lambda x: lax.reduce_window(
    1 / jnp.maximum(x, 0),
    0.0,
    lax.add,
    (1, 2, 3),
    (1, 1, 1),
    ((0, 0), (1, 1), (2, 2)),
  ),
}
WHOLE = {
  "arithmetic": lambda n: (n + 3) * 2 - n // 1,
  "cast": lambda n: n.astype(jnp.float32) / 3,
  "divide": lambda n: lax.div(n, jnp.int32(2)),
  "equal": lambda n: (n == 3) * 1 + (n != 2) * 2,
  "extremes": lambda n: jnp.maximum(n, 1) + jnp.minimum(n, -1),
  "negative": lambda n: -n,
  "remainder": lambda n: lax.rem(n, jnp.int32(4)),
  "one_hot": lambda n: jax.nn.one_hot(n, 5),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name):
  function = FLOATS[name]
  expected = np.asarray(jax.jit(function)(X))
  found = run(function, X)
  assert found.dtype == expected.dtype
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
  function = WHOLE[name]
  expected = np.asarray(jax.jit(function)(N))
  found = run(function, N)
  assert found.dtype == expected.dtype
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("stride, padding", [(1, "SAME"), (2, "VALID")])
def test_convolution(stride, padding):
  image = RNG.standard_normal((2, 8, 8, 3)).astype(np.float32)
  kernel = RNG.standard_normal((2, 3, 3, 5)).astype(np.float32)
  convolve = lambda x: lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  found = run(convolve, image)
  np.testing.assert_allclose(found, convolve(image), rtol=1e-4, atol=1e-5)


def test_rounding_to_float16():
  x = np.array([[1.0001, 1e-5, 70000.0, -0.3333]], np.float32)
  found = run(lambda x: lax.reduce_precision(x, 5, 10), x)
  np.testing.assert_array_equal(found, x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
  "function, named",
  [
    (lambda x: lax.sort(x), "the operation sort"),
    (
      lambda x: jax.random.uniform(jax.random.key(0), x.shape),
      "the operation random_bits",
    ),
    (lambda x: x[0], "along the batch"),
    (lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), "bfloat16"),
    (lambda x: lax.reduce_precision(x, 8, 7), "rounding"),
    (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0))), "padding"),
    (lambda x: lax.slice_in_dim(x, 0, x.shape[0] - 1), "slice along"),
  ],
)
def test_what_is_not_converted_is_named(function, named):
  with pytest.raises(onnx_graph.Unsupported, match=named):
    convert(function, X)
