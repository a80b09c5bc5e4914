"""Measured figures: `python -m benchmarks.NAME` or `make bench-NAME`; results in README.md beside this."""

from sparring.backend.waiting import bound_spinning

bound_spinning()  # as the command line does, before torch reads it
