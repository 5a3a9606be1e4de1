"""Reports on adapted models: the adapters, the cost of merging, the papers."""
