"""Scale of batch size and learning rate."""

import json

import pytest

from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files
from zsad_jax.training import batch_size


def test_the_scale_multiplies_batch_size_and_learning_rate(capsys):
  config = config_files.load("anomalyclip:paper")
  assert batch_size.scaled(config) is config
  assert not capsys.readouterr().out
  config.batch_scale = 4
  scaled = batch_size.scaled(config.lock())
  assert (scaled.batch_size, scaled.optax.learning_rate) == (32, 0.004)
  assert (config.batch_size, config.optax.learning_rate) == (8, 0.001)
  assert capsys.readouterr().out == (
    "config.batch_scale is 4: the batch size is 32 (4 x 8), the learning rate "
    "0.004 (4 x 0.001).\n"
  )


def test_the_scale_multiplies_every_learning_rate():
  config = config_files.load("anomalyclip:paper").unlock()
  config.batch_scale = 3
  config.schedule.warmup_learning_rate = 1e-5
  config.param_groups = {
    "biases": {"params": ".*/bias", "learning_rate": 0.1},
    "others": {"params": ".*/kernel", "l2_weight_decay": 0.1},
  }
  scaled = batch_size.scaled(config.lock())
  assert scaled.schedule.warmup_learning_rate == 3 * 1e-5
  assert scaled.param_groups.biases.learning_rate == 3 * 0.1
  assert scaled.param_groups.others.to_dict() == {
    "params": ".*/kernel",
    "l2_weight_decay": 0.1,
  }
  assert config.param_groups.biases.learning_rate == 0.1


@pytest.mark.parametrize(
  "size, devices, padding", [(8, 64, 56), (3, 4, 1), (9, 4, 3), (1, 8, 7)]
)
def test_padding_of_a_batch_is_logged(size, devices, padding, capsys):
  batch_size.log_padding(size, devices)
  out = capsys.readouterr().out
  assert f"batch size is {size}, on {devices} devices" in out
  assert f" {padding} rows of padding" in out
  batch_size.log_padding(4 * devices, devices)
  assert not capsys.readouterr().out


def test_runs_of_older_versions_have_the_scale_1(tmp_path):
  config, path = (
    config_files.load("anomalyclip:paper"),
    tmp_path / "config.json",
  )
  run_lib.save_config(tmp_path, config)
  stored = json.loads(path.read_text())
  assert stored.pop("batch_scale") == 1
  assert stored.pop("l2_weight_decay") == 0.0
  assert stored.pop("param_groups") == {}
  assert stored.pop("schedule")["name"] == "constant"
  path.write_text(json.dumps(stored))
  assert run_lib.read_config(tmp_path).batch_scale == 1
  run_lib.save_config(tmp_path, config)  # The same configuration.
  config.batch_scale = 2
  with pytest.raises(ValueError, match="different: batch_scale"):
    run_lib.save_config(tmp_path, config)
