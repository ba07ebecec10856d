"""What is made from the lock files for a release; no part of the registry or the agent."""
