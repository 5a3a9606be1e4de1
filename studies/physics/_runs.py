"""All runs of the study, in order of importance, each recorded as one line of a file."""

import pathlib
import re

import jax
import scipy.linalg  # the BLAS of JAX, which it otherwise loads at the first decomposition
from threadpoolctl import threadpool_limits

from .._records import append, read
from ._operator_runs import operator_tasks
from ._pinn_runs import pinn_tasks
from ._tasks import KEY, Effort

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "physics.jsonl"
# Lists of tasks, by their problem and seed. An interrupted study has the first of them.
ORDER = (
    *("helmholtz 0", "jacobian", "poisson 0", "darcy 0", "burgers 0", "adam"),
    *("helmholtz 1", "darcy 1", "poisson 1", "burgers 1"),
)


def run(path: pathlib.Path, effort: Effort, only: str = "") -> None:
    """Run the missing runs of the tasks that match `only`, and append to `path`."""
    done = {tuple(record[name] for name in KEY): record for record in read(path)}
    lists = pinn_tasks(effort) | operator_tasks(effort)
    tasks = [task for name in ORDER for task in lists.get(name, [])]
    tasks = [task for task in tasks if re.search(only, task.name)]
    if not tasks:
        raise SystemExit(f"--only {only!r} selects no task.")
    # Threads of BLAS that wait for each other by spinning would be counted as work.
    assert scipy.linalg is not None
    with append(path) as write, threadpool_limits(1, "blas"):
        for number, task in enumerate(tasks, 1):
            print(f"{number} of {len(tasks)}: {task.name}", flush=True)
            for record in task.records(done):
                done[tuple(record[name] for name in KEY)] = record
                write(record)
            jax.clear_caches()
