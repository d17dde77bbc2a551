"""Settings of every command."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from absl import flags

from zsad_jax.runtime import cli, environment


def test_compiled_programs_are_cached_by_cpu_model(monkeypatch, tmp_path):
  updated = {}
  monkeypatch.setenv("ZSAD_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr(cli.jax.config, "update", updated.__setitem__)
  cli._set_compilation_cache()
  assert not updated  # All tests set JAX_COMPILATION_CACHE_DIR.
  monkeypatch.setattr(
    type(cli.jax.config), "jax_compilation_cache_dir", None, raising=False
  )
  cli._set_compilation_cache()
  (folder,) = updated.values()
  assert pathlib.Path(folder).parent == tmp_path / "compiled"


RECOMPUTE = """
import jax
import jax.numpy as jnp
from zsad_jax.runtime import cli
from zsad_jax.backbones.clip import config, model
cli._disable_concurrency_optimized_scheduler()
sizes = config.ClipConfig(
    embed_dim=32, image_size=28, patch_size=7, vision_width=64,
    vision_layers=8, text_width=64, text_layers=1)
clip, image = model.random_clip(sizes, 0), jnp.ones((8, 56, 56, 3))
def needed(remat):
  loss = lambda p: clip.image(image, prompts=p, remat=remat)[0].sum()
  program = jax.jit(jax.grad(loss)).lower(jnp.ones((8, 1, 2, 64))).compile()
  return program.memory_analysis().temp_size_in_bytes
share = needed(True) / needed(False)
assert share < 0.8, share
"""


@pytest.mark.slow
def test_recomputed_blocks_take_less_memory():
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  command = [sys.executable, "-c", RECOMPUTE]
  subprocess.run(command, env=env, check=True)


def test_given_xla_flags_are_kept(monkeypatch):
  name = "--xla_cpu_enable_concurrency_optimized_scheduler"
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
  for _ in range(2):
    cli._disable_concurrency_optimized_scheduler()
    assert os.environ["XLA_FLAGS"] == f"--xla_a=1 {name}=false"
  monkeypatch.setenv("XLA_FLAGS", f"{name}=true")
  cli._disable_concurrency_optimized_scheduler()
  assert os.environ["XLA_FLAGS"] == f"{name}=true"


def test_an_error_in_a_traced_function_is_one_line(capsys):
  @jax.jit
  def refuse(x):
    raise ValueError("config.method.scales: too large.")

  with pytest.raises(ValueError) as raised:
    refuse(1.0)
  raised.value.add_note("Choose others.")
  with pytest.raises(SystemExit):
    cli._fail(raised.value)
  line = "error: config.method.scales: too large. Choose others.\n"
  assert capsys.readouterr().err == line


def test_help_lists_the_flags_that_other_modules_define(monkeypatch):
  values = flags.FlagValues()
  monkeypatch.setattr(flags, "FLAGS", values)
  define = functools.partial(flags.DEFINE_string, flag_values=values)
  cli._define(lambda: define("depth", None, "Depth of the tree."))
  assert "Depth of the tree." in values.main_module_help()


@pytest.mark.slow
def test_a_missing_flag_is_named_with_its_help(tmp_path):
  command = [sys.executable, "-m", "zsad_jax.calibrate", str(tmp_path)]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.returncode == 1
  assert ended.stderr == "error: --workdir is missing: Folder of the run.\n"


def test_help_is_no_error():
  command = [sys.executable, "-m", "zsad_jax.calibrate", "--help"]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.returncode == 0
  assert "--workdir" in ended.stdout


CONCURRENT = """
import asyncio, sys
from zsad_jax.runtime import cli
cli._quiet_libraries()
code = "async def write(): raise ValueError('disk full')"
exec(compile(code, sys.argv[1], "exec"))
async def both():
  writes = [asyncio.ensure_future(write()) for _ in range(2)]
  await writes[0]
try:
  asyncio.run(both())
except ValueError as error:
  print(error)
"""


@pytest.mark.parametrize(
  "file, debug, shown",
  [
    ("/site-packages/orbax/write.py", "", False),
    ("/site-packages/orbax/write.py", "1", True),
    ("/site-packages/other/write.py", "", True),
  ],
)
def test_concurrent_errors_of_orbax_are_reported_once(file, debug, shown):
  ended = subprocess.run(
    [sys.executable, "-c", CONCURRENT, file],
    env={**os.environ, environment.DEBUG: debug},
    capture_output=True,
    text=True,
    check=True,
  )
  assert ended.stdout == "disk full\n"
  assert ("never retrieved" in ended.stderr) == shown


@pytest.mark.slow
def test_a_configuration_that_exits_is_no_help(tmp_path):
  (tmp_path / "own.py").write_text("import sys\nsys.exit(3)\n")
  command = [sys.executable, "-m", "zsad_jax.train"]
  command.append(f"--config={tmp_path / 'own.py'}")
  assert subprocess.run(command, capture_output=True).returncode == 3


def test_several_devices_of_a_cpu_have_threads(monkeypatch):
  flag = "--xla_force_host_platform_device_count"
  for flags_of_xla, devices, expected in (
    ("", "", None),
    (f"{flag}=1", "", None),
    (f"--xla_a=2 {flag}=8", "", "32"),
    ("", "2", "8"),
  ):
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setenv("XLA_FLAGS", flags_of_xla)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", devices)
    cli._set_threads_of_simulated_devices()
    assert os.environ.get("PJRT_NPROC") == expected
  monkeypatch.setenv("PJRT_NPROC", "3")
  cli._set_threads_of_simulated_devices()
  assert os.environ["PJRT_NPROC"] == "3"
