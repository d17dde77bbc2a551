"""Commands whose workdir, data, weights and images are in an object store."""

import csv
import json
import shutil
import signal
import time

import numpy as np
import pytest

import zsad_jax
from tests.commands import distributed_test, fuzz_test, train_test
from tests.helpers import launch, remote_folder, small_run
from zsad_jax import backbones, convert, data, evaluate, predict, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.backbones.clip import tiny
from zsad_jax.datasets import image_files, naming, references, registry
from zsad_jax.runs import checkpoint, lock, logger, settings
from zsad_jax.runtime import copies, environment, mirror, urls

DATA, RUN = "gs://b/data/parts", "gs://b/runs/a"
CONFIG = f"--config=tests/helpers/small_run.py:{DATA}"


@pytest.fixture(scope="module")
def top(tmp_path_factory):
  return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def patch(top):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    patch.setattr(urls, "_PAUSE", 0.0)
    patch.setattr(mirror, "_SETTLE", 0.0)
    patch.setattr(mirror, "_INTERVAL", 0.0)
    patch.setattr(copies, "_origins", {})
    patch.setattr(copies, "_fetched", set())
    patch.setenv("EPATH_USE_TF", "1")
    patch.setenv(environment.CACHE, str(top / "cache"))
    yield patch


@pytest.fixture(scope="module")
def store(top, patch):
  small_run.write_images(top / "store/b/data/parts")
  small_run.write_mvtec(top / "store/b/sets/mvtec")
  with remote_folder.registered(top / "store") as store:
    yield store


@pytest.fixture
def machine(top, monkeypatch):
  """Let this be a machine without any local copy."""

  def change(name):
    monkeypatch.setattr(copies, "_origins", {})
    monkeypatch.setattr(copies, "_fetched", set())
    monkeypatch.setenv(environment.CACHE, str(top / name))

  return change


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}


@pytest.fixture(scope="module")
def trained(top, patch, store):
  """The run in the store, which failed once and went on elsewhere."""

  fetch = logger.fetch

  def fail(measured):
    if 5 in measured:
      raise ValueError("not finite in step 5")
    return fetch(measured)

  with pytest.MonkeyPatch.context() as here:
    here.setattr(logger, "fetch", fail)
    ended = fuzz_test.run(train, CONFIG, f"--workdir={RUN}")
  assert ended.status == 1 and "not finite in step 5" in ended.err, ended
  folder = store.root / "b/runs/a"
  local = remote_folder.files(mirror.Mirror(RUN).path)
  assert remote_folder.files(folder) == local
  assert [*losses(folder)] == [1, 2, 3, 4]
  with pytest.MonkeyPatch.context() as other:
    other.setattr(copies, "_origins", {})
    other.setattr(copies, "_fetched", set())
    other.setenv(environment.CACHE, str(top / "second"))
    ended = fuzz_test.run(train, CONFIG, f"--workdir={RUN}")
    assert ended.status == 0, ended
    assert f"{RUN} has all results." in ended.out
    local = remote_folder.files(mirror.Mirror(RUN).path)
  assert remote_folder.files(folder) == local
  return folder


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_has_the_numbers_of_a_local_one(
  trained, top
):
  config = small_run.get_config(str(top / "store/b/data/parts"))
  train.train(config.lock(), top / "local")
  assert losses(trained) == losses(top / "local")
  config = json.loads((trained / "config.json").read_text())
  assert config["train_data"] == [DATA]  # No path of the machine.
  assert (trained / "finished.json").is_file()
  assert not (trained / "lock.json").exists()
  assert {p.name for p in trained.glob("evaluation/*")} >= {"parts"}


@pytest.mark.slow
def test_evaluate_writes_its_results_to_the_store(trained, machine):
  machine("third")
  before = remote_folder.files(trained)
  shutil.rmtree(trained / "evaluation")
  ended = fuzz_test.run(evaluate, f"--workdir={RUN}", takes_arguments=False)
  assert ended.status == 0, ended
  assert remote_folder.files(trained).keys() >= before.keys()
  local = remote_folder.files(mirror.Mirror(RUN).path)
  assert remote_folder.files(trained) == local
  ended = fuzz_test.run(
    evaluate, f"--workdir={RUN},gs://b/runs/b", takes_arguments=False
  )
  assert "--output: name a folder for the summary" in ended.err


