"""Recordings: bags, playing them to the real node, and the commands on top: demo, evaluate_bag, sequence_to_bag."""
