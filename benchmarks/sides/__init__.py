"""What a worker process measures: one module per kind of case. JAX's serve ours and jNO alike."""
