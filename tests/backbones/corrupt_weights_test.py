"""Files of weights that are corrupt, not finite or of other kinds."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import sources, weights

PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"


@pytest.fixture(scope="module")
def intact(tmp_path_factory, tiny):
  path = tmp_path_factory.mktemp("weights") / "intact.safetensors"
  weights.save(path, *clip_convert.from_openai(tiny), {"name": "tiny"})
  return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, tiny, value):
  name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
  broken = {**tiny, name: tiny[name].copy()}
  broken[name][0, 0] = value
  message = "resblocks_0/mlp/c_fc/kernel holds 1 numbers that are NaN"
  params, config = clip_convert.from_openai(broken)
  with pytest.raises(ValueError, match=f"a.safetensors: .*{message}"):
    weights.save(tmp_path / "a.safetensors", params, config, {})
  assert not list(tmp_path.iterdir())
  path = tmp_path / "open_clip.safetensors"
  safetensors.numpy.save_file(broken, path)
  with pytest.raises(ValueError, match=f"open_clip.safetensors: .*{message}"):
    sources.read(str(path), "quick")


def test_loaded_weights_that_are_not_finite_are_refused(intact, tmp_path):
  tensors, metadata = weights.read_safetensors(intact)
  name = "text/ln_final/scale"
  tensors = {**tensors, name: tensors[name] * np.nan}
  path = tmp_path / "nan.safetensors"
  safetensors.numpy.save_file(tensors, path, metadata)
  with pytest.raises(ValueError, match=f"nan.safetensors: {name} holds"):
    weights.load(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
  "data, message",
  [
    (PAGE, "web page"),
    (POINTER, "git lfs pull"),
    (b"", "empty"),
    (b"{", "JSON"),
  ],
)
def test_files_of_other_kinds_are_recognised(tmp_path, suffix, data, message):
  path = tmp_path / f"model{suffix}"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=f"model{suffix}.*{message}"):
    sources.read(str(path), "quick")


@pytest.mark.parametrize(
  "dtype, name",
  [
    (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
    (ml_dtypes.float8_e5m2, "float8_e5m2"),
  ],
)
def test_tensors_of_8_bits_are_refused(tmp_path, dtype, name):
  path = tmp_path / "fp8.safetensors"
  safetensors.numpy.save_file({"visual.proj": np.ones((4, 4), dtype)}, path)
  with pytest.raises(ValueError, match=f"visual.proj is {name}, which is not"):
    sources.read(str(path), "gelu_erf")


def test_quantized_tensors_are_refused(tmp_path, tiny):
  changed = {**tiny, "visual.proj": tiny["visual.proj"].astype(np.int8)}
  path = tmp_path / "int8.safetensors"
  safetensors.numpy.save_file(changed, path)
  with pytest.raises(ValueError, match="visual/proj holds int8"):
    sources.read(str(path), "quick")


@pytest.mark.parametrize(
  "text, message",
  [
    ("[1]", "must be a JSON object"),
    ("", "is not JSON"),
    ('{"model_type": "siglip"}', "model_type is 'siglip', expected 'clip'"),
    ('{"model_type": "clip", "vision_config": 3}', "vision_config must be an"),
    (
      '{"model_type": "clip", "vision_config": {"hidden_size": "big"}}',
      "big|hidden",
    ),
  ],
)
def test_a_config_of_another_kind_is_named(tmp_path, text, message):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=f"config.json.*({message})"):
    sources.read(str(tmp_path))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"embed_dim": "big"}, "size embed_dim of the model is 'big'"),
    ({"patch_size": 0}, "size patch_size of the model is 0"),
    ({"colour": 1}, "size 'colour' of the model is unknown"),
  ],
)
def test_sizes_in_a_file_are_checked(intact, tmp_path, change, message):
  tensors, metadata = weights.read_safetensors(intact)
  about = json.loads(metadata[weights.METADATA_KEY])
  about["config"] |= change
  path = tmp_path / "sizes.safetensors"
  metadata = {weights.METADATA_KEY: json.dumps(about)}
  safetensors.numpy.save_file(tensors, path, metadata)
  with pytest.raises(ValueError, match=f"sizes.safetensors.*{message}"):
    weights.load(path)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_damaged_bytes_are_named_or_give_finite_weights(intact, data):
  path = intact.with_name("corrupt.safetensors")
  content = bytearray(intact.read_bytes())
  if data.draw(st.booleans()):
    content = content[: data.draw(st.integers(0, len(content) - 1))]
  else:
    end = data.draw(st.sampled_from([8, 400, 4000, len(content)])) - 1
    content[data.draw(st.integers(0, end))] = data.draw(st.integers(0, 255))
  path.write_bytes(content)
  try:
    params, _ = weights.load(path)
  except ValueError as error:
    assert re.search(r"corrupt.safetensors", str(error))
    return
  for x in clip_convert.flatten(params).values():
    assert np.isfinite(x).all()
