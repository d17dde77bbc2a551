"""Tests of `zsad_jax.backbones.clip.weights`."""

import dataclasses
import json
import os
import re
import stat

import numpy as np
import pytest
import safetensors.numpy

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import weights


def _assert_same(found, expected):
  """Check for equal names, shapes, data types and values."""
  found, expected = clip_convert.flatten(found), clip_convert.flatten(expected)
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    assert found[name].dtype == x.dtype, name
    np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)


def test_round_trip_keeps_values_and_stored_dtypes(tmp_path, tiny):
  path = tmp_path / "new" / "tiny.safetensors"
  params, config = clip_convert.from_openai(tiny, activation="gelu_erf")
  weights.save(path, params, config, {"name": "tiny.pt"})
  stored, metadata = weights.read_safetensors(path)
  _assert_same(stored, params)  # float16; kernels are transposed views.
  about = json.loads(metadata["zsad_jax"])
  assert about["source"] == {"name": "tiny.pt"}
  assert about["config"]["activation"] == "gelu_erf"
  loaded, loaded_config = weights.load(path)
  assert loaded_config == config
  floats = {
    k: x.astype(np.float32) for k, x in clip_convert.flatten(params).items()
  }
  _assert_same(loaded, floats)


def test_the_file_has_the_usual_permissions(tmp_path, tiny):
  path, usual = tmp_path / "a.safetensors", tmp_path / "usual"
  weights.save(path, *clip_convert.from_openai(tiny), {})
  usual.touch()
  assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("fails", ["save", "replace"])
def test_failure_leaves_the_folder_as_it_was(
  tmp_path, tiny, monkeypatch, fails
):
  path = tmp_path / "a.safetensors"
  path.write_bytes(b"what was there before")

  def fail(*_):
    raise OSError("No space left on device")

  module = {"save": safetensors.numpy, "replace": os}[fails]
  monkeypatch.setattr(module, fails, fail)
  with pytest.raises(OSError, match="No space"):
    weights.save(path, *clip_convert.from_openai(tiny), {})
  assert path.read_bytes() == b"what was there before"
  assert list(tmp_path.iterdir()) == [path]


def test_error_for_parameters_of_other_sizes(tmp_path, tiny):
  params, config = clip_convert.from_openai(tiny)
  other = dataclasses.replace(config, text_layers=5)
  with pytest.raises(ValueError, match="12 missing: text/resblocks_4"):
    weights.save(tmp_path / "a.safetensors", params, other, {})
  assert not list(tmp_path.iterdir())


def test_errors_for_other_files(tmp_path, tiny):
  path = tmp_path / "a.safetensors"
  command = re.escape(f"zsad convert --source=SOURCE --output={path}`")
  with pytest.raises(FileNotFoundError, match=f"not a file.*{command}"):
    weights.load(path)
  weights.save(path, *clip_convert.from_openai(tiny), {})
  whole = path.read_bytes()
  path.write_bytes(whole[:-1000])
  with pytest.raises(
    ValueError, match=f"a.safetensors is truncated.*{command}"
  ):
    weights.load(path)
  path.write_bytes(b"not safetensors at all")
  with pytest.raises(ValueError, match=f"no safetensors file.*{command}"):
    weights.load(path)
  safetensors.numpy.save_file({"a": np.zeros(3)}, path)
  with pytest.raises(ValueError, match=f"not made by.*{command}"):
    weights.load(path)
  path.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 2'))
  with pytest.raises(ValueError, match=f"format 2, expected 1.*{command}"):
    weights.load(path)
