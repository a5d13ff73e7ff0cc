"""The losses of SAMFeat (arXiv 2309.16992, section 3) and ours, each a function of dense maps or sampled points.

The modules give the equations. All are scalars, run in float32 under autocast, skip images without what they need, and
wait for no device.
"""

from .common import joint_means, mean_over_images
from .descriptor import descriptor_triplet
from .detection import detection_loss
from .distillation import group_relation, mixed_relation_distillation, relation_distillation
from .edge import edge_loss
from .semantic_contrast import semantic_contrast

__all__ = [
    "descriptor_triplet",
    "detection_loss",
    "edge_loss",
    "group_relation",
    "joint_means",
    "mean_over_images",
    "mixed_relation_distillation",
    "relation_distillation",
    "semantic_contrast",
]
