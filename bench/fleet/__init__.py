"""A fleet of simulated agents, and how a registry copes with it."""
