"""A router that keeps the nodes it may use by subscription: `python -m examples.router`."""
