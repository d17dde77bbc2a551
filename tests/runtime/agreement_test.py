"""Agreement of processes, in threads; see tests.helpers.fake_processes."""

import pathlib

import pytest
from absl import flags

from tests.helpers import fake_processes
from zsad_jax.runtime import agreement, config_files, processes


@pytest.fixture
def together(monkeypatch):
  return fake_processes.together(monkeypatch)


def test_equal_values_are_no_error(together):
  check = lambda i: agreement.check("x", {"a": 1, "b": "c"}, "Do.")
  assert together(check) == [""] * 3


def test_a_single_process_compares_nothing(monkeypatch):
  monkeypatch.setattr(processes, "client", lambda: None)
  agreement.check("x", {"a": 1}, "Do.")
  agreement.check_shared(pathlib.Path("nowhere"))
  agreement.check_command(flags.FlagValues())


@pytest.mark.parametrize(
  "values, wanted",
  [
    ([1, 1, 2], "a is 1 in process 0 and 2 in process 2. Do."),
    ([1, 2, 2], "a is 1 in process 0 and 2 in process 1 (process 2 too). Do."),
    ([None, 2, None], "a is missing in process 0 and 2 in process 1. Do."),
  ],
)
def test_the_process_and_the_values_are_named(values, wanted, together):
  def check(i):
    given = {} if values[i] is None else {"a": values[i]}
    agreement.check("x", given, "Do.")

  assert together(check) == [f"The processes of this run differ: {wanted}"] * 3


def test_another_stage_is_a_difference(together):
  check = lambda i: agreement.check("xyz"[i], {}, "Do.")
  found = together(check)
  assert "stage is x in process 0 and y in process 1 (process 2" in found[0]
  assert found == found[:1] * 3


def test_a_process_that_does_not_come_is_named(together, monkeypatch):
  monkeypatch.setattr(agreement, "_TIMEOUT", 0.2)
  check = lambda i: i == 1 or agreement.check("data", {}, "Do.")
  found = together(check)
  assert (
    "check of the data: process 0 has waited 0 seconds for process 1. "
    in (found[0])
  )
  assert found[2] == found[0]


def test_different_versions_are_named(together, monkeypatch):
  monkeypatch.setattr(agreement, "_version", lambda p: f"1.{processes.index()}")
  found = together(lambda i: agreement.check_command(_flags()))
  assert "version of flax is 1.0 in process 0 and 1.1 in process" in found[1]
  assert found[0].endswith("Install the same versions on every host.")


def test_another_source_of_the_package_is_another_version(
  together, monkeypatch
):
  monkeypatch.setattr(agreement, "_source_digest", lambda: processes.index())
  found = together(lambda i: agreement.check_command(_flags()))
  assert "version of zsad_jax is 0" in found[0]


def _flags(*arguments):
  found = flags.FlagValues()
  flags.DEFINE_integer("size", 1, "A size.", flag_values=found)
  flags.DEFINE_string("name", None, "A name.", flag_values=found)
  found(["command", *arguments])
  return found


def test_different_flags_are_named(together):
  options = [_flags("--size=2"), _flags(), _flags("--size=2", "--name=a")]
  found = together(lambda i: agreement.check_command(options[i]))
  assert "--name is None in process 0 and a in process 2" in found[0]
  assert "--size is 2 in process 0 and 1 in process 1" in found[0]


def test_each_field_of_a_configuration_is_compared(together):
  configs = [config_files.load("adaclip").unlock() for _ in range(3)]
  configs[2].optax.learning_rate = 0.5

  def check(i):
    agreement.check("x", agreement.describe("config", configs[i]), "Do.")

  (message, *_) = together(check)
  assert "differ: config.optax.learning_rate is " in message
  assert message.endswith("and 0.5 in process 2. Do.")


def test_a_folder_that_is_not_shared_is_an_error(together, tmp_path):
  folders = [tmp_path / name for name in "aab"]
  for folder in {*folders}:
    folder.mkdir()
  found = together(lambda i: agreement.check_shared(folders[i]))
  assert found[0].endswith(
    "Give a --workdir on a file system that all hosts share."
  )
  assert "is found in process 0 and missing in process 2" in found[0]
  assert found == found[:1] * 3
  assert together(lambda i: agreement.check_shared(folders[0])) == [""] * 3
  assert not [*tmp_path.rglob(".shared-*")]
