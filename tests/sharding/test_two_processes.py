"""Two processes with `jax.distributed` on loopback train as one process does."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from .layouts import step_and_merge

WORKER = pathlib.Path(__file__).with_name("worker.py")
SECONDS = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(rank: int, port: int, folder: pathlib.Path) -> subprocess.Popen:
    # The last flag of a name counts. The suite's flags compile faster.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    arguments = [str(rank), "2", str(port), str(folder / f"{rank}.npz")]
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def run_both(folder: pathlib.Path) -> None:
    """Run both workers. Neither outlives a failure of the other, or the time there is."""
    port = free_port()
    processes = [start(rank, port, folder) for rank in range(2)]
    try:
        end = time.monotonic() + SECONDS
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() for process in processes)
            if failed or time.monotonic() > end:
                break
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(folder / f"{rank}.log").read_text() for rank in range(2)]
    assert codes == [0, 0], f"Exit codes {codes} (None: killed):\n" + "\n---\n".join(logs)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of each process."""
    folder = tmp_path_factory.mktemp("processes")
    run_both(folder)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results of one process on one device."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    return step_and_merge(mesh, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
def test_both_processes_see_what_one_process_sees(results, alone):
    first, second = results
    assert first.keys() == second.keys() == alone.keys()
    assert {name.split("/")[0] for name in alone} == {"loss", "trained", "merged", "loaded"}
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
        np.testing.assert_allclose(array, alone[name], 1e-5, 1e-6, err_msg=name)
        if name.startswith("trained/"):  # they load what they saved
            assert np.array_equal(first[name.replace("trained/", "loaded/", 1)], array), name
