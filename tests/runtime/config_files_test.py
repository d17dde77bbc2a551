"""Configuration files by name and by path, and their flags."""

import pathlib
import sys

import pytest
from absl import flags

from zsad_jax import methods
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files, environment

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def parse(monkeypatch):
  """Parser of a command line: arguments -> configuration."""

  def parsed(*arguments):
    argv = ["train", *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    values = flags.FlagValues()
    monkeypatch.setattr(config_files.flags, "FLAGS", values)
    with monkeypatch.context() as patch:
      # config_flags' default argument is the global object.
      define = config_files.config_flags.DEFINE_config_file
      patch.setattr(
        config_files.config_flags,
        "DEFINE_config_file",
        lambda *a, **k: define(*a, **k, flag_values=values),
      )
      config_files.define_flag()
    values(argv)
    return values.config

  return parsed


def test_names_are_found_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert {*methods.names(), "tiny_clip"} <= {*config_files.names()}
  assert "common" not in config_files.names()
  config = config_files.load("adaclip:paper,k40")
  assert config.is_locked
  assert config.name == "adaclip_paper_k40"
  assert config.method.num_clusters == 40
  assert config == config_files.load(f"{ROOT}/configs/adaclip.py:paper,k40")


def test_unknown_names_and_files_are_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match="'adaklip'.*adaclip, adaptclip"):
    config_files.load("adaklip:paper")
  with pytest.raises(FileNotFoundError, match="nowhere/adaclip.py.*by name"):
    config_files.load("nowhere/adaclip.py")
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(ValueError, match="does not define get_config"):
    config_files.load(str(tmp_path / "empty.py"))


def test_a_file_loads_its_own_siblings(tmp_path):
  for folder, value in (("a", 1), ("b", 2)):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "shared.py").write_text(f"VALUE = {value}\n")
    (tmp_path / folder / "main.py").write_text(
      "from ml_collections import ConfigDict\n"
      "from zsad_jax.runtime import config_files\n"
      "shared = config_files.sibling(__file__, 'shared')\n"
      "def get_config(): return ConfigDict({'value': shared.VALUE})\n"
    )
  for folder, value in (("a", 1), ("b", 2), ("a", 1)):
    found = config_files.load(str(tmp_path / folder / "main.py"))
    assert found.value == value


@pytest.mark.parametrize("name", methods.names())
def test_every_field_of_a_method_is_in_its_configuration(name):
  config = config_files.load(name)
  assert set(config.method) == set(methods.defaults(name))
  method = run_lib.make_method(name, methods.defaults(name).to_dict())
  assert method == methods.module(name).Method()


def test_fields_are_set_on_the_command_line(parse):
  config = parse(
    "--config=adaptclip:paper",
    "--config.method.temperature=0.1",
    "--config.method.activation=gelu_erf",
    "--config.method.vv_from=None",
    "--config.method.feature_layers=(1, 2)",
    "--config.memory.vv_from=7",
    "--config.mosaic_prob=None",
  )
  assert config.method.temperature == 0.1
  assert config.method.activation == "gelu_erf"
  assert config.method.vv_from is None
  assert config.method.feature_layers == (1, 2)
  assert config.memory.vv_from == 7
  assert config.mosaic_prob is None
  config = parse("--config=clip", "--config.method.activation=gelu_erf")
  assert config.method.activation == "gelu_erf"
  assert parse("--config=clip").method.activation is None


@pytest.mark.parametrize(
  "argument, message",
  [
    ("--config.method.vv_from=six", "vv_from=six"),
    ("--config.method.sigma=None", "sigma=None"),
    ("--config.epochs=None", "epochs=None"),
  ],
)
def test_values_of_other_types_are_errors(parse, argument, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    parse("--config=adaptclip", argument)


def test_choices_are_checked(parse):
  config = parse("--config=adaclip", "--config.method.train_map=levls")
  with pytest.raises(ValueError, match="train_map is one of levels, mean, got"):
    run_lib.make_method(config.method_name, config.method.to_dict())


def test_a_wheel_holds_the_shipped_folders(monkeypatch, tmp_path):
  """An installed package has the folders that setup.py maps into it."""
  text = (ROOT / "setup.py").read_text()
  for path in ("configs", "data/paper_results"):
    name = pathlib.Path(path).name
    assert f'"zsad_jax.{name}": "{path}"' in text
    assert environment.resource_folder(path) == ROOT / path
    (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
      patch.setattr(environment, "_PACKAGE", tmp_path)
      assert environment.resource_folder(path) == tmp_path / name
  kinds = {p.suffix for p in (ROOT / "data/paper_results").iterdir()}
  assert kinds == {".csv", ".md"}  # package_data in setup.py.
