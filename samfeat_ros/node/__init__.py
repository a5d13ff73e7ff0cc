"""The node: what a robot runs. Imports nothing of replay and odometry."""

import os

# Before NumPy and OpenCV are loaded: the threads of their OpenBLAS spin for 10 ms after each product, on the cores that
# the network needs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
