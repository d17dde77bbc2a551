"""Accelerators that programs can be compiled for without having them.

Rates and sizes are those of the makers' data sheets. A `Target` is a number of
chips in a topology, such as "v5e:8x8" or "h100:1x8", 1 host of 8 GPUs.
"""

import dataclasses
import importlib.util
import re
from typing import Any

import jax
from jax.experimental import topologies

from zsad_jax.layers import kernels
from zsad_jax.runtime import distributed

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator as JAX sees it, one device.

  Attributes:
    flops: largest rate of bfloat16 products (T4: float16), per second, dense.
    float32_flops: largest rate of float32 products on a GPU; 0 for a TPU, whose
      float32 products consist of several in bfloat16.
    bandwidth: of its memory, bytes per second.
    memory: bytes that programs can use: on a TPU what the compiler allows, on a
      GPU three quarters of its memory, JAX's default share.
    source: of the numbers.
    gpu: facts of an NVIDIA GPU for XLA's `GpuTargetConfigProto`; {} for a TPU.
  """

  flops: float
  bandwidth: float
  memory: float
  source: str
  float32_flops: float = 0.0
  gpu: dict[str, Any] = dataclasses.field(default_factory=dict)


_GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_SHARE = 0.75  # XLA_PYTHON_CLIENT_MEM_FRACTION


def _gpu(memory: int, **facts: Any) -> dict[str, Any]:
  """Return the fields of a Chip that describe an NVIDIA GPU."""
  return {"memory": _SHARE * memory, "gpu": {"memory": memory, **facts}}


CHIPS = {
  "v4": Chip(275e12, 1.228e12, 31.75 * GIB, _GOOGLE + "v4"),
  "v5e": Chip(197e12, 0.819e12, 15.75 * GIB, _GOOGLE + "v5e"),
  "v5p": Chip(459e12, 2.765e12, 95.74 * GIB, _GOOGLE + "v5p"),
  "v6e": Chip(918e12, 1.638e12, 31.25 * GIB, _GOOGLE + "v6e"),
  "t4": Chip(
    flops=65e12,
    float32_flops=8.1e12,
    bandwidth=0.320e12,
    source=_NVIDIA + "tesla-t4/",
    **_gpu(
      15_828_320_256,
      name="Tesla T4",
      capability=(7, 5),
      cores=40,
      threads=1024,
      fpus=64,
      shared=65536,
      shared_optin=65536,
      cache=4_194_304,
      clock=1.59,
    ),
  ),
  "a100": Chip(
    flops=312e12,
    float32_flops=19.5e12,
    bandwidth=2.039e12,
    source=_NVIDIA + "a100/",
    **_gpu(
      85_100_068_864,
      name="NVIDIA A100-SXM4-80GB",
      capability=(8, 0),
      cores=108,
      threads=2048,
      fpus=64,
      shared=167_936,
      shared_optin=166_912,
      cache=41_943_040,
      clock=1.41,
    ),
  ),
  "h100": Chip(
    flops=989e12,
    float32_flops=67e12,
    bandwidth=3.35e12,
    source=_NVIDIA + "h100/",
    **_gpu(
      84_942_979_072,
      name="NVIDIA H100 80GB HBM3",
      capability=(9, 0),
      cores=132,
      threads=2048,
      fpus=128,
      shared=233_472,
      shared_optin=232_448,
      cache=52_428_800,
      clock=1.98,
    ),
  ),
  "h200": Chip(
    flops=989e12,
    float32_flops=67e12,
    bandwidth=4.8e12,
    source=_NVIDIA + "h200/",
    **_gpu(
      151_397_597_184,
      name="NVIDIA H200 141GB HBM3e",
      capability=(9, 0),
      cores=132,
      threads=2048,
      fpus=128,
      shared=233_472,
      shared_optin=232_448,
      cache=52_428_800,
      clock=1.98,
    ),
  ),
}


@dataclasses.dataclass(frozen=True)
class Target:
  """Chips that programs are compiled for.

  Attributes:
    name: such as "v5e:8x8".
    chip: one of them.
    mesh: their devices, in the order of their processes.
    machine: answers of `kernels` while a program is traced.
  """

  name: str
  chip: Chip
  mesh: jax.sharding.Mesh
  machine: kernels.Machine


def target(name: str) -> Target:
  """Return the target of a name.

  Args:
    name: CHIP:TOPOLOGY; for a TPU the topology of the slice in chips, such as
      v5e:2x4 or v5p:2x2x4, for GPUs HOSTSxGPUS.

  Raises:
    ValueError: there is no such target, or its compiler is not installed.
  """
  kind, _, topology = name.partition(":")
  if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", topology):
    raise ValueError(
      f"--target={name}: name a chip ({', '.join(CHIPS)}) and a topology, such "
      "as v5e:8x8, v5p:2x2x4 or h100:1x8 (hosts x GPUs)."
    )
  chip = CHIPS[kind]
  find = _gpu_devices if chip.gpu else _tpu_devices
  try:
    devices = find(kind, topology)
  except jax.errors.JaxRuntimeError as error:
    text = " ".join(str(error).split())[:300]
    raise ValueError(
      f"--target={name}: the compiler has no such target ({text})."
    ) from error
  mesh = distributed.make_mesh(devices)
  machine = kernels.Machine(
    backend="gpu" if chip.gpu else "tpu",
    device_count=len(devices),
    compute_capability=chip.gpu.get("capability", (0, 0)),
    mesh=mesh,
  )
  return Target(name, chip, mesh, machine)


def _tpu_devices(kind, topology):
  """Return the devices of a TPU slice."""
  _require("libtpu", "tpu")
  more = {"chip_config_name": "megacore"} if kind == "v4" else {}
  found = topologies.get_topology_desc(
    platform="tpu", topology_name=f"{kind}:{topology}", **more
  )
  return found.devices


def _gpu_devices(kind, topology):
  """Return the devices of one slice of hosts with GPUs."""
  _require("jax_plugins.xla_cuda12", "cuda12")
  found = topologies.get_topology_desc(
    platform="cuda",
    topology_name=kind,
    target_config=gpu_target_config(CHIPS[kind]),
    topology=f"1x{topology}",
  )
  return found.devices


def _require(module, extra):
  """Check that a compiler is installed."""
  try:
    found = importlib.util.find_spec(module)
  except ModuleNotFoundError:
    found = None
  if found is None:
    raise ValueError(
      f"{module} is not installed, which compiles for this target: pip "
      f"install 'zsad_jax[{extra}]' (no accelerator is needed)."
    )


def gpu_target_config(chip: Chip) -> str:
  """Return XLA's description of a GPU, a `GpuTargetConfigProto` as text.

  The fields are those of the files in xla/backends/gpu/target_config/specs of
  https://github.com/openxla/xla.
  """
  gpu = chip.gpu
  major, minor = gpu["capability"]
  fields = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": gpu["shared"],
    "threads_per_core_limit": gpu["threads"],
    "core_count": gpu["cores"],
    "fpus_per_core": gpu["fpus"],
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "memory_bandwidth": int(chip.bandwidth),
    "l2_cache_size": gpu["cache"],
    "clock_rate_ghz": gpu["clock"],
    "device_memory_size": gpu["memory"],
    "shared_memory_per_block_optin": gpu["shared_optin"],
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "device_address_bits": 64,
  }
  lines = [f"  {name}: {value}" for name, value in fields.items()]
  lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
  return "\n".join(
    [
      "gpu_device_info {",
      *lines,
      "}",
      'platform_name: "CUDA"',
      "dnn_version_info { major: 9 minor: 10 patch: 0 }",
      f'device_description_str: "{gpu["name"]}"',
    ]
  )
