"""Comparison with reference tensors of the official implementations."""
