"""A Python file that rtabmap loads as external detector and matcher."""
