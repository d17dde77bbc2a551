"""Tests of the range checks of numeric fields."""

import types

import pytest

from zsad_jax import methods
from zsad_jax.layers import ranges


def test_valid_values_pass():
  fields = types.SimpleNamespace(count=1, scale=0.1, low=0, high=1.0)
  ranges.check(
    fields, counts=["count"], positive=["scale"], shares=["low", "high"]
  )


@pytest.mark.parametrize(
  ("kind", "value", "message"),
  [
    ("counts", 0, "config.method.x has to be at least 1, got 0"),
    ("positive", 0.0, "config.method.x has to be greater than 0, got 0.0"),
    ("shares", 1.5, r"config.method.x has to be in \[0, 1\], got 1.5"),
    ("shares", float("nan"), "got nan"),
  ],
)
def test_invalid_values_are_named(kind, value, message):
  with pytest.raises(ValueError, match=message):
    ranges.check(types.SimpleNamespace(x=value), **{kind: ["x"]})


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("adaclip", {"num_clusters": 0}),
    ("adaclip", {"hsf_mix": 1.5}),
    ("adaptclip", {"pool_topk": 0}),
    ("anomalyclip", {"temperature": -0.07}),
    ("clip", {"temperature": 0.0}),
    ("faprompt", {"num_patches": 0}),
  ],
)
def test_methods_check_their_fields(name, settings):
  (field,) = settings
  with pytest.raises(ValueError, match=f"config.method.{field} has to be"):
    methods.module(name).Method(**settings)
