"""Evaluation: protocols, results of runs, thresholds, published numbers."""
