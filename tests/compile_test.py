"""Tests of benchmark/compile.py and its parts, without an accelerator."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers import small_run
from zsad_jax.benchmark import chips, compile, hlo, programs, roofline
from zsad_jax.layers import attention, flash_attention, kernels, rounding
from zsad_jax.runtime import distributed

CHIP = chips.Chip(
  flops=100.0, float32_flops=10.0, bandwidth=5.0, memory=1000.0, source=""
)


def small(method, **backbone):
  """Return a configuration of a small method; no data set is opened."""
  configs = {
    "adaclip": small_run.get_config,
    "adaptclip": small_run.get_adaptclip_config,
    "anomalyclip": small_run.get_anomalyclip_config,
  }
  config = configs[method]("unused")
  config.backbone.update(**backbone)
  return config


def here():
  """Return the devices of this machine as a target."""
  mesh = distributed.make_mesh()
  return chips.Target("here", CHIP, mesh, kernels.Machine("cpu", mesh.size))


def options(**changed):
  values = dict(
    target=["v5e:2x4"],
    methods=["anomalyclip"],
    programs=["predict"],
    model="ViT-L-14-336",
    dtype="bfloat16",
    attention="exact",
    image_size=518,
    per_chip=2,
    largest=False,
    effort=0.0,
    resume=False,
    json=None,
  )
  return types.SimpleNamespace(**(values | changed))


TEXT = """
  %a = f32[8,4]{1,0:T(8,128)} all-reduce(%x), replica_groups={}
  ROOT %b = (bf16[2,3]{1,0}, s32[]) all-to-all(%y, %z)
  %s = (f32[4]{0}, f32[32]{0}) all-gather-start(%x)
  %d = f32[32]{0} all-gather-done(%s)
  %c = pred[7]{0} all-reduce(%p)
  %n = f32[1000]{0} add(%x, %y)
