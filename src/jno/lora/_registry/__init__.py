"""The registry: which adapters exist, and where they come from."""
