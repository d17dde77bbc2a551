"""Processes, files, configurations and commands; no machine learning."""
