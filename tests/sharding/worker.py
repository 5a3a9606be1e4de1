"""One of several processes: `python worker.py RANK COUNT PORT OUT`. Started by a test."""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh


def main(rank: int, count: int, port: int, out: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank, initialization_timeout=60)
    assert jax.process_count() == count
    assert len(jax.local_devices()) * count == len(jax.devices()) == 4
    # Beside this file; it makes arrays, which must not happen before the processes know each other.
    from layouts import step_and_merge

    # The rows of the mesh are the processes, so that the axis `data` goes from one to the other.
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    np.savez(out, **step_and_merge(mesh, pathlib.Path(out).parent))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
