"""The registry: its GraphQL API, the server and its background tasks, and the command line."""
