"""Benches that measure the registry next to its own limits, in one run on one machine."""
