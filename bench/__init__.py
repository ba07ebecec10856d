"""Measures the registry beside its own limits, in one run on one machine: `make bench`."""
