"""Torch files and the names and layouts of torch parameters."""
