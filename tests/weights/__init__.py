"""Tests of `zsad_jax.weights`."""
