"""Tests of `zsad_jax.push`."""
