"""Tests of `zsad_jax.convert`."""

import dataclasses
import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import GOLDENS
from tests.helpers.clip_files import (
  JIT,
  STATE_DICT,
  TINY,
  assert_same,
  to_hugging_face,
  write_directory,
)
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import conversion, weights
from zsad_jax.backbones.clip import convert as clip_convert


@pytest.fixture
def hf_directory(tmp_path, tiny):
  """Directory of a model of transformers, weights in two files."""
  write_directory(tmp_path / "hf", dict(to_hugging_face(tiny)))
  return tmp_path / "hf"


def test_torch_formats_convert_to_the_same(tmp_path):
  loaded = []
  for source in (JIT, STATE_DICT):
    output = tmp_path / "micro.safetensors"
    report = conversion.convert(str(source), str(output))
    loaded.append(weights.load(output))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    for words in (
      str(source),
      digest,
      "vision_layers=2",
      "activation=quick",
      "608,321 in float16 and float32",
      str(output),
    ):
      assert words in report
  assert loaded[0][1] == loaded[1][1]
  assert_same(loaded[0][0], loaded[1][0])


def test_sharded_directory(tmp_path, hf_directory, tiny):
  output = tmp_path / "out.safetensors"
  report = conversion.convert(str(hf_directory), str(output))
  params, config = weights.load(output)
  # Heads, activation, 77 and 49408 are defaults of transformers.
  assert config == TINY
  expected, _ = clip_convert.from_openai(
    {name: x.astype(np.float32) for name, x in tiny.items()}
  )
  assert_same(params, expected)
  assert report.count("sha256") == 2


def test_model_of_other_sizes(tmp_path):
  output = tmp_path / "out.safetensors"
  message = (
    "is not a ViT-B-32: embed_dim: expected 512, found 64; .*"
    "vision_layers: expected 12, found 2; "
  )
  with pytest.raises(ValueError, match=message):
    conversion.convert(str(JIT), str(output), model="ViT-B-32")
  assert not output.exists()
  large = dataclasses.replace(
    clip_config.MODELS["ViT-L-14"], activation="gelu_erf"
  )
  conversion.check_model(large, "ViT-L-14", "LAION's has the other activation")


@pytest.mark.slow
def test_command_line(tmp_path):
  def run(source):
    output = tmp_path / "out.safetensors"
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "zsad_jax.convert",
        f"--source={source}",
        f"--output={output}",
      ],
      capture_output=True,
      text=True,
      cwd=GOLDENS.parents[1],
    )

  good = run(JIT)
  assert good.returncode == 0 and "wrote" in good.stdout, good.stderr
  bad = run(tmp_path / "absent\n.pt")
  assert bad.returncode == 1 and not bad.stdout
  assert re.fullmatch(r"error: .*absent .pt is no file.*\n", bad.stderr)
