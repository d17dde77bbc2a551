"""Tests of `zsad_jax.backbones.clip.tiny` and of the shipped weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import tiny_clip
from tests.commands.pretrain_test import SIZES
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.backbones.clip import model, tiny
from zsad_jax.backbones.clip.config import ClipConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A CLIP with some trained rows, and its file and digest."""
  path = tmp_path_factory.mktemp("file") / "tiny.safetensors"
  clip = model.random_clip(SIZES, 4)
  ids = np.array([7, 300, 49407])
  table = clip.params["text"]["token_embedding"].at[ids].set(0.5)
  params = {
    **clip.params,
    "text": {**clip.params["text"], "token_embedding": table},
  }
  clip = model.Clip(params, SIZES)
  digest = tiny.save(path, clip, vocabulary=ids, seed=4, about={"steps": 1})
  return clip, path, digest


def test_file_round_trip(saved):
  clip, path, _ = saved
  assert path.stat().st_size < 3e6  # Not the table of 49,408 rows.
  again = tiny.load(path)
  assert again.config == clip.config
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
    again.params,
    clip.params,
  )
  table = again.params["text"]["token_embedding"]
  random = tiny.random_table(SIZES, 4)
  np.testing.assert_array_equal(table[8:300], random[8:300])
  assert (table[7] == 0.5).all()


def test_the_package_file_is_checked_by_its_digest(saved, monkeypatch):
  _, path, digest = saved
  monkeypatch.setattr(tiny, "FILE", path)
  monkeypatch.setattr(tiny, "SHA256", digest)
  assert tiny.load().config == SIZES
  content = bytearray(path.read_bytes())
  content[-9] ^= 1
  broken = path.with_name("broken.safetensors")
  broken.write_bytes(content)
  monkeypatch.setattr(tiny, "FILE", broken)
  with pytest.raises(ValueError, match="broken.safetensors is corrupt"):
    tiny.load()
  monkeypatch.setattr(tiny, "FILE", path.with_name("absent"))
  with pytest.raises(FileNotFoundError, match="Install zsad_jax again"):
    tiny.load()


def test_error_for_a_file_of_another_format(tmp_path):
  save_file({"x": np.zeros(3)}, tmp_path / "x.safetensors")
  with pytest.raises(ValueError, match="holds no embedded CLIP"):
    tiny.load(tmp_path / "x.safetensors")


def test_the_shipped_weights_are_complete():
  clip = tiny.load()
  assert clip.config == clip_load.RANDOM_CONFIG
  assert tiny.FILE.stat().st_size <= 12e6
  config = tiny_clip.get_config()
  assert ClipConfig(**config.model) == clip.config
