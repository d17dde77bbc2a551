"""Tests of the choices by backend, each of them on any machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones.clip import blocks
from zsad_jax.layers import attention, kernels, memory_bank

RNG = np.random.default_rng(0)


@pytest.fixture
def machine(monkeypatch):
  """Function that replaces the backend and the number of devices."""

  def replace(backend, devices=1):
    monkeypatch.setattr(kernels, "backend", lambda: backend)
    monkeypatch.setattr(kernels, "device_count", lambda: devices)

  return replace


def draw(*shape, dtype="float32"):
  return jnp.asarray(RNG.normal(size=shape), dtype)


def test_the_machine_is_that_of_jax():
  assert kernels.backend() == jax.default_backend()
  assert kernels.device_count() == jax.device_count()


@pytest.mark.parametrize(
  ("backend", "devices", "expected"),
  [("cpu", 1, True), ("cpu", 2, False), ("gpu", 1, False), ("tpu", 1, False)],
)
def test_one_cpu(backend, devices, expected, machine):
  machine(backend, devices)
  assert kernels.one_cpu() == expected


@pytest.mark.parametrize(
  ("backend", "devices", "dtype", "tokens", "causal", "expected"),
  [
    ("cpu", 1, "float32", kernels.MANY_KEYS, False, "by_head"),
    ("cpu", 1, "bfloat16", kernels.MANY_KEYS, False, "by_head"),
    ("cpu", 1, "float32", kernels.MANY_KEYS - 1, False, "xla"),
    ("cpu", 1, "float32", kernels.MANY_KEYS, True, "xla"),
    ("cpu", 2, "float32", kernels.MANY_KEYS, False, "xla"),
    ("gpu", 1, "bfloat16", 8, False, "cudnn"),
    ("gpu", 1, "float16", 8, True, "cudnn"),
    ("gpu", 2, "bfloat16", 8, False, "cudnn"),
    ("gpu", 1, "bfloat16", 7, False, "xla"),
    ("gpu", 1, "float32", 8, False, "xla"),
    ("tpu", 1, "bfloat16", 8, False, "xla"),
  ],
)
def test_attention_kernel(
  backend, devices, dtype, tokens, causal, expected, machine
):
  machine(backend, devices)
  q = jnp.zeros((1, tokens, 2, 4), dtype)
  assert kernels.attention_kernel(q, q, causal=causal) == expected


def test_cudnn_takes_even_lengths_of_queries_and_keys(machine):
  machine("gpu")
  long, short = (jnp.zeros((1, t, 2, 4), jnp.bfloat16) for t in (8, 1))
  assert kernels.attention_kernel(short, long, causal=False) == "xla"
  assert kernels.attention_kernel(long, short, causal=False) == "xla"


def test_attention_by_head_equals_xla(monkeypatch):
  q, k, v = (draw(2, 9, 3, 4) for _ in range(3))
  loss = lambda *x: (attention.attend(*x, causal=False) ** 2).sum()
  found = []
  for name in ("by_head", "xla"):
    choose = lambda *_, name=name, **__: name
    monkeypatch.setattr(kernels, "attention_kernel", choose)
    out = attention.attend(q, k, v, causal=False)
    found.append((out, jax.grad(loss, (0, 1, 2))(q, k, v)))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
  jax.tree.map(close, *found)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_cudnn_is_passed_on_to_jax(causal, monkeypatch):
  q = draw(1, 4, 2, 4, dtype="bfloat16")
  given = {}

  def fused(q, k, v, **settings):
    given.update(settings)
    return q

  monkeypatch.setattr(kernels, "attention_kernel", lambda *_, **__: "cudnn")
  monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
  np.testing.assert_array_equal(attention.attend(q, q, q, causal=causal), q)
  assert given == {"is_causal": causal, "implementation": "cudnn"}


def test_dot_general(machine):
  machine("gpu")
  assert kernels.dot_general() is None
  machine("cpu")
  a, b = draw(3, 4, dtype="bfloat16"), draw(4, 2, dtype="bfloat16")
  product = kernels.dot_general()(a, b, (((1,), (0,)), ((), ())))
  assert product.dtype == jnp.float32
  expected = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
  np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_layers_agree_on_all_backends(dtype, machine):
  layer = blocks.Mlp("quick", dtype)
  x = draw(1, 3, 4)
  params = layer.init(jax.random.key(0), x)
  found = []
  for backend in ("cpu", "gpu"):
    machine(backend)
    found.append(np.asarray(layer.apply(params, x), np.float32))
  atol = 1e-6 if dtype == "float32" else 2e-2
  np.testing.assert_allclose(*found, atol=atol)


@pytest.mark.parametrize(
  ("backend", "expected"), [("cpu", False), ("gpu", True), ("tpu", True)]
)
def test_smooths_maps(backend, expected, machine):
  machine(backend)
  assert kernels.smooths_maps() == expected


def test_nearest_patches_agree_on_all_backends(machine):
  query, bank = draw(2, 3, 4), draw(2, 2, 5, 4)
  machine("cpu")
  loop = memory_bank.nearest(query, bank)
  machine("gpu")
  batched = memory_bank.nearest(query, bank)
  np.testing.assert_array_equal(loop[1], batched[1])
  np.testing.assert_allclose(loop[0], batched[0], rtol=1e-5, atol=1e-6)
