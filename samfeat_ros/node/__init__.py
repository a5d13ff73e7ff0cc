"""The node: what a robot runs. Imports nothing of replay and odometry."""

from samfeat_ros.environment import one_blas_thread

one_blas_thread()  # before NumPy and OpenCV are loaded
