"""Tests of runs/authors_checkpoint.py and the methods' checkpoint layouts."""

import importlib
import os
import pickle
import pickletools
import re
import zipfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from tests.conftest import GOLDENS
from tests.helpers.authors_files import AUTHORS, BUFFER, nest, random_state
from zsad_jax import backbones, convert, predict
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import prompt_learner
from zsad_jax.runs import authors_checkpoint, checkpoint
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import config_files
from zsad_jax.torch_io import file as torch_file
from zsad_jax.torch_io import rules

METHODS = tuple(AUTHORS)
FULL = clip_config.MODELS["ViT-L-14-336"]
FULL_B = clip_config.MODELS["ViT-B-16-plus-240"]

# ---- Full sizes


def module_of(name):
  return importlib.import_module(f"zsad_jax.methods.{name}")


def shape_clip(sizes):
  """Return a CLIP without weights; its token table takes no memory."""
  table = np.broadcast_to(np.float32(0), (sizes.vocab_size, sizes.text_width))
  return clip.Clip({"text": {"token_embedding": table}}, sizes)


def init_shapes(method, backbone):
  return jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))


@pytest.mark.parametrize("name", METHODS)
def test_every_leaf_has_a_name_and_back(name):
  method = module_of(name).Method()
  stored = method.checkpoint_spec
  trees = init_shapes(method, shape_clip(FULL))
  seen = set()
  for tree, table in zip(trees, (stored.names, stored.stats)):
    for path in clip_convert.flatten(tree):
      torch_name, layout = rules.invert(path, table)
      assert rules.find(torch_name, table) == (path, layout)
      assert torch_name not in seen
      seen.add(torch_name)
    assert rules.invert("no/such/path", table) is None


@pytest.mark.parametrize("name", METHODS)
def test_full_size_files_have_the_authors_names_and_shapes(name):
  method = module_of(name).Method()
  found = authors_checkpoint.expected_tensors(method, shape_clip(FULL))
  shapes = {key: tensor.shape for key, tensor in found.items()}
  assert shapes == AUTHORS[name](method, FULL)
  for key, tensor in found.items():
    integer = "tokenized" in key or "num_batches" in key
    assert (tensor.dtype.kind == "i") == integer


@pytest.mark.parametrize(
  ("name", "settings", "sizes", "trainable", "stored"),
  [
    ("adaclip", {}, FULL, 10_661_632, 10_665_472),
    ("anomalyclip", {}, FULL, 43_008, 5_555_200),
    ("faprompt", {}, FULL, 4_100_064, 9_612_256),
    ("adaptclip", {}, FULL, 1_763_266, 1_763_266),
    ("adaptclip", {"prompt_query": False}, FULL, 609_024, 609_024),
    ("adaptclip", {}, FULL_B, 1_414_978, 1_414_978),
    ("adaptclip", {"prompt_query": False}, FULL_B, 425_600, 425_600),
    ("april_gan", {}, FULL, 3_148_800, 3_148_800),
    ("vcpclip", {}, FULL, 7_687_946, 8_277_770),
  ],
)
def test_published_parameter_counts(name, settings, sizes, trainable, stored):
  method, backbone = module_of(name).Method(**settings), clip.Clip({}, sizes)
  params, _ = init_shapes(method, backbone)
  used = jax.tree.map(
    lambda x, t: x.size * t, params, method.trainable_mask(params)
  )
  assert sum(jax.tree.leaves(used)) == trainable
  assert (
    authors_checkpoint.stored_parameters(method, backbone, params) == stored
  )


@pytest.mark.parametrize(
  ("name", "settings", "goldens"),
  [
    ("anomalyclip", {"context_length": 6}, ["tokenized_prompts"]),
    ("faprompt", {"num_prompts": 4}, ["tokenized_pos", "tokenized_neg"]),
    ("adaptclip", {"context_length": 5}, ["learned_prompt_token_ids"]),
  ],
)
def test_stored_ids_are_those_of_the_authors_prompts(
  name, settings, goldens, small_clip
):
  method = module_of(name).Method(**settings)
  spec = method.checkpoint_spec
  buffers = spec.buffers(method, small_clip)
  found = [
    buffers[f"{spec.groups[0]}.tokenized_prompts_{state}"][0]
    for state in ("pos", "neg")
  ]
  with np.load(GOLDENS / f"{name}.npz") as golden:
    expected = np.concatenate([golden[key] for key in goldens])
  np.testing.assert_array_equal(np.concatenate(found), expected)


