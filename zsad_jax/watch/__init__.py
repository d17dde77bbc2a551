"""A folder of images that arrive: complete files, journal of results."""
