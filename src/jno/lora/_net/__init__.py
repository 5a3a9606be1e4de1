"""`Net`, the handle on a model and its named adapters."""
