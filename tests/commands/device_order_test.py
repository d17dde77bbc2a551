"""Results do not depend on the order and the number of the devices.

The training of distributed_test.py is in the order of a slice, too.
"""

import numpy as np
import pytest

from tests.helpers import device_orders, launch, small_run


def run(module, *arguments, processes, devices):
  """Run a module in several processes; return their standard outputs."""
  command = ["-m", f"tests.helpers.{module}", *arguments]
  started = launch.start_all(command, processes=processes, devices=devices)
  status, out, errors = launch.finish(started, timeout=900)
  assert status == [0] * processes, errors
  return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "parts"
  small_run.write_mvtec(folder)
  return folder


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
  """Return a function from a method to the folder of its run in one process."""
  found = {}

  def make(method):
    if method not in found:
      workdir = tmp_path_factory.mktemp(method)
      arguments = f"--workdir={workdir}", f"--data={data}", f"--method={method}"
      run("whole_run", *arguments, processes=1, devices=8)
      found[method] = workdir
    return found[method]

  return make


@pytest.mark.slow
@pytest.mark.parametrize(
  "method, order",
  [
    ("anomalyclip", "v5e:4x8"),
    ("anomalyclip", "v5p:2x2x2"),
    ("anomalyclip", "2 x v5p:2x2x1"),
    ("adaptclip", "v5p:2x2x2"),  # Learns from references.
  ],
)
def test_results_do_not_depend_on_the_order(
  method, order, data, one, tmp_path, monkeypatch
):
  """Two processes find to the last bit what one process does."""
  workdir, single = tmp_path / "run", one(method)
  monkeypatch.setenv(device_orders.VARIABLE, order)
  arguments = f"--workdir={workdir}", f"--data={data}", f"--method={method}"
  out = run("whole_run", *arguments, processes=2, devices=4)
  assert "loss" in out[0] and "loss" not in out[1]
  assert small_run.losses(workdir) == small_run.losses(single)
  for name in ("threshold.json", "threshold_few_shot.json"):
    assert (workdir / name).read_text() == (single / name).read_text()
  with np.load(single / "numbers.npz") as wanted:
    with np.load(workdir / "numbers.npz") as found:
      assert found.keys() == wanted.keys() and len(wanted) == 12
      for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], name)


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind, batch_size, processes, devices",
  [("anomalyclip,", 8, 2, 32), ("", 1, 1, 8)],  # The second is AdaCLIP.
)
def test_published_batch_sizes_run_on_many_devices(
  kind, batch_size, processes, devices, data, tmp_path
):
  found = []
  for count, each in ((1, 1), (processes, devices)):
    workdir = tmp_path / str(each)
    out = run(
      "small_run",
      f"--config=tests/helpers/small_run.py:{kind}{data}",
      f"--workdir={workdir}",
      f"--config.batch_size={batch_size}",
      "--config.epochs=1",
      "--config.mosaic_prob=0.3",
      "--config.test_data=()",
      processes=count,
      devices=each,
    )
    found.append(small_run.losses(workdir))
  padding = -batch_size % (processes * devices)
  assert f"each step also computes {padding} rows of padding" in out[0]
  # Differences of rounding grow over the steps, and some losses are small.
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
