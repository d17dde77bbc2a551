"""Command `zsad push`: a run as a repository of the Hugging Face hub."""
