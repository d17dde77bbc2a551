"""CLIP (Radford et al., arXiv:2103.00020): towers, tokenizer, weights."""
