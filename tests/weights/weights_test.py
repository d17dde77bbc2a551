"""The weights command, from a hub on this machine to a prediction."""

import csv
import json
import pathlib
import types

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from tests.helpers import clip_files, local_hub, small_run
from tests.helpers.given_flags import GivenFlags
from tests.helpers.local_hub_client import hub  # noqa: F401
from zsad_jax import backbones, convert, predict
from zsad_jax.backbones import published_weights
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.backbones.clip import sources, weights
from zsad_jax.runs import checkpoint
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import config_files
from zsad_jax.runtime import hub as hub_lib
from zsad_jax.weights import __main__ as command
from zsad_jax.weights import instructions

REPO = "openai/clip-vit-tiny"
ENTRY = published_weights.Published(
  "ViT-tiny", "ViT-tiny", REPO, "nobody", "MIT"
)
# Names of the files in openai/clip-vit-large-patch14-336.
CONFIG_FILES = {
  "README.md": b"---\n---\n",
  "merges.txt": b"#version: 0.2\n",
  "vocab.json": b"{}",
  "tokenizer.json": b"{}",
  "tokenizer_config.json": b"{}",
  "special_tokens_map.json": b"{}",
  "tf_model.h5": b"\x89HDF",
}


@pytest.fixture
def model(hub, tiny, monkeypatch, tmp_path):  # noqa: F811
  """A tiny CLIP on the hub, in the files of OpenAI's repositories."""
  state = dict(clip_files.to_hugging_face(tiny))
  arrays = {n: np.asarray(x, order="C") for n, x in state.items()}
  preprocessor = {"image_mean": clip_config.MEAN.tolist()}
  preprocessor |= {"image_std": clip_config.STD.tolist()}
  hub.add(
    REPO,
    CONFIG_FILES
    | {
      "config.json": json.dumps(clip_files.HF_CONFIG).encode(),
      "preprocessor_config.json": json.dumps(preprocessor).encode(),
      "model.safetensors": safetensors.save(arrays),
    },
  )
  hub.licences[REPO] = "mit"
  monkeypatch.setitem(clip_config.MODELS, "ViT-tiny", clip_files.TINY)
  monkeypatch.setattr(clip_load, "NAMES", (*clip_load.NAMES, "ViT-tiny"))
  monkeypatch.setattr(clip_load, "PUBLISHED", (*clip_load.PUBLISHED, ENTRY))
  monkeypatch.chdir(tmp_path)
  return hub


def run(*arguments, output=None, offline=False, overwrite=False):
  command.main(
    types.SimpleNamespace(
      arguments=[*arguments],
      output=output,
      offline=offline,
      overwrite=overwrite,
    )
  )


def test_a_model_of_the_hub_is_fetched_and_predicts(model, tiny, capsys):
  run("get", "ViT-tiny")
  printed = capsys.readouterr().out
  data = model.files(REPO, "main")["model.safetensors"]
  assert f"verified {local_hub.sha256(data)}  model.safetensors" in printed
  assert "licence MIT; the repository states: mit" in printed
  assert not model.downloads("tf_model.h5")  # Only what is needed.
  file = "weights/ViT-tiny.safetensors"
  params, config = weights.load(file)
  assert config == clip_files.TINY
  kernel = np.asarray(tiny["visual.conv1.weight"], np.float32)
  expected = kernel.transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(params["visual"]["conv1"]["kernel"], expected)
  assert backbones.identify("ViT-tiny", file) == ENTRY
  run("get", "ViT-tiny")
  assert "exists and is kept" in capsys.readouterr().out

  small_run.write_images(pathlib.Path("parts"), number=1)
  _write_run(pathlib.Path("run"), file)
  predict.predict(run_lib.load("run"), ["parts/normal"], pathlib.Path("out"))
  with open("out/scores.csv", encoding="utf-8-sig", newline="") as table:
    (row,) = csv.DictReader(table)
  assert row["status"] == "scored" and 0 <= float(row["score"]) <= 1


def _write_run(folder, file):
  """Write a run of plain CLIP, which trains nothing."""
  config = config_files.load("clip").unlock()
  config.backbone.name, config.backbone.path = "ViT-tiny", file
  config.image_size = 56
  config.memory.feature_layers = (2, 4)
  folder.mkdir()
  run_lib.save_config(folder, config)
  method = run_lib.make_method(config.method_name, config.method.to_dict())
  loaded = backbones.load("ViT-tiny", file)
  params, stats = method.init(jax.random.key(0), loaded)
  saved = checkpoint.Checkpoints(folder / "checkpoints")
  model = {"params": params, "stats": stats}
  saved.save(0, {"step": 0, "epoch": 0}, model=model)
  saved.close()
  threshold_lib.Threshold(0.5, 0.0, 1.0, "given").write(folder)


def test_convert_uses_the_same_downloads(model, capsys):
  run("get", "ViT-tiny")
  model.log.clear()
  flags = GivenFlags(source=REPO, output="other.safetensors", model="ViT-tiny")
  convert.main(flags)
  assert not model.downloads("model.safetensors")
  assert backbones.identify("ViT-tiny", "other.safetensors") == ENTRY
  first = pathlib.Path("weights/ViT-tiny.safetensors")
  assert backbones.digest(backbones.load("ViT-tiny", str(first))) == (
    backbones.digest(backbones.load("ViT-tiny", "other.safetensors"))
  )