# ---- Conversion and export


@pytest.fixture
def loaded_clip(monkeypatch, small_clip):
  """Load the small CLIP for every configuration; start from zeros."""
  monkeypatch.setattr(backbones, "load", lambda **_: small_clip)
  zeros = lambda x: jnp.asarray(np.zeros(x.shape, x.dtype))

  for name in METHODS:
    cls = module_of(name).Method

    def init(self, rng, backbone, init=cls.init):
      shapes = jax.eval_shape(lambda: init(self, rng, backbone))
      return jax.tree.map(zeros, shapes)

    monkeypatch.setattr(cls, "init", init)


def small_config(name, **settings):
  config = config_files.load(name).unlock()
  config.name = f"{name}_small"
  config.method = module_of(name).TINY | settings
  config.backbone = dict(name="embedded_random", path="", dtype="float32")
  config.image_size, config.smooth_sigma = 32, 1.0
  return config


def make_file(path, name, small_clip, **kwargs):
  method = module_of(name).Method(**module_of(name).TINY)
  state = random_state(name, method, small_clip.config, **kwargs)
  torch_file.write(path, nest(state, name))
  return state


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for key, x in expected.items():
    np.testing.assert_array_equal(found[key], x, err_msg=key, strict=True)


@pytest.mark.parametrize("name", METHODS)
def test_round_trip(name, tmp_path, small_clip, loaded_clip, capsys):
  state = make_file(tmp_path / "in.pth", name, small_clip, half=True)
  authors_checkpoint.convert(
    tmp_path / "in.pth", tmp_path / "run", small_config(name)
  )
  lines = capsys.readouterr().out.splitlines()
  method = module_of(name).Method(**module_of(name).TINY)
  reported = [line.split()[0] for line in lines][: len(state)]
  assert reported == [*authors_checkpoint.expected_tensors(method, small_clip)]
  buffers = sum(bool(BUFFER.search(key)) for key in state)
  assert sum(line.endswith("not of this backbone") for line in lines) == buffers
  assert any("other CLIP weights" in line for line in lines) == bool(buffers)

  run = run_lib.load(tmp_path / "run")
  assert run.step == 0 and run.config.name == f"{name}_small"
  stored = method.checkpoint_spec
  for tree, table in ((run.params, stored.names), (run.stats, stored.stats)):
    mine = {
      key: x
      for key, x in state.items()
      if rules.find(key, table) and "_adapter.1." not in key
    }
    ours = clip_convert.flatten(tree)
    theirs = rules.rename(mine, table)
    assert ours.keys() == theirs.keys()
    for path, x in theirs.items():
      np.testing.assert_array_equal(ours[path], x, err_msg=path)

  authors_checkpoint.export(tmp_path / "run", tmp_path / "out.pth")
  assert_same(torch_file.read(tmp_path / "out.pth"), state)
  with zipfile.ZipFile(tmp_path / "out.pth") as archive:
    program = pickletools.genops(archive.read("out/data.pkl"))
    words = {word for opcode, word, _ in program if opcode.name == "BINUNICODE"}
  dotted = state if name == "adaclip" else nest(state, name)
  assert words >= dotted.keys()


@pytest.mark.parametrize("name", ["april_gan", "vcpclip"])
def test_full_size_round_trip(name, tmp_path, monkeypatch):
  method, backbone = module_of(name).Method(), shape_clip(FULL)
  state = random_state(name, method, FULL)
  torch_file.write(tmp_path / "in.pth", nest(state, name))
  found = authors_checkpoint.read(tmp_path / "in.pth", method, backbone)
  (tmp_path / "run").mkdir()
  np.savez(tmp_path / "run" / authors_checkpoint.EXTRA_FILE, **found.extra)
  run = run_lib.Run(
    workdir=tmp_path / "run",
    config=small_config(name),
    method=method,
    backbone=backbone,
    params=found.params,
    stats=found.stats,
    step=0,
    seconds=0.0,
  )
  monkeypatch.setattr(run_lib, "load", lambda workdir: run)
  authors_checkpoint.export(tmp_path / "run", tmp_path / "out.pth")
  assert_same(torch_file.read(tmp_path / "out.pth"), state)


