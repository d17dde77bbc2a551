"""Tests of `zsad_jax.backbones` as an extension point."""

import os
import pathlib
import shutil
import subprocess
import sys
import types as pytypes

import pytest

import zsad_jax
from zsad_jax import backbones, types
from zsad_jax.backbones.clip import load as clip_load

PACKAGE = pathlib.Path(zsad_jax.__file__).parent

# A backbone without a text encoder: patches are projected linearly.
LOAD = """
from zsad_jax.backbones.toy import model

NAMES = ("toy",)
NOTES = {"toy": "A linear backbone."}


def load(name, path, dtype="float32"):
  del name, path, dtype
  return model.create()
"""
MODEL = """
import flax
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Toy:
  kernel: jax.Array
  embed_dim = 6
  patch_size = 8
  vision_layers = 1
  vision_width = 6

  def normalize(self, pixels):
    return pixels.astype(np.float32) / 127.5 - 1.0

  def image(self, image, **hooks):
    del hooks
    b, h, w, _ = image.shape
    p = self.patch_size
    cells = image.reshape(b, h // p, p, w // p, p, 3).swapaxes(2, 3)
    tokens = cells.reshape(b, -1, p * p * 3) @ self.kernel
    return tokens.mean(1), {"block01": tokens}

  def project(self, tokens, *, ln_post):
    del ln_post
    return tokens


def create():
  rng = np.random.default_rng(0)
  return Toy(jnp.asarray(rng.normal(size=(192, 6)), jnp.float32) / 14)
"""
# A method without text: distance of each patch from the mean of its image.
METHOD = '''
"""Distance from the mean patch.

  Code  Method.predict
"""

import dataclasses

import jax.numpy as jnp

from zsad_jax import types
from zsad_jax.layers import similarity


@dataclasses.dataclass(frozen=True)
class Method(types.Method):

  def init(self, rng, backbone):
    return {}, {}

  def prepare(self, backbone, class_names):
    return {}

  def encode(self, backbone, batch):
    mean, out = backbone.image(batch["image"])
    return {"mean": mean, "patch_units": out["block01"]}

  def predict(self, params, stats, backbone, aux, features):
    """Map distances to [0, 1] (Code)."""
    patches, mean = features["patch_units"], features["mean"]
    distance = jnp.linalg.norm(patches - mean[:, None], axis=-1)
    size = similarity.image_size(backbone, features)
    values = 1 - jnp.exp(-distance[..., None])
    maps = similarity.to_map(values, size, method="bilinear")[..., 0]
    return {"anomaly_map": maps, "pred_score": maps.max((1, 2))}


TINY = {}
'''
SCRIPT = """
import numpy as np

import zsad_jax
from zsad_jax import backbones, types
from zsad_jax.inference.predictor import Predictor
from zsad_jax.runs import run
from zsad_jax.runtime import distributed

print(zsad_jax.__file__)
assert "toy" in backbones.names() and "embedded" in backbones.names()
assert backbones.note("toy") == "A linear backbone."
backbone = backbones.load(name="toy", path="")
assert isinstance(backbone, types.ImageBackbone)
assert not isinstance(backbone, types.TextBackbone)
method = run.make_method("from_mean", {})
predictor = Predictor(
  method, backbone, ["bottle"], distributed.make_mesh(), smooth_sigma=1.0
)
image = np.full((2, 32, 32, 3), 90, np.uint8)
image[1, 8:16, 16:24] = 255
features = predictor.encode({"image": image, "class_id": np.zeros(2, np.int32)})
[found] = predictor.predict({}, {}, features)
maps, scores = map(np.asarray, (found["anomaly_map"], found["pred_score"]))
assert maps.shape == (2, 32, 32) and scores.shape == (2,)
assert np.all(maps >= 0) and np.all(maps <= 1)
np.testing.assert_allclose(scores[0], 0.0, atol=1e-3)
assert scores[1] > 0.1
assert 8 <= maps[1].argmax() // 32 < 16 and 16 <= maps[1].argmax() % 32 < 24
"""


def test_a_backbone_without_text_is_one_folder(tmp_path):
  copy = tmp_path / "zsad_jax"
  shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
  toy = copy / "backbones" / "toy"
  toy.mkdir()
  (toy / "__init__.py").touch()
  (toy / "load.py").write_text(LOAD)
  (toy / "model.py").write_text(MODEL)
  (copy / "methods" / "from_mean.py").write_text(METHOD.lstrip())
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(tmp_path)},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == str(copy / "__init__.py")


def test_clip_implements_both_protocols(small_clip):
  assert isinstance(small_clip, types.Backbone)


def test_names_notes_and_errors():
  assert set(clip_load.NAMES) <= set(backbones.names())
  assert "random weights" in backbones.note("embedded_random")
  assert backbones.note("ViT-L-14") == backbones.note("no such model") == ""
  with pytest.raises(ValueError, match="no model 'ViT-X'; known: embedded, "):
    backbones.load("ViT-X", "")
  with pytest.raises(ValueError, match="one of float32, bfloat16, got 'int8'"):
    backbones.load("embedded", "", "int8")
  with pytest.raises(ValueError, match="path is empty.* --model=ViT-L-14"):
    backbones.load("ViT-L-14", "")


def test_attention_is_chosen_by_backbones_that_have_a_choice(monkeypatch):
  with pytest.raises(ValueError, match="exact, flash, got 'fast'"):
    backbones.load("embedded_random", "", attention="fast")
  plain = pytypes.SimpleNamespace(load=lambda *_: object())
  monkeypatch.setattr(backbones, "_loaders", lambda: {"plain": plain})
  with pytest.raises(ValueError, match="plain has no choice of attention"):
    backbones.load("plain", "", attention="flash")


def test_a_name_belongs_to_one_folder(monkeypatch):
  other = pytypes.SimpleNamespace(NAMES=("ViT-L-14",), NOTES={}, load=None)
  folder = pytypes.SimpleNamespace(name="other", ispkg=True)
  clip = pytypes.SimpleNamespace(name="clip", ispkg=True)
  modules = {"clip": clip_load, "other": other}
  monkeypatch.setattr(
    backbones.pkgutil, "iter_modules", lambda _: [clip, folder]
  )
  monkeypatch.setattr(
    backbones.importlib,
    "import_module",
    lambda name: modules[name.split(".")[2]],
  )
  message = "Two folders .* load 'ViT-L-14': other and clip"
  with pytest.raises(ValueError, match=message):
    backbones.names()
