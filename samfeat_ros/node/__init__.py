"""The node: what a robot runs. Imports nothing of replay and odometry."""
