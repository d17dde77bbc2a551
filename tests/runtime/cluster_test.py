"""Detection of the processes of a run, in simulated environments."""

import http.server
import re
import threading

import pytest
from jax._src import clusters

from zsad_jax.runtime import cluster, distributed

THREE = {
  distributed.COORDINATOR: "a:1",
  distributed.NUM_PROCESSES: "3",
  distributed.PROCESS_ID: "2",
}
FOUR_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


@pytest.mark.parametrize(
  "environ, wanted",
  [
    ({}, None),
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
    (
      THREE,
      dict(
        coordinator_address="a:1",
        num_processes=3,
        process_id=2,
        cluster_detection_method="deactivate",
      ),
    ),
  ],
)
def test_processes_of_a_launcher_are_detected(environ, wanted):
  assert cluster.options(environ) == wanted


def test_a_single_process_of_simulated_devices_connects_to_itself():
  for environ in (FOUR_DEVICES, FOUR_DEVICES | THREE):
    options = cluster.options(environ, alone=True)
    assert re.fullmatch(r"localhost:\d+", options["coordinator_address"])
    address = options["coordinator_address"]
    assert options["coordinator_bind_address"] == address
    assert (options["num_processes"], options["process_id"]) == (1, 0)


@pytest.mark.parametrize("environ", [THREE, {"SLURM_STEP_NUM_TASKS": "16"}])
def test_a_command_that_needs_no_peers_connects_to_none(environ):
  assert cluster.options(environ, alone=True) is None


def test_a_missing_variable_is_named():
  with pytest.raises(ValueError, match="ZSAD_JAX_PROCESS_ID must be whole"):
    cluster.options(
      {distributed.COORDINATOR: "a:1", distributed.NUM_PROCESSES: "3"}
    )
  with pytest.raises(ValueError, match="SLURM_STEP_NUM_TASKS.*'four'"):
    cluster.options({"SLURM_STEP_NUM_TASKS": "four"})


# ---- Slurm: JAX's own detection gives each task one GPU.


@pytest.mark.parametrize(
  "tasks, nodes, visible, local_id, wanted",
  [
    (2, 2, "0,1,2,3", 0, []),  # One task per node has all of its GPUs.
    (8, 2, "0,1,2,3", 3, [3]),
    (8, 2, "0", 3, []),  # Slurm shows each task its own GPU only.
    (8, 2, "", 3, [3]),
  ],
)
def test_a_task_of_slurm_has_its_gpus(
  tasks, nodes, visible, local_id, wanted, monkeypatch
):
  environ = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": str(tasks),
    "SLURM_STEP_NUM_TASKS": str(tasks),
    "SLURM_STEP_NUM_NODES": str(nodes),
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": str(local_id),
    "CUDA_VISIBLE_DEVICES": visible,
  }
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, cluster.options(environ).get("local_device_ids"), None, 9
  )
  assert found == ("node07:61441", tasks, 1, wanted)


# ---- TPU: several hosts, or a single one without metadata (Colab, Kaggle).


@pytest.fixture
def metadata():
  """A metadata server; yields its address and the attributes to serve."""
  attributes = {}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      found = attributes.get(self.path.rpartition("/")[2])
      ours = self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200 if found and ours else 404)
      self.end_headers()
      self.wfile.write((found or "").encode())

    def log_message(self, *args):
      pass

  with http.server.HTTPServer(("localhost", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_address[1]}", attributes
    server.shutdown()


@pytest.mark.parametrize(
  "environ, several",
  [
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}, True),
    ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, True),
    (
      {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "MEGASCALE_COORDINATOR_ADDRESS": "a",
      },
      True,
    ),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_PROCESS_BOUNDS": "1,1,1"}, False),
    ({"TPU_SKIP_MDS_QUERY": "1"}, False),
  ],
)
def test_the_hosts_of_a_tpu_slice_are_read_from_variables(
  environ, several, monkeypatch
):
  def unreachable(*_):
    raise AssertionError("The metadata server is not needed.")

  monkeypatch.setattr(cluster, "_on_tpu", lambda: True)
  monkeypatch.setattr(cluster, "_metadata", unreachable)
  assert cluster.options(environ) == ({} if several else None)
  assert cluster.options(environ, alone=True) is None


@pytest.mark.parametrize(
  "attributes, several",
  [
    ({}, False),  # Not of a TPU VM.
    ({"worker-network-endpoints": "unknown:unknown:10.0.0.2"}, False),
    ({"worker-network-endpoints": "a:b:10.0.0.2,a:b:10.0.0.3"}, True),
    (
      {
        "worker-network-endpoints": "a:b:10.0.0.2",
        "tpu-env": "ZONE: 'z'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9'\n",
      },
      True,
    ),
  ],
)
def test_the_hosts_of_a_tpu_slice_are_read_from_the_metadata(
  attributes, several, metadata, monkeypatch
):
  address, served = metadata
  served |= attributes
  monkeypatch.setattr(cluster, "_on_tpu", lambda: True)
  environ = {"GCE_METADATA_IP": address}
  assert cluster.options(environ) == ({} if several else None)


def test_a_tpu_host_without_metadata_is_a_single_one(monkeypatch):
  monkeypatch.setattr(cluster, "_on_tpu", lambda: True)
  closed = f"localhost:{cluster._free_port()}"
  assert cluster.options({"GCE_METADATA_IP": closed}) is None
