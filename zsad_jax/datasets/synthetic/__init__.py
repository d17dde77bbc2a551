"""Drawn images and synthetic anomalies."""
