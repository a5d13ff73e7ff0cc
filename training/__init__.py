"""Teacher, data, losses, trainer and evaluation: runs from a checkout on a workstation, never on the robot."""
