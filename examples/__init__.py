"""Example programs that use the registry."""
