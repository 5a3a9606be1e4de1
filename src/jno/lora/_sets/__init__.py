"""Sets of adapters without their model: extract them, and swap them."""
