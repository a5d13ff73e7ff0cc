"""Keypoint pseudo-labels by SuperPoint's paradigm: synthetic shapes, then homographic adaptation (DESIGN section 4)."""

from training.data.label_store import KeypointLabels, LabelStore

__all__ = ["KeypointLabels", "LabelStore"]
