"""Pretraining of the small CLIP that the package ships."""
