"""The losses of DESIGN section 4, each a function of dense maps or sampled points; see the modules for the equations.

All are scalars, run in float32 under autocast, skip images without what they need, and wait for no device.
"""

from .common import joint_means, mean_over_images
from .descriptor import descriptor_triplet
from .detection import detection_loss, keypoint_map
from .distillation import group_relation, relation_distillation
from .edge import edge_loss
from .semantic_contrast import semantic_contrast

__all__ = [
    "descriptor_triplet",
    "detection_loss",
    "edge_loss",
    "group_relation",
    "joint_means",
    "keypoint_map",
    "mean_over_images",
    "relation_distillation",
    "semantic_contrast",
]
