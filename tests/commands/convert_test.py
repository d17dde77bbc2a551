"""Tests of `zsad_jax.convert` and of the tables in `backbones.clip.convert`."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
import transformers

from tests.conftest import GOLDENS
from zsad_jax import convert
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import sources, weights

JIT = GOLDENS / "clip_micro_openai_jit.pt"
STATE_DICT = GOLDENS / "clip_micro_openai_state_dict.pt"
TINY = clip_config.ClipConfig(64, 56, 14, 128, 8, 64, 4)
HF_CONFIG = {
  "model_type": "clip",
  "projection_dim": 64,
  "vision_config": dict(
    hidden_size=128,
    num_hidden_layers=8,
    num_attention_heads=2,
    intermediate_size=512,
    image_size=56,
    patch_size=14,
  ),
  "text_config": dict(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=1,
    intermediate_size=256,
  ),
}


@pytest.fixture(scope="module")
def tiny_hf(tiny):
  """The same weights under the names of transformers."""
  return dict(_to_hugging_face(tiny))


@pytest.fixture
def hf_directory(tmp_path, tiny_hf):
  """A transformers model whose weights are split over two files."""
  folder = tmp_path / "hf"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(HF_CONFIG))
  ordered = sorted(tiny_hf)
  weight_map = {}
  for i, part in enumerate((ordered[:100], ordered[100:])):
    file = f"model-0000{i + 1}-of-00002.safetensors"
    _write_safetensors(folder / file, {name: tiny_hf[name] for name in part})
    weight_map |= dict.fromkeys(part, file)
  index = {"metadata": {}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder


TO_HUGGING_FACE = [
  (r"^visual\.conv1", "vision_model.embeddings.patch_embedding"),
  (r"^visual\.class", "vision_model.embeddings.class"),
  (r"^visual\.pos\w+", "vision_model.embeddings.position_embedding.weight"),
  (r"^pos\w+", "text_model.embeddings.position_embedding.weight"),
  (r"^token_embedding", "text_model.embeddings.token_embedding"),
  (r"^visual\.transformer\.resblocks", "vision_model.encoder.layers"),
  (r"^transformer\.resblocks", "text_model.encoder.layers"),
  (r"^visual\.ln_pre", "vision_model.pre_layrnorm"),
  (r"^visual\.ln_post", "vision_model.post_layernorm"),
  (r"^ln_final", "text_model.final_layer_norm"),
  (r"^visual\.proj", "visual_projection.weight"),
  (r"^text_projection", "text_projection.weight"),
  (r"\.ln_([12])", r".layer_norm\1"),
  (r"\.attn\.", ".self_attn."),
  (r"\.c_fc", ".fc1"),
  (r"\.c_proj", ".fc2"),
]


def _to_hugging_face(state):
  """Yields the arrays of an OpenAI state dict as transformers names them."""
  for name, x in state.items():
    for ours, theirs in TO_HUGGING_FACE:
      name = re.sub(ours, theirs, name)
    if ".in_proj_" in name:
      for letter, third in zip("qkv", np.split(x, 3)):
        yield name.replace(".in_proj_", f".{letter}_proj."), third
    else:
      yield name, x.T if "projection" in name else x


def _write_safetensors(path, state, **kwargs):
  state = {name: np.asarray(x, order="C") for name, x in state.items()}
  safetensors.numpy.save_file(state, path, **kwargs)


def _assert_same(found, expected):
  """Same names, shapes, dtypes and values."""
  found, expected = clip_convert.flatten(found), clip_convert.flatten(expected)
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    assert found[name].dtype == x.dtype, name
    np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)


# ---- Names and sizes


def test_layout_of_our_tree(tiny):
  params, config = clip_convert.from_openai(tiny)
  assert config == TINY
  block = "visual.transformer.resblocks.5"
  ours = params["visual"]["resblocks_5"]
  np.testing.assert_array_equal(
    ours["attn"]["in_proj"]["kernel"],
    tiny[f"{block}.attn.in_proj_weight"].T,
  )
  np.testing.assert_array_equal(
    ours["mlp"]["c_fc"]["kernel"][3], tiny[f"{block}.mlp.c_fc.weight"][:, 3]
  )
  np.testing.assert_array_equal(
    params["visual"]["conv1"]["kernel"][:, :, 2, 7],
    tiny["visual.conv1.weight"][7, 2],
  )
  np.testing.assert_array_equal(
    params["text"]["text_projection"], tiny["text_projection"]
  )
  assert params["logit_scale"].shape == ()


@pytest.mark.parametrize(
  ("model", "count"),
  [
    ("ViT-B-32", 151_277_313),
    ("ViT-B-16", 149_620_737),
    ("ViT-L-14", 427_616_513),
    ("ViT-L-14-336", 427_944_193),
    ("ViT-H-14", 986_109_441),
  ],
)
def test_published_parameter_counts(model, count):
  shapes = clip_convert.param_shapes(clip_config.MODELS[model])
  assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == count


@pytest.mark.parametrize("model", clip_config.MODELS)
def test_sizes_are_read_off_the_weights(model):
  expected = clip_config.MODELS[model]
  # Arrays of the full shapes that take no memory, under our own names.
  flat = {
    name: np.broadcast_to(np.float16(0), shape)
    for name, shape in clip_convert.param_shapes(expected).items()
  }
  assert (
    clip_convert._infer_config(flat, expected.activation, "test") == expected
  )


def test_unusual_width_is_refused(tiny):
  state = dict(tiny)
  state["visual.conv1.weight"] = np.zeros((100, 3, 14, 14))
  with pytest.raises(ValueError, match="vision tower of width 100"):
    clip_convert.from_openai(state)


def test_unused_entries_are_dropped(tiny, tiny_hf):
  unused = {"input_resolution": np.array(56), "attn_mask": np.zeros((77, 77))}
  _assert_same(
    clip_convert.from_openai(tiny | unused)[0],
    clip_convert.from_openai(tiny)[0],
  )
  positions = {"vision_model.embeddings.position_ids": np.arange(17)}
  params, _ = clip_convert.from_hugging_face(tiny_hf | positions, _hf_config())
  _assert_same(params, clip_convert.from_openai(tiny)[0])


def test_both_sides_are_listed(tiny):
  state = dict(tiny)
  del state["visual.ln_post.bias"]
  state["visual.transformer.resblocks.3.attn.extra"] = np.zeros(3)
  state["ln_final.weight"] = np.zeros(65)
  message = re.escape(
    "1 missing: visual/ln_post/bias; "
    "1 unknown: visual.transformer.resblocks.3.attn.extra; "
    "1 misshapen: text/ln_final/scale: expected (64,), found (65,)."
  )
  with pytest.raises(ValueError, match=f"mine.pt does not fit .*{message}"):
    clip_convert.from_openai(state, source="mine.pt")


def test_a_missing_block_is_noticed_and_long_lists_are_cut(tiny):
  state = {n: x for n, x in tiny.items() if "visual.transformer" not in n}
  state |= {n: x for n, x in tiny.items() if ".resblocks.7." in n}
  with pytest.raises(ValueError) as error:
    clip_convert.from_openai(state)
  message = str(error.value)
  listed = re.search("84 missing: (.*); 0 unknown; 0 misshapen", message)
  assert len(listed[1].split(", ")) == clip_convert.MAX_LISTED + 1
  assert listed[1].endswith(", ...")


def test_not_a_vit(tiny):
  resnet = {
    "visual.conv1.weight": np.zeros((32, 3, 3, 3)),
    "visual.layer1.0.conv1.weight": np.zeros((64, 64, 1, 1)),
    "visual.attnpool.k_proj.bias": np.zeros(2048),
  }
  state = {n: x for n, x in tiny.items() if "visual" not in n} | resnet
  message = r"2 missing: .*visual/proj; 2 unknown: visual.layer1.0"
  with pytest.raises(ValueError, match=message):
    clip_convert.from_openai(state)
  state = tiny | {"visual.conv1.weight": np.zeros((128, 588))}
  message = r"conv1/kernel: expected 4 axes, found \(128, 588\)"
  with pytest.raises(ValueError, match=message):
    clip_convert.from_openai(state)


def _hf_config(**fields):
  """The config as transformers completes it, vision fields replaced."""
  vision = HF_CONFIG["vision_config"] | fields
  return transformers.CLIPConfig(**HF_CONFIG | {"vision_config": vision})


def test_hugging_face_equals_openai(tiny, tiny_hf):
  params, config = clip_convert.from_hugging_face(tiny_hf, _hf_config())
  assert config == TINY
  _assert_same(params, clip_convert.from_openai(tiny)[0])


def test_hugging_face_configs_we_cannot_run(tiny_hf):
  for fields, message in [
    ({"hidden_act": "relu"}, "hidden_act is 'relu' in the vision tower"),
    ({"hidden_act": "gelu"}, "expected one of .* in both"),
    ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
    ({"num_hidden_layers": 9}, r"12 missing: visual/resblocks_8/ln_1/scale"),
  ]:
    with pytest.raises(ValueError, match=message):
      clip_convert.from_hugging_face(tiny_hf, _hf_config(**fields))


def test_incomplete_projections_are_not_fused(tiny_hf):
  state = dict(tiny_hf)
  del state["text_model.encoder.layers.1.self_attn.k_proj.bias"]
  message = (
    "1 missing: text/resblocks_1/attn/in_proj/bias; 2 unknown: "
    "text/resblocks_1/attn/q_proj/bias, text/resblocks_1/attn/v_proj/bias"
  )
  with pytest.raises(ValueError, match=message):
    clip_convert.from_hugging_face(state, _hf_config())


# ---- The command


def test_torch_formats_convert_to_the_same(tmp_path, capsys):
  loaded = []
  for source in (JIT, STATE_DICT):
    output = tmp_path / "micro.safetensors"
    convert.convert(str(source), str(output))
    loaded.append(weights.load(output))
    report = capsys.readouterr().out
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
  _assert_same(loaded[0][0], loaded[1][0])


def test_sharded_directory(tmp_path, hf_directory, tiny, capsys):
  output = tmp_path / "out.safetensors"
  convert.convert(str(hf_directory), str(output))
  params, config = weights.load(output)
  assert (
    config == TINY
  )  # Heads, activation, 77 and 49408 by transformers' defaults.
  expected, _ = clip_convert.from_openai(
    {name: x.astype(np.float32) for name, x in tiny.items()}
  )
  _assert_same(params, expected)
  assert capsys.readouterr().out.count("sha256") == 2


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


def test_hub_name(hf_directory, monkeypatch):
  def download(name, allow_patterns):
    assert name == "openai/clip" and "config.json" in allow_patterns
    return str(hf_directory)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert sources.read("openai/clip").config == TINY

  def offline(*_, **__):
    raise huggingface_hub.errors.LocalEntryNotFoundError("No connection")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  message = "openai/clip .*No connection.*pass --source=DIRECTORY"
  with pytest.raises(FileNotFoundError, match=message):
    sources.read("openai/clip")
  with pytest.raises(FileNotFoundError, match="weights/absent.pt is no file"):
    sources.read("weights/absent.pt")


def test_open_clip_files_need_an_act(tmp_path, tiny, tiny_hf):
  path = tmp_path / "open_clip_model.safetensors"
  _write_safetensors(path, tiny)
  with pytest.raises(ValueError, match="does not store its activation"):
    sources.read(str(path))
  assert sources.read(str(path), "gelu_erf").config.activation == "gelu_erf"
  _write_safetensors(path, tiny_hf)
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


def test_model_of_other_sizes(tmp_path):
  output = tmp_path / "out.safetensors"
  message = (
    "is not a ViT-B-32: embed_dim: expected 512, found 64; .*"
    "vision_layers: expected 12, found 2; "
  )
  with pytest.raises(ValueError, match=message):
    convert.convert(str(JIT), str(output), model="ViT-B-32")
  assert not output.exists()
  large = dataclasses.replace(
    clip_config.MODELS["ViT-L-14"], activation="gelu_erf"
  )
  convert.check_model(large, "ViT-L-14", "LAION's has the other activation")


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
