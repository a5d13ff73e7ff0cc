"""What `evaluate_bag` is made of: footage, front-ends, ground truth, metrics, report."""