@pytest.mark.slow
def test_predict_names_images_by_their_urls(trained, store, machine):
  machine("fourth")
  ended = fuzz_test.run(
    predict,
    f"--workdir={RUN}",
    "--output=gs://b/out",
    "--threshold=0.5",
    f"--references={DATA}/normal/0.png",
    f"{DATA}/anomalous",
  )
  assert ended.status == 0, ended
  images = [f"{DATA}/anomalous/{i}.png" for i in range(4)]
  output = store.root / "b/out"
  with (output / "scores.csv").open(newline="", encoding="utf-8-sig") as file:
    rows = [*csv.DictReader(file)]
  assert [row["image"] for row in rows] == images
  assert rows[0]["overlay"] == "gs://b/out/0_overlay.png"
  assert all(image in ended.out for image in images)
  used = json.loads((output / "references.json").read_text())
  assert used == {"object": [f"{DATA}/normal/0.png"]}
  assert len([*output.glob("*_overlay.png")]) == 4
  # The same by the Python interface.
  detector = zsad_jax.load(RUN, threshold=0.5)
  found = detector.with_references([f"{DATA}/normal/0.png"])
  assert found(images[0]).score == pytest.approx(float(rows[0]["score"]), 1e-4)


def test_checkpoints_and_measurements_are_uploaded(store, machine):
  url = "gs://b/runs/small"
  tree = {"w": np.arange(6.0)}
  machine("here")
  copy = mirror.Mirror(url)
  with copy.opened(), lock.hold(copy.path):
    log = logger.Writer(copy.path, first_step=0, total_steps=3)
    saved = checkpoint.Checkpoints(copy.path / "checkpoints")
    for step in range(1, 4):
      saved.save(step, {"step": step}, model=tree)
      log.write(step, {"loss": 1.0})
    assert copy._task is not None  # In the background.
    saved.close()
  folder = store.root / "b/runs/small"
  assert remote_folder.files(folder) == remote_folder.files(copy.path)
  assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
    "2",
    "3",
  ]
  machine("there")
  copy = mirror.Mirror(url)
  with copy.opened():
    saved = checkpoint.Checkpoints(copy.path / "checkpoints", read_only=True)
    found, meta = saved.restore(model=tree)
    assert meta["step"] == 3
    np.testing.assert_array_equal(found["model"]["w"], tree["w"])
    assert len(losses(copy.path)) == 3


def test_a_failed_upload_of_results_names_folder_and_url(store, machine):
  machine("fifth")

  def before(name, path):
    if name == "write" and not path.endswith(".probe"):
      raise PermissionError("403")

  store.before = before
  try:
    ended = fuzz_test.run(
      data, "index", f"--root={DATA}", "--output=gs://b/index/meta.json"
    )
  finally:
    store.before = None
  assert ended.status == 1
  assert "error: Cannot write gs://b/index/meta.json" in ended.err
  local = mirror.Mirror("gs://b/index/meta.json").path
  assert f"The results are in {local}" in ended.err and local.is_file()


@pytest.mark.parametrize(
  ("module", "arguments", "message"),
  [
    (train, (CONFIG, "--workdir=http://b/a"), "--workdir: http://b/a: http://"),
    (
      train,
      ("--config=adaclip", "--config.data_root=ftp://b", "--workdir=new"),
      "config.data_root: ftp://b: ftp:// is not supported; supported are",
    ),
    (
      train,
      ("--config=adaclip", "--config.decoded_cache=gs://b/c", "--workdir=new"),
      "config.decoded_cache: gs://b/c is a URL, but must be a local path.",
    ),
    (train, ("--config=gs://b/c.py",), "--config: gs://b/c.py is a URL"),
    (train, (CONFIG, "--workdir=s3://b/a"), "s3:// needs s3fs: pip install"),
    (predict, ("--workdir=gs://b/none", "a.png"), "config.json does not exist"),
    (predict, ("--workdir=runs/a", "http://b/a.png"), "http://b/a.png: http"),
    (
      convert,
      ("--source=gs://b/none.pt", "--output=x.safetensors"),
      "gs://b/none.pt does not exist, or is empty.",
    ),
    (data, ("index", f"--root={DATA}"), "--output: name a file"),
    (data, ("verify", "--root=gs://b/none"), "gs://b/none does not exist"),
    (
      data,
      ("verify", "--dataset=visa", "--data_root=gs://b/sets"),
      "exists in gs://b/sets.",
    ),
  ],
)
def test_refused_commands(
  module, arguments, message, store, machine, tmp_path, monkeypatch
):
  machine("refused")
  takes = module not in (train, convert)
  ended = fuzz_test.run(module, *arguments, takes_arguments=takes)
  assert ended.status == 1 and message in ended.err, ended
  assert ended.err.count("\n") == 1
  assert not [*tmp_path.iterdir()]


def test_features_are_local():
  config = small_run.get_config(DATA)
  config.features.folder = "gs://b/features"
  with pytest.raises(ValueError, match="config.features.folder: gs://b/feat"):
    settings.check(config, settings.TRAINING)


def test_weights_are_read_from_the_store(store, machine, top):
  machine("weights")
  target = store.root / "b/weights/clip.safetensors"
  target.parent.mkdir(parents=True)
  store.requests.clear()
  shutil.copy(tiny.FILE, target)
  url = "gs://b/weights/clip.safetensors"
  assert backbones.load("embedded", url).patch_size
  assert store.requests["read"] == 1
  with pytest.raises(FileNotFoundError, match="gs://b/weights/none does not"):
    backbones.load("embedded", "gs://b/weights/none")


