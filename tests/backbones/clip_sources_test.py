"""Tests of `zsad_jax.backbones.clip.sources`: files, directories, the hub."""

import hashlib
import json

import pytest

from tests.helpers.clip_files import (
  JIT,
  TINY,
  to_hugging_face,
  write_directory,
  write_safetensors,
)
from tests.helpers.local_hub_client import hub  # noqa: F401
from zsad_jax.backbones.clip import sources


@pytest.fixture(scope="module")
def tiny_hf(tiny):
  """The same weights under the names of transformers."""
  return dict(to_hugging_face(tiny))


@pytest.fixture
def hf_directory(tmp_path, tiny):
  """Directory of a model of transformers, weights in two files."""
  write_directory(tmp_path / "hf", dict(to_hugging_face(tiny)))
  return tmp_path / "hf"


def test_shards_must_agree_with_the_index(hf_directory):
  index_file = hf_directory / "model.safetensors.index.json"
  index = json.loads(index_file.read_text())
  shard = hf_directory / "model-00002-of-00002.safetensors"
  whole = shard.read_bytes()
  shard.unlink()
  message = "lists 2 files, of which 1 are missing: model-00002-of"
  with pytest.raises(FileNotFoundError, match=message):
    sources.read(str(hf_directory))
  shard.write_bytes(whole)
  moved = max(index["weight_map"])
  index["weight_map"][moved] = "model-00001-of-00002.safetensors"
  index_file.write_text(json.dumps(index))
  message = rf"00001.* disagree: not in the file \['{moved}'\]"
  with pytest.raises(ValueError, match=message):
    sources.read(str(hf_directory))


def test_directories_that_are_no_models(hf_directory):
  with pytest.raises(ValueError, match="--activation is for open_clip files"):
    sources.read(str(hf_directory), "quick")
  for shard in hf_directory.glob("model*"):
    shard.unlink()
  with pytest.raises(FileNotFoundError, match="has no weights; expected model"):
    sources.read(str(hf_directory))
  config = hf_directory / "config.json"
  config.write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match="model_type is 'bert'"):
    sources.read(str(hf_directory))
  config.write_text("{")
  with pytest.raises(ValueError, match="config.json is not JSON"):
    sources.read(str(hf_directory))
  config.unlink()
  with pytest.raises(FileNotFoundError, match="has no config.json"):
    sources.read(str(hf_directory))


def test_hub_name(hf_directory, hub):  # noqa: F811
  with pytest.raises(FileNotFoundError, match="openai/clip .*not on the hub: "):
    sources.read("openai/clip")
  files = {path.name: path.read_bytes() for path in hf_directory.iterdir()}
  hub.add("openai/clip", files | {"pytorch_model.bin": b"of no use"})
  assert sources.read("openai/clip").config == TINY
  assert not hub.downloads("pytorch_model.bin")
  hub.status = 503
  assert sources.read("openai/clip").config == TINY  # The copy of before.
  message = "openai/other .*could not be fetched.*pass --source=DIRECTORY"
  with pytest.raises(FileNotFoundError, match=message):
    sources.read("openai/other")
  with pytest.raises(FileNotFoundError, match="weights/absent.pt is no file"):
    sources.read("weights/absent.pt")


def test_an_open_clip_file_has_the_pixels_of_its_configuration(tmp_path, tiny):
  path = tmp_path / "open_clip_model.safetensors"
  write_safetensors(path, tiny)
  assert sources.read(str(path), "gelu_erf").config.pixels == "openai"
  half = {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
  (tmp_path / "open_clip_config.json").write_text(json.dumps(half))
  assert sources.read(str(path), "gelu_erf").config.pixels == "half"
  assert sources.read(str(path), "quick", "openai").config.pixels == "openai"


def test_open_clip_files_need_an_activation(tmp_path, tiny, tiny_hf):
  path = tmp_path / "open_clip_model.safetensors"
  write_safetensors(path, tiny)
  with pytest.raises(ValueError, match="does not store its activation"):
    sources.read(str(path))
  assert sources.read(str(path), "gelu_erf").config.activation == "gelu_erf"
  write_safetensors(path, tiny_hf)
  with pytest.raises(ValueError, match="pass the directory"):
    sources.read(str(path), "quick")


def test_published_names_have_published_digests(tmp_path):
  digest = hashlib.sha256(JIT.read_bytes()).hexdigest()
  release = "vit_b_16_plus_240-laion400m_e31-8fb26589.pt"
  for name, expected in [
    ("ViT-L-14-336px.pt", "3035c92b350959924f9f0021"),
    (release, "8fb26589"),
  ]:
    path = tmp_path / name
    path.write_bytes(JIT.read_bytes())
    with pytest.raises(ValueError, match=f"{digest}, expected {expected}"):
      sources.read(str(path))
  path.rename(tmp_path / f"mine-{digest[:8]}.pt")
  sources.read(str(tmp_path / f"mine-{digest[:8]}.pt"))
