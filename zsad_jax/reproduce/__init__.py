"""Reproduction of published tables and of the project's own table."""
