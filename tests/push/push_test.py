"""The push command: a run on a hub on this machine and back."""

import json
import os
import pathlib
import re
import socket
import types

import huggingface_hub
import jax
import numpy as np
import pytest
import yaml

import zsad_jax
from tests.helpers import small_run
from tests.helpers.local_hub_client import hub  # noqa: F401
from tests.reporting.writer_test import evaluation, result_of  # noqa: F401
from zsad_jax import backbones
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.push import __main__ as command
from zsad_jax.push import folder as folder_lib
from zsad_jax.push import privacy
from zsad_jax.reporting import facts
from zsad_jax.runs import (
  calibrations,
  checkpoint,
  ensemble,
  ensemble_detector,
  model_file,
)
from zsad_jax.runs import hub as hub_runs
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import hub as hub_lib

REPO = "owner/small"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run with thresholds and a calibration; its parameters are random."""
  folder = tmp_path_factory.mktemp("secret") / "run"
  small_run.write_images(folder / "parts", number=2)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    config = small_run.get_config(str(folder / "parts"))
    config.features.folder = str(folder / "features")
    run_lib.save_config(folder, config)
    method = run_lib.make_method("adaclip", config.method.to_dict())
    backbone = backbones.load(**config.backbone)
    params, stats = method.init(jax.random.key(3), backbone)
    saved = checkpoint.Checkpoints(folder / "checkpoints")
    model = {"params": params, "stats": stats}
    saved.save(8, {"step": 8, "epoch": 2, "seconds": 1.5}, model=model)
    saved.close()
    threshold_lib.Threshold(0.4, 0.0, 1.0, f"in {folder}/parts").write(folder)
    run = run_lib.load(folder)
    references = [str(folder / f"parts/normal/{i}.png") for i in (0, 1)]
    calibrations.write(
      folder, _calibration(run, calibrations.describe_references(references))
    )
  return run


@pytest.fixture
def workdir(trained):
  """Folder of the run."""
  return trained.workdir


def _calibration(run, references):
  limits = threshold_lib.read(run.workdir)
  return calibrations.Calibration(
    name="line3",
    threshold=limits,
    class_name="bolt",
    tiling=None,
    references=references,
    rate=0.01,
    num_normal=4,
    num_anomalous=0,
    date=calibrations.now(),
    run_digest=calibrations.run_digest(run),
  )


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
  """The backbone of the run."""
  monkeypatch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
  hub_runs._fetched.cache_clear()


@pytest.fixture
def loaded_once(trained, monkeypatch):
  """Let the command use the run that is loaded already."""
  load = types.SimpleNamespace(load=lambda workdir: trained)
  monkeypatch.setattr(command, "ensemble", load)


def push(workdir, **options):
  defaults = dict(
    workdir=str(workdir),
    repo=REPO,
    license="mit",
    calibration=None,
    dry_run=False,
    output=None,
    public=False,
  )
  command.main(types.SimpleNamespace(**(defaults | options)))


def assert_same(found, expected, images):
  for image in images:
    a, b = found(str(image)), expected(str(image))
    assert a.score == b.score and a.threshold == b.threshold
    np.testing.assert_array_equal(a.raw_map, b.raw_map)


@pytest.mark.slow
def test_a_run_is_uploaded_and_gives_the_same_scores(
  hub,  # noqa: F811
  trained,
  loaded_once,
  capsys,
):
  workdir = trained.workdir
  push(workdir)
  assert "Nothing was uploaded" not in capsys.readouterr().out
  assert REPO in hub.private
  assert {*hub.files(REPO, "main")} == {
    "README.md",
    "config.json",
    "model.safetensors",
    "threshold.json",
  }
  images = sorted((workdir / "parts/anomalous").glob("*.png"))
  found = zsad_jax.load(f"hf:{REPO}")
  assert_same(found, ensemble_detector.make_detector(trained), images)
  again = found._run
  assert (again.step, again.seconds) == (8, 1.5)
  jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
  # A second upload is another commit; the first one can still be read.
  first = hub.commit(REPO, 0)
  push(workdir, calibration="line3")
  assert hub.commit(REPO, 1) != first
  hub_runs._fetched.cache_clear()
  with_references = zsad_jax.load(f"hf:{REPO}", calibration="line3")
  assert with_references.has_references
  named = calibrations.read(workdir, "line3")
  expected = ensemble_detector.from_calibration(trained, named)
  assert_same(with_references, expected, images)
  with pytest.raises(FileNotFoundError, match="line3.json does not exist"):
    zsad_jax.load(f"hf:{REPO}@{first}", calibration="line3")


def test_a_dry_run_writes_a_workdir_without_private_paths(
  hub,  # noqa: F811
  trained,
  loaded_once,
  tmp_path,
  capsys,
):
  workdir = trained.workdir
  output = tmp_path / "upload"
  push(workdir, dry_run=True, output=str(output), calibration="line3")
  printed = capsys.readouterr().out
  assert "2 reference images" in printed and "Nothing was uploaded" in printed
  assert not hub.log
  assert run_lib.read_config(output).data_root == "data"
  host = rf"\b{re.escape(socket.gethostname())}\b".encode()
  for path in filter(pathlib.Path.is_file, output.rglob("*")):
    data = path.read_bytes()
    for private in ("secret", workdir.parent, os.getcwd()):
      assert str(private).encode() not in data, path
    if path.suffix in (".json", ".md"):
      assert not re.search(host, data), path
  with pytest.raises(FileExistsError, match="choose another --output"):
    push(workdir, dry_run=True, output=str(output))
  with pytest.raises(ValueError, match="without the state of its training"):
    run_lib.check_config(output, trained.config)


def test_the_model_card_has_what_the_hub_reads(trained, request, tmp_path):
  workdir = trained.workdir
  found = result_of(*request.getfixturevalue("evaluation"))
  text = facts.document(found, partial="", digest="", config={}, environment={})
  result = json.loads(text) | {"step": trained.step}
  rows = result["rows"].values()
  mean = lambda name: f"{100 * np.mean([row[name] for row in rows]):.1f}"
  file = workdir / "evaluation/parts/results.json"
  file.parent.mkdir(parents=True)
  file.write_text(json.dumps(result))
  stale = workdir / "evaluation/stale/results.json"
  stale.parent.mkdir(parents=True)
  stale.write_text(json.dumps(result | {"step": 1}))
  built = _build(trained, tmp_path / "a", licence="cc-by-4.0")
  text = (tmp_path / "a/README.md").read_text()
  _, header, body = text.split("---\n", 2)
  fields = yaml.safe_load(header)
  assert fields["license"] == "cc-by-4.0"
  assert fields["library_name"] == "zsad_jax"
  assert fields["pipeline_tag"] == "anomaly-detection"
  assert "base_model" not in fields  # The random weights have none.
  names = re.search(r"^\| data \| references \| (.*) \|$", body, re.M)[1]
  name = re.escape(result["dataset"]["name"])
  row = re.findall(rf"^\| {name} \| 0 \| (.*) \|$", body, re.M)
  assert len(row) == 1  # Not the one of another step.
  found = dict(zip(names.split(" | "), row[0].split(" | "), strict=True))
  assert found == {
    "image AUROC": mean("image_auroc"),
    "image AP": mean("image_ap"),
    "pixel AUROC": mean("pixel_auroc"),
    "pixel AP": mean("pixel_ap"),
    "AUPRO": mean("pixel_aupro"),
  }
  assert "- Protocol: " in body
  assert "No accuracy was measured" not in body
  file.unlink()
  stale.unlink()
  built = _build(trained, tmp_path / "b", licence="cc-by-4.0")
  assert "README.md" in built.names
  text = (tmp_path / "b/README.md").read_text()
  assert "No accuracy was measured: none is claimed." in text


def _build(run, output, **options):
  return folder_lib.build(run, output, repo=REPO, **options)


def test_a_licence_is_needed_for_data_of_others(trained, tmp_path):
  with pytest.raises(ValueError, match="--license is missing.*not known"):
    _build(trained, tmp_path / "upload", licence=None)
  document = {"train_data": ["embedded_auxiliary"], "epochs": 1}
  document["backbone"] = {"name": "embedded", "path": ""}
  assert folder_lib._licence(document, None) == "apache-2.0"
  document["train_data"] = ["mvtec"]
  with pytest.raises(ValueError, match="MVTec AD"):
    folder_lib._licence(document, None)


def test_flags_and_ensembles_are_checked(
  trained, workdir, loaded_once, tmp_path
):
  for options, message in (
    (dict(repo="small"), "--repo=small is no name on the hub"),
    (dict(dry_run=True), "--output is missing"),
    (dict(output="x"), "--output is for --dry_run"),
    (dict(calibration="line4"), "line4.json does not exist"),
  ):
    with pytest.raises((ValueError, OSError), match=message):
      push(workdir, **options)
  both = ensemble.Ensemble(**vars(trained), members=(trained,))
  with pytest.raises(ValueError, match="is an ensemble, which is not uploaded"):
    _build(both, tmp_path / "both", licence="mit")


def test_the_hub_refuses_a_wrong_token(
  hub,  # noqa: F811
  workdir,
  loaded_once,
  monkeypatch,
):
  monkeypatch.setenv("HF_TOKEN", "hf_wrong")
  with pytest.raises(
    hub_lib.HubError, match="refuses the upload.*hf auth login"
  ):
    push(workdir)
  dead = "http://127.0.0.1:9"
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", dead)
  with pytest.raises(
    hub_lib.HubError, match="could not be uploaded to the hub"
  ):
    push(workdir)


def test_other_repositories_are_no_runs(hub):  # noqa: F811
  hub.add("owner/other", {"config.json": b"{}"})
  with pytest.raises(hub_lib.HubError, match="is no run of `zsad push`"):
    zsad_jax.load("hf:owner/other")


def test_a_corrupt_model_is_refused(trained, tmp_path):
  output = tmp_path / "upload"
  _build(trained, output, licence="mit")
  path = output / model_file.FILE
  whole = path.read_bytes()
  like = {"params": trained.params, "stats": trained.stats}
  for data, message in (
    (whole[:-1], "truncated or no safetensors"),
    (whole[:-1] + bytes([whole[-1] ^ 1]), "its digest is wrong"),
    (b"", "truncated"),
  ):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
      model_file.read(path, like)
  path.write_bytes(whole)
  found, about = model_file.read(path, like)
  jax.tree.map(np.testing.assert_array_equal, found["params"], trained.params)
  assert about["step"] == 8
  message = "does not fit config.json next to it"
  for other in (
    {"params": trained.params, "stats": {"more": np.zeros(1, np.float32)}},
    {"params": {}, "stats": {}},
    {"params": jax.tree.map(lambda x: x[..., :1], trained.params), "stats": {}},
  ):
    with pytest.raises(ValueError, match=message):
      model_file.read(path, other)


def test_other_weights_of_the_backbone_are_refused(
  trained, tmp_path, monkeypatch
):
  output = tmp_path / "upload"
  _build(trained, output, licence="mit")
  monkeypatch.setattr(clip_load, "RANDOM_SEED", 1)
  with pytest.raises(ValueError, match="holds other weights.*expected"):
    run_lib.load(output)


def test_private_parts_of_texts():
  assert privacy.text("1 % of /home/me/good and ~/x/y") == "1 % of good and y"
  assert privacy.text("gs://bucket/a/b, 1/2") == "b, 1/2"
  assert privacy.data("mvtec") == "mvtec"
  assert privacy.data("/srv/acme/line3/") == "line3 (own data)"
  assert privacy.data(privacy.data("a/b")) == "b (own data)"
