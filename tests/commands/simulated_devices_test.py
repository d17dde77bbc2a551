"""Training on several devices of a CPU, from features on these devices."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_features_of_full_size_on_several_devices_of_a_cpu(tmp_path):
  """With the threads that XLA chooses itself it does not end."""
  flag = "--xla_force_host_platform_device_count=4"
  subprocess.run(
    [
      *(sys.executable, "-m", "zsad_jax.train", "--config=anomalyclip"),
      *("--config.image_size=56", "--config.epochs=1"),
      *("--config.batch_size=6", "--config.test_data=()"),
      *("--config.features.storage=device", f"--workdir={tmp_path}"),
    ],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
    check=True,
    timeout=900,
  )
  assert (tmp_path / "finished.json").is_file()
