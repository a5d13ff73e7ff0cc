"""A worked example of a back-end: monocular visual odometry on the matches of the node."""
