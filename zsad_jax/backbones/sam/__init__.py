"""Image encoder of Segment Anything (Kirillov et al., arXiv:2304.02643)."""
