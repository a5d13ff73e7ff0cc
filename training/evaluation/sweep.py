"""The threshold of a robust estimator, chosen for every extractor where it does best: glue-factory's ``ransac_th: -1``.

Extractors differ in how precise their keypoints are; at one threshold for all, that choice decides who wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samfeat_core.poses import pose_auc

THRESHOLDS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # pixels


def best_threshold(errors: np.ndarray, limits: Sequence[float]) -> dict:
    """The one of `THRESHOLDS` at which the AUC, in the mean over all limits, is largest.

    Args:
        errors: (N, T) of N pairs at T thresholds; inf for a failure.
        limits: up to which errors the areas reach.

    Returns:
        threshold_px, and auc {limit: per cent}.
    """
    areas = np.array([pose_auc(column, limits) for column in errors.T])
    best = int(areas.mean(axis=1).argmax())
    return {
        "threshold_px": THRESHOLDS[best],
        "auc": {str(limit): float(area) * 100 for limit, area in zip(limits, areas[best], strict=True)},
    }
