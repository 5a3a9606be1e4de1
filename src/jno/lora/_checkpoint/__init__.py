"""Adapters as files: one safetensors file, with its configuration in the metadata."""
