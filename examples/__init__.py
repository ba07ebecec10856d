"""How the registry is used."""
