"""Tests of benchmark/memory.py on a small bank."""

import json
import types

import jax
import numpy as np
import pytest

from zsad_jax.benchmark import memory


def test_search_and_coreset_are_measured(tmp_path, capsys):
  path = tmp_path / "memory.json"
  options = dict(vectors=5000, width=8, queries=3, steps=2, rounds=1)
  memory.main(types.SimpleNamespace(**options, json=str(path)))
  found = json.loads(path.read_text())
  rows = {"floor", "cosine", "euclidean", "pass", "coreset_step"}
  assert set(found["rows"]) == rows
  assert found["bank_mib"] == 5000 * 8 * 4 / 2**20
  assert "floors" in capsys.readouterr().out


def test_all_vectors_are_drawn():
  bank = np.asarray(memory.draw(jax.random.key(0), 5000, 8))
  np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-5)
  assert len(np.unique(bank, axis=0)) == 5000


def test_a_wrong_search_is_an_error():
  bank = memory.draw(jax.random.key(0), 50, 8)
  with pytest.raises(ValueError, match="cosine: the distance of a stored"):
    memory.search(-bank[:2], bank, 1)
