"""CLIP-based zero- and few-shot visual anomaly detection in JAX/Flax."""

__version__ = "0.1.0"