def test_weights_in_the_format_of_torch(model, monkeypatch, tiny):
  files = model.repos[REPO].pop()
  del files["model.safetensors"]
  model.add(REPO, files | {"pytorch_model.bin": b"x" * 100})
  state = dict(clip_files.to_hugging_face(tiny))
  monkeypatch.setattr(sources.torch_file, "read", lambda path: state)
  run("get", "ViT-tiny")
  assert model.downloads("pytorch_model.bin")
  assert weights.load("weights/ViT-tiny.safetensors")[1] == clip_files.TINY


def test_without_a_network_the_steps_are_printed(model, capsys, monkeypatch):
  dead = "http://127.0.0.1:9"
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", dead)
  for offline in (True, False):
    with pytest.raises(hub_lib.HubError):
      run("get", "ViT-L-14-336", offline=offline)
    printed = capsys.readouterr().out
    assert (
      "fetch https://openaipublic.azureedge.net/clip/models/"
      "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/"
      "ViT-L-14-336px.pt elsewhere and put it at weights/ViT-L-14-336px.pt "
      "(SHA-256 3035c92b" in printed
    )
    assert (
      "zsad convert --model=ViT-L-14-336 --output=weights/ViT-L-14-336."
      "safetensors --source=weights/ViT-L-14-336px.pt\n" in printed
    )
    assert (
      "from https://huggingface.co/openai/clip-vit-large-patch14-336/tree/main "
      "elsewhere and put the files into "
      "weights/openai--clip-vit-large-patch14-336/" in printed
    )


def test_after_a_download_no_network_is_needed(model):
  run("get", "ViT-tiny")
  pathlib.Path("weights/ViT-tiny.safetensors").unlink()
  model.log.clear()
  run("get", "ViT-tiny", offline=True)
  assert weights.load("weights/ViT-tiny.safetensors")[1] == clip_files.TINY
  assert not model.log


def test_errors_write_no_file(model):
  model.corrupt.add("model.safetensors")
  with pytest.raises(ValueError, match="but the hub states"):
    run("get", "ViT-tiny")
  model.corrupt.clear()
  model.gated.add(REPO)
  with pytest.raises(hub_lib.HubError, match="is gated"):
    run("get", "ViT-tiny")
  model.gated.clear()
  del model.repos[REPO][0]["config.json"]
  with pytest.raises(FileNotFoundError, match="has no config.json"):
    run("get", "ViT-tiny")
  assert not pathlib.Path("weights").exists()
  with pytest.raises(ValueError, match="did you mean ViT-L-14-336?"):
    run("get", "ViT-L-14-33")
  with pytest.raises(
    ValueError, match="Give `list`, or `get NAME`.* got nothi"
  ):
    run()


def test_a_model_of_other_sizes_is_refused(model, monkeypatch):
  other = published_weights.Published(
    "other", "ViT-L-14", REPO, "nobody", "MIT"
  )
  monkeypatch.setattr(clip_load, "PUBLISHED", (other,))
  with pytest.raises(
    ValueError, match="is not a ViT-L-14: embed_dim: expected"
  ):
    run("get", "other")


@pytest.mark.parametrize(
  ("mean", "std", "found"),
  [
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "half"),
    (clip_config.MEAN.tolist(), clip_config.STD.tolist(), "openai"),
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], None),
  ],
)
def test_the_normalization_of_pixels_is_read(model, mean, std, found, capsys):
  text = json.dumps({"image_mean": mean, "image_std": std})
  model.repos[REPO][0]["preprocessor_config.json"] = text.encode()
  if not found:
    with pytest.raises(
      ValueError, match="pixels are normalized with mean .0.48"
    ):
      run("get", "ViT-tiny")
    return
  run("get", "ViT-tiny")
  clip = backbones.load("ViT-tiny", "weights/ViT-tiny.safetensors")
  pixels = np.arange(0, 256, 17, np.uint8).reshape(1, -1, 1).repeat(3, 2)
  expected = (pixels / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(clip.normalize(pixels), expected, rtol=1e-5)


def test_the_list_names_every_entry_and_checkpoint(capsys):
  run("list")
  printed = capsys.readouterr().out
  for name, entry in backbones.published().items():
    assert f"\n  {name} " in printed and entry.repo in printed
    assert entry.backbone in backbones.names() and entry.licence in printed
    options = dict(entry.options)
    assert options.get("pixels", "openai") in clip_config.PIXELS
  methods = dict(instructions.released())
  assert {"adaclip", "anomalyclip", "faprompt", "adaptclip"} < {*methods}
  for name, found in methods.items():
    assert f"\n  {name} " in printed and found.page in printed


def test_steps_for_checkpoints_are_valid_commands(capsys):
  for name, found in instructions.released():
    run("get", name)
    printed = capsys.readouterr().out
    assert found.page in printed
    assert f"zsad convert --method={name} --checkpoint=weights/" in printed
    for _, options in found.files:
      for part in options.split():
        if part.startswith("--config="):
          assert config_files.load(part.removeprefix("--config="))