"""


def test_collectives_are_counted_by_the_bytes_of_their_results():
  assert hlo.collectives(TEXT) == {
    "all-reduce": {"number": 2, "bytes": 8 * 4 * 4 + 7},
    "all-to-all": {"number": 1, "bytes": 2 * 3 * 2 + 4},
    "all-gather": {"number": 1, "bytes": 32 * 4},
  }


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e-8", "name a chip"),
    ("v9:2x4", "name a chip"),
    ("h100:8", "name a chip"),
  ],
)
def test_an_unknown_target_is_named(name, message):
  with pytest.raises(ValueError, match=f"--target={name}.*{message}"):
    chips.target(name)


@pytest.mark.parametrize(
  ("name", "module", "extra"),
  [("v5e:2x4", "libtpu", "tpu"), ("h100:1x8", "jax_plugins", "cuda12")],
)
def test_a_missing_compiler_is_named(name, module, extra, monkeypatch):
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(ValueError, match=rf"{module}.* 'zsad_jax\[{extra}\]"):
    chips.target(name)


def test_gpus_are_described_for_xla():
  text = chips.gpu_target_config(chips.CHIPS["t4"])
  assert "cuda_compute_capability { major: 7 minor: 5 }" in text
  assert "core_count: 40" in text and 'platform_name: "CUDA"' in text


@pytest.mark.parametrize("name", chips.CHIPS)
def test_rates_have_a_source(name):
  chip = chips.CHIPS[name]
  assert chip.source.startswith("https://")
  assert chip.flops > chip.bandwidth > chip.memory > 2**33
  assert bool(chip.gpu) == bool(chip.float32_flops)


def test_bounds_are_at_the_rates_of_the_data_type():
  half = compile.bound(CHIP, "bfloat16", 200.0, 50.0)
  assert half == {"flops_seconds": 2.0, "bytes_seconds": 10.0}
  assert compile.bound(CHIP, "float32", 200.0, 0.0)["flops_seconds"] == 20.0
  tpu = chips.CHIPS["v5e"]
  full = compile.bound(tpu, "float32", tpu.flops, 0.0)
  assert full["flops_seconds"] == 1.0


def test_images_that_fit_share_what_the_fixed_memory_leaves():
  memory = {"peak": 500, "replicated": 100}
  assert compile.predicted(memory, 4, 1000.0) == 9
  assert compile.predicted(memory, 4, 50.0) == 0


def test_kernels_are_counted_for_each_block_and_device():
  mesh = distributed.make_mesh()
  product = lambda a: a @ a.T
  split = jax.shard_map(
    product, mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )
  a = jnp.zeros((4 * mesh.size, 3))
  assert roofline.flops(split, a) == mesh.size * 2 * 4 * 4 * 3
  q = jnp.zeros((1, 130, 2, 8))
  padded, products = 256, 2
  expected = 2 * products * padded * padded * 8 * 2
  assert roofline.flops(flash_attention._padded, q, q, q) == expected


def test_a_program_is_traced_for_the_machine_and_compiled():
  row = compile.examine(
    here(), small("anomalyclip"), small_run.BACKBONE, "predict", 2
  )
  assert row["memory"]["peak"] >= row["memory"]["replicated"] > 0
  assert row["chips"] == jax.device_count() and row["flops_per_image"] > 0
  assert kernels.backend() == jax.default_backend()


def test_every_trained_method_has_all_programs():
  build = lambda name: programs.Programs(
    small(name), small_run.BACKBONE, distributed.make_mesh(), batch_size=2
  )
  assert set(build("adaptclip").all()) == {
    *("encode", "predict", "few_shot", "cached_step", "step", "store_read")
  }


class FakeExamine:
  """Compilation that fails for one program."""

  def __init__(self, failing):
    self.failing, self.calls = failing, []

  def __call__(self, target, config, sizes, program, per_chip, effort):
    self.calls.append((target.name, config.method_name, program, per_chip))
    if program == self.failing:
      raise RuntimeError("no such\nproduct")
    return {
      "chips": 8,
      "memory": {
        "arguments": 100,
        "outputs": 0,
        "temporaries": 20 * per_chip,
        "replicated": 100,
        "peak": 100 + 20 * per_chip,
      },
      "predicted_largest": 90,
      "flops_per_image": 3e9,
      "bytes_per_image": 2e9,
      "collectives": {"all-reduce": {"number": 2, "bytes": 3_000_000}},
      "compile_seconds": 1.0,
      "bound": {"flops_seconds": 0.5, "bytes_seconds": 0.25},
    }


@pytest.fixture
def fake(monkeypatch):
  """Replace compilation; return a function that sets the failing program."""

  def replace(failing=""):
    found = FakeExamine(failing)
    monkeypatch.setattr(compile, "examine", found)
    monkeypatch.setattr(compile.chips, "target", lambda name: here())
    names = lambda *_: ["encode", "predict"]
    monkeypatch.setattr(compile, "program_names", names)
    return found

  enabled = jax.config.jax_enable_compilation_cache
  yield replace
  jax.config.update("jax_enable_compilation_cache", enabled)


def test_failing_programs_are_named_and_the_rest_is_compiled(fake, tmp_path):
  found = fake("encode")
  path = tmp_path / "rows.json"
  with pytest.raises(
    ValueError, match=r"^1 programs do not compile: anomalyclip encode on here:"
  ):
    compile.main(options(json=str(path)))
  assert [call[2] for call in found.calls] == ["encode", "predict"]
  rows = json.loads(path.read_text())["rows"]
  assert "no such product" in rows[0]["error"] and "memory" in rows[1]


def test_recorded_programs_are_not_compiled_again(fake, tmp_path, capsys):
  path = str(tmp_path / "rows.json")
  with pytest.raises(ValueError):
    fake("encode")
    compile.main(options(json=path))
  again = fake()
  compile.main(options(json=path, resume=True))
  assert [call[2] for call in again.calls] == ["encode"]
  assert "| anomalyclip encode | 2 |" in capsys.readouterr().out


def test_the_largest_number_of_images_is_compiled(fake, tmp_path):
  path = tmp_path / "rows.json"
  found = fake()
  compile.main(options(json=str(path), programs=["encode"], largest=True))
  # 90 images need 1,900 bytes of the chip's 1,000, 81 and 72 do as well.
  assert [call[3] for call in found.calls[:4]] == [2, 90, 81, 72]
  rows = json.loads(path.read_text())["rows"]
  assert [row.get("largest") for row in rows[:4]] == [None, *["too large"] * 3]
  assert "| ~90 |" in compile.table(rows, "here", "bfloat16")


def test_tables_of_the_documentation_are_those_of_the_files():
  folder = pathlib.Path(__file__).parents[1] / "benchmarks"
  text = (folder / "README.md").read_text()
  paths = sorted(folder.glob("compile_*.json"))
  assert paths
  for path in paths:
    assert f"`{path.name}`" in text
    rows = json.loads(path.read_text())["rows"]
    assert not [row for row in rows if "error" in row]
    target, dtype = rows[0]["target"], rows[0]["dtype"]
    assert compile.table(rows, target, dtype) in text, path


# ---- Compiled for accelerators; the compilers are extras of the package.

TPU = "v5e:2x4"


@pytest.fixture
def tpu(monkeypatch):
  """Target of a TPU slice; skips where libtpu is not installed."""
  pytest.importorskip("libtpu")
  for name, value in {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Several test processes.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }.items():
    monkeypatch.setenv(name, value)
  return uncached(chips.target(TPU))


@pytest.fixture
def gpu():
  """Target of a host with GPUs; skips where the compiler is not installed."""
  pytest.importorskip("jax_plugins.xla_cuda12")
  return uncached(chips.target("h100:1x2"))


def uncached(target):
  jax.config.update("jax_enable_compilation_cache", False)
  return target


@pytest.mark.parametrize(
  ("method", "program", "backbone"),
  [
    ("anomalyclip", "encode", {"dtype": "bfloat16"}),
    ("anomalyclip", "few_shot", {}),
    ("adaptclip", "cached_step", {}),
    ("adaptclip", "predict", {"dtype": "bfloat16"}),
    ("adaclip", "step", {"dtype": "bfloat16"}),
  ],
)
def test_programs_compile_for_a_tpu_slice(method, program, backbone, tpu):
  config = small(method, **backbone)
  row = compile.examine(tpu, config, small_run.BACKBONE, program, 2)
  assert row["chips"] == 8 and row["bytes_per_image"] > 0
  assert bool(row["collectives"]) == ("step" in program)


def test_attention_keeps_no_weights_on_a_tpu(tpu):
  split = jax.NamedSharding(tpu.mesh, P("data"))
  q = jax.ShapeDtypeStruct((8, 1370, 2, 64), jnp.bfloat16, sharding=split)
  with kernels.assume(tpu.machine):
    found = [
      hlo.cost(jax.jit(f).lower(q, q, q).compile())[1]
      for f in (flash_attention.attend, flash_attention._exact)
    ]
  assert found[0] < found[1] / 2


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_compilers_keep_the_rounding_to_float16(device, request):
  target = request.getfixturevalue(device)
  split = jax.NamedSharding(target.mesh, P("data"))
  x = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=split)
  compiled = (
    jax.jit(lambda x: rounding.to_float16(2 * x) + 1).lower(x).compile()
  )
  assert "exponent_bits=5, mantissa_bits=10" in compiled.as_text()


def test_gpus_attend_with_cudnn_for_odd_lengths(gpu):
  split = jax.NamedSharding(gpu.mesh, P("data"))
  q = jax.ShapeDtypeStruct((2, 7, 2, 64), jnp.bfloat16, sharding=split)
  loss = lambda *x: attention.attend(*x, causal=False).sum()
  with kernels.assume(gpu.machine):
    text = jax.jit(jax.grad(loss)).lower(q, q, q).compile().as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text
  assert "bf16[1,8,2,64]" in text  # Padded, and split over the GPUs.


def test_programs_lower_for_gpus(gpu):
  config = small("adaclip", dtype="bfloat16")
  with kernels.assume(gpu.machine):
    found = programs.Programs(
      config, small_run.BACKBONE, gpu.mesh, batch_size=2
    ).all()["step"]()
  assert "mhlo.num_partitions = 2" in found.lowered.as_text()


def test_float32_compiles_for_gpus(gpu):
  config = small("anomalyclip")
  row = compile.examine(gpu, config, small_run.BACKBONE, "encode", 2)
  assert row["bytes_per_image"] == 0.0  # XLA has no analysis for them.
  assert row["flops_per_image"] > 0
