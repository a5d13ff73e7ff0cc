"""SCFeat's training (arXiv 2212.07047): descriptors, then a detector, from the relative poses of image pairs alone."""
