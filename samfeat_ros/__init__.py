"""samfeat_ros: learned visual features as ROS 2 topics. Everything of this project that knows ROS lives here."""
