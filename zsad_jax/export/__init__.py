"""Export of a trained detector to a program that needs no package."""
