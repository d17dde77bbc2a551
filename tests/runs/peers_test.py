"""Agreement about data, weights and runs; see tests.helpers.fake_processes."""

import numpy as np
import pytest

from tests.helpers import fake_processes, small_run
from zsad_jax.datasets import registry
from zsad_jax.runs import peers
from zsad_jax.runtime import config_files


@pytest.fixture
def together(monkeypatch):
  return fake_processes.together(monkeypatch)


@pytest.fixture
def copies(tmp_path):
  """Roots of two copies of a data set, on two hosts."""
  roots = [tmp_path / host / "parts" for host in "ab"]
  for root in roots:
    small_run.write_images(root)
  return roots


def check_data(together, roots):
  datasets = [registry.read_folder(root) for root in roots]
  found = together(lambda i: peers.check_data(datasets[i]), 2)
  assert found[0] == found[1]
  return found[0]


def test_copies_of_a_data_set_are_equal(together, copies):
  assert check_data(together, copies) == ""


@pytest.mark.parametrize("change", ["missing", "other name", "other size"])
def test_another_data_set_is_an_error(change, together, copies):
  path = copies[1] / "normal/1.png"
  if change == "missing":
    path.unlink()
  elif change == "other name":
    path.rename(path.with_name("5.png"))
  else:
    path.write_bytes(path.read_bytes() + b"0")
  message = check_data(together, copies)
  number = 11 if change == "missing" else 12
  assert f" in process 0 and {number} files (" in message
  assert "the data set parts is 12 files" in message
  assert message.endswith("or a folder that all share.")


def test_images_of_a_command_are_compared_by_name_and_size(together, tmp_path):
  paths = [str(tmp_path / name) for name in "abc"]
  for path in paths:
    open(path, "w").write("x")
  check = lambda lists: together(
    lambda i: peers.check_images("the images", lists[i]), 2
  )
  assert check([paths, paths]) == ["", ""]
  assert check([[], []]) == ["", ""]
  for other in ([*paths[1:], paths[0]], paths[:2]):
    assert "the images is 3 files" in check([paths, other])[0]


def test_another_run_is_an_error(together):
  config = config_files.load("adaclip")
  weights = {"a": np.zeros(3, np.float32), "b": np.array(True)}
  other = {"a": np.ones(3, np.float32), "b": np.array(True)}

  def check(first, second):
    given = (first, second)
    return together(lambda i: peers.check_run(config, *given[i]), 2)[1]

  run = (weights, 8, weights)
  assert check(run, run) == ""
  assert "step of the run is 8 in" in check(run, (weights, 9, weights))
  assert "digest of its parameters" in check(run, (weights, 8, other))
  assert "the digest of the weights of" in check(run, (other, 8, weights))
