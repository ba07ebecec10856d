"""A fleet of simulated agents, and what a registry makes of it."""
