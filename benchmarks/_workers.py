"""The controller's end of a worker process: requests with a time limit, and no way to hang."""

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]

# Variables that would change the measurement, or the packages that an environment imports.
DROPPED = ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS", "JAX_ENABLE_X64", "JAX_COMPILATION_CACHE_DIR")

# The same for every side. A thread that spins while it waits takes the processor from the side
# whose turn is next; and OpenBLAS's threads can do so within a decomposition.
SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "OPENBLAS_NUM_THREADS": "1",
    # Several processes share one GPU.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class WorkerLostError(Exception):
    """The process is gone; the message says why, in a few words."""


class RequestFailedError(Exception):
    """The process answered with an error, and lives."""


def variables(device: str) -> dict[str, str]:
    """The environment variables of a worker."""
    inherited = {k: v for k, v in os.environ.items() if k not in DROPPED and k[:8] != "JNO_LORA"}
    return {**inherited, **SETTINGS, "JAX_PLATFORMS": "cuda,cpu" if device == "gpu" else "cpu"}


def command(python: str, environment: str, device: str) -> list[str]:
    """The command that starts a worker, from the root of the repository."""
    return [python, "-m", "benchmarks.worker", environment, device]


class Worker:
    """A running worker process.

    **Arguments:**

    - `command`: a command line that speaks the protocol of `benchmarks.worker`.
    - `env`: its environment variables.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str]):
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=env,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        **Raises:** `WorkerLostError` if the process ends, or is killed because it does not answer
        in `timeout` seconds; `RequestFailedError` if it answers with an error.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=timeout)
        except OSError:
            line = None
        except queue.Empty:
            self.kill()
            raise WorkerLostError("timed out") from None
        if line is None:
            self.close()
            raise WorkerLostError(f"its process ended ({self.process.returncode})")
        answer = json.loads(line)
        if "error" in answer:
            raise RequestFailedError(answer["error"])
        return answer

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Wait for the process to end, and kill it after 10 seconds. May be called again."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()
