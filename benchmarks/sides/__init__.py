"""The measurements of a worker process: one module per kind of case. JAX's serve ours and jNO."""