def test_a_run_of_ours_is_completed(tmp_path, small_clip, loaded_clip):
  """Buffers come from its backbone; unused tensors are zeros."""
  config = small_config("faprompt")
  method = run_lib.make_method("faprompt", config.method.to_dict())
  params, stats = method.init(jax.random.key(0), small_clip)
  params = jax.tree.map(lambda x: x + 0.5, params)
  run_lib.save_config(tmp_path / "run", config)
  saved = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
  model = {"params": params, "stats": stats}
  saved.save(7, {"step": 7, "epoch": 1}, model=model)
  saved.close()
  authors_checkpoint.export(tmp_path / "run", tmp_path / "out.pth")
  found = authors_checkpoint.read(tmp_path / "out.pth", method, small_clip)
  assert sum(line.endswith("verified") for line in found.report) == 6
  unused = [x for key, x in found.extra.items() if "projections" in key]
  assert len(unused) == 4 and not any(map(np.any, unused))
  jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_buffers_may_be_rounded(tmp_path, small_clip):
  method = module_of("anomalyclip").Method(**module_of("anomalyclip").TINY)
  state = random_state("anomalyclip", method, small_clip.config)
  own = prompt_learner.buffers(
    small_clip, "prompt_learner", method.prompt_templates()
  )
  state |= {
    key: x if "tokenized" in key else x.astype(np.float16)
    for key, x in own.items()
  }
  torch_file.write(tmp_path / "in.pth", state)
  report = authors_checkpoint.read(
    tmp_path / "in.pth", method, small_clip
  ).report
  assert sum(line.endswith("verified") for line in report) == 6
  state["prompt_learner.tokenized_prompts_neg"] = state[
    "prompt_learner.tokenized_prompts_pos"
  ]
  torch_file.write(tmp_path / "in.pth", state)
  report = authors_checkpoint.read(
    tmp_path / "in.pth", method, small_clip
  ).report
  assert report[-1].startswith("warning: 1 frozen")


def test_a_converted_run_predicts(tmp_path, small_clip, loaded_clip, capsys):
  make_file(tmp_path / "in.pth", "anomalyclip", small_clip)
  config = small_config("anomalyclip")
  authors_checkpoint.convert(tmp_path / "in.pth", tmp_path / "run", config)
  Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
  run = run_lib.load(tmp_path / "run")
  predict.predict(run, [str(tmp_path / "image.png")], tmp_path / "predictions")
  assert "(threshold 0.5: not calibrated: 0.5)" in capsys.readouterr().out
  for few_shot in (False, True):
    stored = threshold_lib.read(run.workdir, few_shot=few_shot)
    assert stored == authors_checkpoint.UNCALIBRATED


# ---- Errors


class _Command:
  """Object whose pickle calls `os.system`."""

  def __reduce__(self):
    return os.system, ("true",)


def refuse(tmp_path, name, message):
  """Check that the conversion fails with a message and leaves no file."""
  before = sorted(tmp_path.iterdir())
  with pytest.raises(ValueError, match=message):
    authors_checkpoint.convert(
      tmp_path / "in.pth", tmp_path / "run", small_config(name)
    )
  assert sorted(tmp_path.iterdir()) == before


def test_names_and_shapes_have_to_fit(tmp_path, small_clip, loaded_clip):
  state = make_file(tmp_path / "in.pth", "adaclip", small_clip)
  prefix = "clip_model.patch_token_layer.head.0"
  del state[f"{prefix}.bias"]
  state[f"{prefix}.biases"] = np.zeros(32)
  state[f"{prefix}.weight"] = np.zeros((64, 32), np.float32)
  key = "clip_model.cls_token_layer.head.0.bias"
  state[key] = np.zeros(32, np.int64)
  torch_file.write(tmp_path / "in.pth", state)
  parts = (
    f"in.pth does not fit adaclip: 1 missing: {prefix}.bias; ",
    f"1 unknown: {prefix}.biases; 2 misshapen: ",
    f"{key}: expected (32,), found (32,) of integers, ",
    f"{prefix}.weight: expected (32, 64), found (64, 32).",
  )
  refuse(tmp_path, "adaclip", re.escape("".join(parts)) + "$")


