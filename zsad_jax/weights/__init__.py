"""Command `zsad weights`: published weights, listed, fetched and converted."""
