"""A router that subscribes to the nodes it may use: `python -m examples.router`."""
