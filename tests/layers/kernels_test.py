"""Tests of the choices by backend, each of them on any machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from zsad_jax.backbones.clip import blocks
from zsad_jax.layers import attention, flash_attention, kernels, memory_bank

RNG = np.random.default_rng(0)


@pytest.fixture
def machine(monkeypatch):
  """Function that replaces the backend and the number of devices."""

  def replace(backend, devices=1, capability=(9, 0)):
    monkeypatch.setattr(kernels, "backend", lambda: backend)
    monkeypatch.setattr(kernels, "device_count", lambda: devices)
    monkeypatch.setattr(kernels, "compute_capability", lambda: capability)

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
    ("gpu", 1, "bfloat16", 7, False, "cudnn"),
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


@pytest.mark.parametrize(
  ("capability", "expected"),
  [((7, 5), "xla"), ((8, 0), "cudnn"), ((10, 0), "cudnn"), ((0, 0), "xla")],
)
def test_cudnn_attends_from_compute_capability_8(capability, expected, machine):
  machine("gpu", capability=capability)
  q = jnp.zeros((1, 8, 2, 4), jnp.bfloat16)
  assert kernels.attention_kernel(q, q, causal=False) == expected


@pytest.mark.parametrize(
  ("text", "expected"),
  [("7.5", (7, 5)), ("10.0", (10, 0)), ("gfx90a", (0, 0)), (None, (0, 0))],
)
def test_compute_capability_is_read_from_the_device(
  text, expected, monkeypatch
):
  class Device:
    compute_capability = text

  monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
  assert kernels.compute_capability() == expected


@pytest.mark.parametrize(
  ("backend", "images", "queries", "causal", "flash", "expected"),
  [
    ("tpu", 4, kernels.FLASH_KEYS, False, True, "flash"),
    ("tpu", 4, kernels.FLASH_KEYS, False, False, "xla"),
    ("tpu", 4, kernels.FLASH_KEYS, True, True, "xla"),
    ("tpu", 4, 1, False, True, "xla"),
    ("tpu", 3, kernels.FLASH_KEYS, False, True, "xla"),
    ("cpu", 4, kernels.FLASH_KEYS, False, True, "xla"),
    ("gpu", 4, kernels.FLASH_KEYS, False, True, "xla"),
  ],
)
def test_the_kernel_of_tpus_is_used_where_it_is_chosen(
  backend, images, queries, causal, flash, expected, machine
):
  machine(backend, 2)
  k = jnp.zeros((images, kernels.FLASH_KEYS, 2, 4))
  q = k[:, :queries]
  found = kernels.attention_kernel(q, k, causal=causal, flash=flash)
  assert found == expected


def test_programs_are_traced_anew_for_an_assumed_machine():
  name = jax.jit(lambda x: x if kernels.backend() == "tpu" else -x)
  before = jax.default_backend()
  assert name(1) == (-1 if before != "tpu" else 1)
  machine = kernels.Machine("tpu", 16, (8, 9))
  with kernels.assume(machine):
    assert name(1) == 1
    assert kernels.device_count() == 16
    assert kernels.compute_capability() == (8, 9)
  assert name(1) == (-1 if before != "tpu" else 1)


def as_xla(q, k, v, *, implementation, **settings):
  """Compute what cuDNN is asked for, by XLA."""
  assert implementation == "cudnn" and not (q.shape[1] % 2 or k.shape[1] % 2)
  return PRODUCT(q, k, v, implementation="xla", **settings)


PRODUCT = jax.nn.dot_product_attention


@pytest.mark.parametrize(
  ("queries", "keys", "causal"),
  [(7, 7, False), (7, 7, True), (1, 8, False)],
)
def test_padding_for_cudnn_changes_no_number(
  queries, keys, causal, monkeypatch
):
  q, k, v = draw(2, queries, 3, 4), draw(2, keys, 3, 4), draw(2, keys, 3, 4)

  def found():
    loss = lambda *x: (attention.attend(*x, causal=causal) ** 2).sum()
    out = attention.attend(q, k, v, causal=causal)
    return out, jax.grad(loss, (0, 1, 2))(q, k, v)

  expected = found()
  monkeypatch.setattr(kernels, "attention_kernel", lambda *_, **__: "cudnn")
  monkeypatch.setattr(jax.nn, "dot_product_attention", as_xla)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)
  jax.tree.map(close, found(), expected)


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
  "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_the_kernel_of_tpus_equals_xla(dtype, monkeypatch):
  q, k, v = draw(2, 5, 1, 8), draw(2, 130, 1, 8), draw(2, 130, 1, 8)
  q, k, v = (x.astype(dtype) for x in (q, k, v))
  monkeypatch.setattr(kernels, "attention_kernel", lambda *_, **__: "flash")
  monkeypatch.setattr(kernels, "device_count", lambda: 1)
  loss = lambda *x: (attention.attend(*x, causal=False) ** 2).sum()
  with pltpu.force_tpu_interpret_mode():
    out = attention.attend(q, k, v, causal=False)
    grads = jax.grad(loss, (0, 1, 2))(q, k, v)
  exact = jax.vjp(flash_attention._exact, q, k, v)
  assert out.dtype == dtype
  atol = 1e-6 if dtype == "float32" else 1e-2
  as32 = lambda x: np.asarray(x, np.float32)
  np.testing.assert_allclose(as32(out), as32(exact[0]), atol=atol)
  for found, expected in zip(grads, exact[1](2 * out), strict=True):
    np.testing.assert_array_equal(as32(found), as32(expected))


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
