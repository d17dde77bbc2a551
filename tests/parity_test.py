"""Tests of parity/: every stored quantity is within its tolerance."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDENS
from tests.helpers import hugging_face
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.parity import __main__ as parity
from zsad_jax.parity import golden as golden_lib

# Minutes of compilation together; `zsad parity` compares them too.
SLOW = (
  "anomalyclip_variants.npz",
  "adaclip.npz",
  "anovl.npz",
  "april_gan.npz",
  "clip_zeroshot.npz",
  "cocoop.npz",
  "coop.npz",
  "faprompt.npz",
  "inctrl.npz",
  "promptad.npz",
  "musc.npz",
  "tcp.npz",
  "vcpclip.npz",
  "winclip.npz",
  "winclip_variants.npz",
)


@pytest.mark.parametrize(
  "file",
  [
    pytest.param(f, marks=pytest.mark.slow if f in SLOW else ())
    for f, m in golden_lib.Golden(GOLDENS).methods.items()
    if m not in ("clip weights",)
  ],
)
def test_every_stored_quantity_holds(file):
  comparisons = parity.compare_file(golden_lib.Golden(GOLDENS), file)
  assert comparisons
  assert not [c for c in comparisons if not c.holds]


@pytest.fixture
def losses_only(tmp_path):
  """A folder with the losses alone, for tests to change."""
  manifest = json.loads((GOLDENS / "manifest.json").read_text())
  manifest["files"] = {"losses.npz": manifest["files"]["losses.npz"]}
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  shutil.copy(GOLDENS / "losses.npz", tmp_path)
  return tmp_path


def test_a_wrong_number_fails(losses_only):
  with np.load(losses_only / "losses.npz") as stored:
    arrays = dict(stored)
  arrays["focal/probs/mixed/loss"] = arrays["focal/probs/mixed/loss"] + 1e-3
  np.savez(losses_only / "losses.npz", **arrays)
  golden = golden_lib.Golden(losses_only)
  failed = [c for c in parity.compare_file(golden, "losses.npz") if not c.holds]
  assert [c.name for c in failed] == ["losses.npz: focal/probs/mixed/loss"]
  np.testing.assert_allclose(failed[0].absolute, 1e-3, rtol=1e-2)


def test_a_quantity_that_is_not_produced_fails(losses_only):
  path = losses_only / "manifest.json"
  manifest = json.loads(path.read_text())
  roles = manifest["files"]["losses.npz"]["arrays"]
  roles["new_loss/loss"] = {"role": "expected", "atol": 1.0}
  path.write_text(json.dumps(manifest))
  with np.load(losses_only / "losses.npz") as stored:
    arrays = {**stored, "new_loss/loss": np.float32(0)}
  np.savez(losses_only / "losses.npz", **arrays)
  golden = golden_lib.Golden(losses_only)
  failed = [c for c in parity.compare_file(golden, "losses.npz") if not c.holds]
  assert [c.problem for c in failed] == ["not produced"]


@pytest.mark.parametrize("ours", [np.nan, np.inf])
def test_a_value_that_is_not_finite_fails(ours):
  role = {"atol": 1.0}
  result = golden_lib.compare("x", role, np.zeros(2), np.array([0.0, ours]))
  assert not result.holds


def test_other_shapes_fail_and_leading_parts_compare():
  role = {"atol": 1e-6}
  whole = np.arange(12.0).reshape(3, 4)
  assert golden_lib.compare("x", role, whole[:2, :3], whole).holds
  assert not golden_lib.compare("x", role, whole, whole[:2]).holds
  assert not golden_lib.compare("x", role, whole, whole[0]).holds


def test_files_are_selected_by_stem(losses_only):
  golden = golden_lib.Golden(GOLDENS)
  chosen, uncovered = parity.select(golden, ["clip_outputs"])
  assert chosen == ["clip_outputs.npz", "losses.npz"] and not uncovered
  with pytest.raises(ValueError, match="no adaklip"):
    parity.select(golden, ["adaklip"])
  (losses_only / "losses.npz").unlink()
  with pytest.raises(ValueError, match="losses.npz"):
    golden_lib.Golden(losses_only)
  (losses_only / "manifest.json").unlink()
  with pytest.raises(FileNotFoundError, match="manifest.json"):
    golden_lib.Golden(losses_only)


SMALL = clip_config.ClipConfig(
  embed_dim=32,
  image_size=28,
  patch_size=14,
  vision_width=64,
  vision_layers=2,
  text_width=64,
  text_layers=1,
  vocab_size=64,
  context_length=12,
  activation="gelu_erf",
)


@pytest.fixture
def two_directories(tmp_path):
  """Two Hugging Face directories: the main tiny model, and "slim" with its
  own group of arrays. A longer name, "slimmer", is no second match.
  """
  manifest = json.loads((GOLDENS / "manifest.json").read_text())
  kept = ("clip_tiny.npz", "clip_outputs.npz")
  files = {file: manifest["files"][file] for file in kept}
  shutil.copy(GOLDENS / "clip_tiny.npz", tmp_path)
  shutil.copy(GOLDENS / "clip_outputs.npz", tmp_path)
  main = golden_lib.Golden(GOLDENS).backbone()
  hugging_face.write(main, tmp_path / "hf_clip")
  hugging_face.write(clip.random_clip(SMALL, 0), tmp_path / "hf_slim")
  hugging_face.write(clip.random_clip(SMALL, 1), tmp_path / "hf_slimmer")
  with np.load(GOLDENS / "clip_outputs.npz") as stored:
    # Of the main model only what is quick to compare.
    inputs = ("texts_utf8", "token_ids", "image/native")
    arrays = {name: stored[name] for name in inputs}
    arrays["quick/text_features"] = stored["quick/text_features"]
  roles = files["clip_outputs.npz"]["arrays"]
  for seed, group in enumerate(("slim", "slimmer")):
    for name, x in reference(seed, arrays["image/native"]).items():
      arrays[f"{group}/{name}"] = x
      role = "input" if name == "token_ids" else "expected"
      roles[f"{group}/{name}"] = {"role": role, "atol": 1e-5}
  np.savez(tmp_path / "clip_outputs.npz", **arrays)
  manifest["files"] = files
  manifest["other_files"] = {
    f"{folder}/{file}": {}
    for folder in ("hf_clip", "hf_slim", "hf_slimmer")
    for file in ("config.json", "model.safetensors", "tokenizer_config.json")
  }
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  return tmp_path


def reference(seed, image):
  """The arrays of a group, computed by the model that was written."""
  model = clip.random_clip(SMALL, seed)
  ids = np.array([[62, 5, 63, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
  text, _ = model.text(model.embed_tokens(ids), ids.argmax(axis=-1))
  embed, out = model.image(jnp.asarray(np.moveaxis(image, 1, -1)))
  return {
    "token_ids": ids,
    "text_features": np.asarray(text),
    "image_features": np.asarray(embed),
    "tokens_2": np.asarray(out["block02"]),
  }


def test_directories_are_compared_with_the_group_in_their_name(two_directories):
  golden = golden_lib.Golden(two_directories)
  comparisons = parity.compare_file(golden, "clip_outputs.npz")
  names = {c.name.removeprefix("clip_outputs.npz: ") for c in comparisons}
  own = ("text_features", "image_features", "tokens_2")
  assert names == {
    "token_ids",
    "quick/text_features",
    "hf_clip: quick/text_features",
    *(f"hf_slim: slim/{name}" for name in own),
    *(f"hf_slimmer: slimmer/{name}" for name in own),
  }
  assert not [c for c in comparisons if not c.holds]


def test_a_wrong_number_of_a_second_directory_fails(two_directories):
  with np.load(two_directories / "clip_outputs.npz") as stored:
    arrays = dict(stored)
  arrays["slim/image_features"] = arrays["slim/image_features"] + 1e-3
  np.savez(two_directories / "clip_outputs.npz", **arrays)
  golden = golden_lib.Golden(two_directories)
  comparisons = parity.compare_file(golden, "clip_outputs.npz")
  failed = [c.name for c in comparisons if not c.holds]
  assert failed == ["clip_outputs.npz: hf_slim: slim/image_features"]


def test_a_group_without_a_directory_of_its_name_fails(two_directories):
  path = two_directories / "manifest.json"
  manifest = json.loads(path.read_text())
  listed = manifest["other_files"]
  manifest["other_files"] = {n: x for n, x in listed.items() if "mer" not in n}
  path.write_text(json.dumps(manifest))
  golden = golden_lib.Golden(two_directories)
  comparisons = parity.compare_file(golden, "clip_outputs.npz")
  failed = [c for c in comparisons if not c.holds]
  assert {c.problem for c in failed} == {"not produced"}
  assert {c.name.split("/")[0] for c in failed} == {"clip_outputs.npz: slimmer"}
