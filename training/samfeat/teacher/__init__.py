"""What a teacher says about photographs, computed once and stored (SAMFeat, arXiv 2309.16992, section 3)."""
