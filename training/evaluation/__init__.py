"""Protocols of `python -m training.evaluate`: homographies, relative poses, and the report of both."""
