"""Keypoint pseudo-labels by SuperPoint's paradigm: synthetic shapes, then homographic adaptation (arXiv 1712.07629)."""
