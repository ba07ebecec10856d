"""The GraphQL API: schema, resolvers, the ASGI app, and the background work that the app owns."""
