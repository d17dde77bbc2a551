"""The reference tensors: every stored quantity within its tolerance."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import GOLDENS
from zsad_jax.parity import __main__ as parity
from zsad_jax.parity import golden as golden_lib


@pytest.mark.parametrize(
  "file",
  [
    f
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
  """A folder with the losses alone, to be broken."""
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
