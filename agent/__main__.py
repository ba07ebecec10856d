"""The entry point of `python -m agent`, which is the command node-agent."""

from agent.cli import main

if __name__ == "__main__":
    main(prog_name="node-agent")