@pytest.mark.parametrize("name", METHODS)
def test_other_methods_files_are_recognised(
  name, tmp_path, small_clip, loaded_clip
):
  make_file(tmp_path / "in.pth", name, small_clip)
  for other in set(METHODS) - {name}:
    message = f"does not fit {other}: .* looks like a checkpoint of {name}"
    refuse(tmp_path, other, message)


def test_copies_have_to_be_equal(tmp_path, small_clip, loaded_clip):
  state = make_file(tmp_path / "in.pth", "adaptclip", small_clip)
  key = "pq_learner.local_adapter.1.5.num_batches_tracked"
  torch_file.write(tmp_path / "in.pth", state | {key: state[key] + 1})
  message = f"{key} is not equal to {key.replace('r.1', 'r.0')}, of which"
  refuse(tmp_path, "adaptclip", re.escape(message))


def test_corrupt_and_malicious_files(tmp_path, small_clip, loaded_clip):
  path = tmp_path / "in.pth"
  make_file(path, "anomalyclip", small_clip)
  path.write_bytes(path.read_bytes()[:-100])
  refuse(tmp_path, "anomalyclip", "in.pth is corrupt or truncated")
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("in/data.pkl", pickle.dumps({"a": _Command()}, protocol=2))
  refuse(tmp_path, "anomalyclip", "in.pth would run code")


def test_a_workdir_is_not_written_over(tmp_path, small_clip, loaded_clip):
  make_file(tmp_path / "in.pth", "anomalyclip", small_clip)
  (tmp_path / "run" / "checkpoints").mkdir(parents=True)
  refuse(tmp_path, "anomalyclip", "run is not empty; choose another --workdir")


def test_a_failed_write_leaves_nothing(
  tmp_path, small_clip, loaded_clip, monkeypatch
):
  def full_disk(*_):
    raise OSError(28, "No space left on device")

  make_file(tmp_path / "in.pth", "anomalyclip", small_clip)
  monkeypatch.setattr(threshold_lib.Threshold, "write", full_disk)
  config = small_config("anomalyclip")
  with pytest.raises(OSError, match="No space"):
    authors_checkpoint.convert(tmp_path / "in.pth", tmp_path / "run", config)
  assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_a_method_without_a_checkpoint(small_clip, monkeypatch):
  module = module_of("adaclip")
  method = module.Method(**module_of("adaclip").TINY)
  params, _ = init_shapes(method, small_clip)
  monkeypatch.setattr(module.Method, "checkpoint_spec", None)
  with pytest.raises(ValueError, match="no checkpoint_spec in .*adaclip.py"):
    authors_checkpoint.expected_tensors(method, small_clip)
  count = sum(x.size for x in jax.tree.leaves(params))
  assert (
    authors_checkpoint.stored_parameters(method, small_clip, params) == count
  )


# ---- The command's flags


class _Options(dict):
  """Flags by name, as absl returns them."""

  def __getitem__(self, name):
    return ml_collections.ConfigDict({"value": self.get(name)})


def test_flags_ask_for_one_use():
  use = lambda *given: convert.chosen_use(_Options(dict.fromkeys(given, "x")))
  assert use("source", "output", "activation") == ("source", "output")
  assert "checkpoint" in use("method", "checkpoint", "workdir", "config")
  assert use("workdir", "export") == ("workdir", "export")
  for given in (
    (),
    ("workdir",),
    ("method", "checkpoint"),
    ("workdir", "export", "config"),
    ("source", "output", "workdir"),
  ):
    listed = ", ".join(f"--{name}" for name in sorted(given)) or "none"
    with pytest.raises(ValueError, match=f"; or --workdir.*Given: {listed}"):
      use(*given)
