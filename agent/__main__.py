"""`python -m agent` is node-agent."""

from agent.cli import main

if __name__ == "__main__":
    main(prog_name="node-agent")
