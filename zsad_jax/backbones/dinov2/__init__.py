"""DINOv2 (Oquab et al., arXiv:2304.07193): image encoder without text."""