def test_data_sets_below_a_remote_root(store, machine):
  machine("data")
  found = registry.open_dataset("mvtec", data_root="gs://b/sets")
  assert found.counts == (10, 8, 8)
  place = naming.place("mvtec", "gs://b/sets")
  assert place.key == "mvtec" and place.root == found.root
  machine("list")
  store.requests.clear()
  ended = fuzz_test.run(data, "list", "--data_root=gs://b/sets")
  assert ended.status == 0 and "  gs://b/sets/mvtec\n" in ended.out
  assert not store.requests["read"]  # A list copies nothing.
  folders = ["gs://b/data/parts", "gs://b/other/parts"]
  names = naming.names([naming.place(folder) for folder in folders])
  assert {*names.values()} == {"data/parts", "other/parts"}


def test_lists_of_remote_images(store, machine, tmp_path):
  machine("lists")
  folder = store.root / "b/data"
  (folder / "list.txt").write_text("parts/normal/0.png\nparts/normal/1.png\n")
  expected = [f"{DATA}/normal/{i}.png" for i in range(2)]
  for listed in ("gs://b/data/list.txt", str(tmp_path / "list.txt")):
    found = image_files.find([listed])
    assert [copies.origin(path) for path in found] == expected
    (tmp_path / "list.txt").write_text("\n".join(expected))
  (folder / "references.json").write_text('{"parts": ["parts/normal/0.png"]}')
  dataset = registry.open_dataset(DATA)
  found = references.read("gs://b/data/references.json", dataset)
  (paths,) = found.images.values()
  assert [copies.origin(path) for path in paths] == expected[:1]
  with pytest.raises(FileNotFoundError, match="gs://b/data/none.png does not"):
    image_files.find(["gs://b/data/none.png"])


@pytest.mark.slow
def test_a_signal_ends_training_after_its_results_are_uploaded(store, tmp_path):
  url, folder = "gs://b/runs/stopped", store.root / "b/runs/stopped"
  env = {
    environment.CACHE: str(tmp_path),
    remote_folder.STORE: str(store.root),
    "EPATH_USE_TF": "1",
  }
  process = train_test.start(DATA, url, "--config.epochs=2000", **env)
  pattern = "remote/*/b/runs/stopped/checkpoints/[0-9]*"
  while not (saved := [*tmp_path.glob(pattern)]):
    assert process.poll() is None, process.communicate()
    time.sleep(0.1)
  local = saved[0].parents[1]
  # A second command on this machine is refused by the lock.
  second = train_test.start(DATA, url, "--config.epochs=2000", **env)
  out, err = second.communicate(timeout=200)
  assert second.returncode == 1 and "is in use by process" in err, (out, err)
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=200)
  assert process.returncode == 128 + signal.SIGTERM, (out, err)
  expected = f"Stopped by SIGTERM. The same command resumes the run in {url}."
  assert err.strip() == expected, err
  assert f"{url} has all results." in out
  assert remote_folder.files(folder) == remote_folder.files(local)
  last = max(int(p.name) for p in folder.glob("checkpoints/[0-9]*"))
  assert [*losses(folder)] == [*range(1, last + 1)]


# ---- Several processes.


def train_on_hosts(data, caches, workdir, root):
  """Start a process for each cache folder; they train one run."""
  envs = [
    {
      environment.CACHE: str(cache),
      remote_folder.STORE: str(root),
      "EPATH_USE_TF": "1",
    }
    for cache in caches
  ]
  return distributed_test.start(
    data,
    workdir,
    processes=len(caches),
    devices=8 // len(caches),
    extra_envs=envs,
  )


@pytest.mark.slow
def test_two_processes_with_a_shared_cache_train_as_one(store, tmp_path):
  root, cache = store.root, tmp_path / "cache"
  started = train_on_hosts(
    "gs://b/sets/mvtec", [cache] * 2, "gs://b/runs/two", root
  )
  status, out, errors = launch.finish(started)
  assert status == [0, 0], errors
  assert "gs://b/runs/two has all results." in out[0]
  folder = root / "b/runs/two"
  (local,) = cache.glob("remote/*/b/runs/two")
  assert remote_folder.files(folder) == remote_folder.files(local)
  local = tmp_path / "one"
  started = train_on_hosts(root / "b/sets/mvtec", [cache], local, root)
  status, _, errors = launch.finish(started)
  assert status == [0], errors
  assert losses(folder) == losses(local)


@pytest.mark.slow
def test_two_hosts_without_a_shared_cache_are_refused(store, tmp_path):
  root, caches = store.root, [tmp_path / "a", tmp_path / "b"]
  started = train_on_hosts("gs://b/sets/mvtec", caches, "gs://b/runs/no", root)
  status, _, errors = launch.finish(started)
  assert status == [1, 1]
  for text in errors:
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: gs://b/runs/no: with several hosts"), text
    assert environment.CACHE in last and "gcsfuse" in last
