"""Files of a run's workdir."""
