"""The tables, and every statement that touches them; knows nothing of GraphQL or HTTP."""
