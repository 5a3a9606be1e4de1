"""The state of a training run, which a file holds whole, so that a killed run goes on exactly."""

import io
import json
import math
import os
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jno.lora import CheckpointError
from jno.lora.extending import adapted_layers, bullets, path_str, sharded_like, write_together

_LONGEST = 2**28  # bytes of the first line
_SHOWN = 12  # lines of a message


class TrainingRun(eqx.Module):
    """A training run between two steps, as `Trainer.start` and `Trainer.step` return it.

    It never changes: every method returns another run.

    **Attributes:**

    - `trainable`: the part of the model that trains.
    - `state`: the state of the optimiser.
    - `step`: the number of batches that were trained on.
    - `best`, `best_loss`: the trainable part at the evaluation with the smallest loss; that loss.
        Before an evaluation, the newest trainable part, and infinity.
    - `waited`: the number of evaluations since then, for early stopping.
    """

    trainable: PyTree
    state: PyTree
    step: int
    best: PyTree
    best_loss: float = math.inf
    waited: int = 0

    def evaluated(self, loss: float) -> "TrainingRun":
        """Take in the loss of an evaluation: a new best, or one evaluation more without."""
        if loss < self.best_loss:
            return replace(self, best=self.trainable, best_loss=float(loss), waited=0)
        return replace(self, waited=self.waited + 1)  # also if the loss is not a number

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run into one file. After a crash, the old file or the new one is there, whole.

        **Raises:** `CheckpointError` if it cannot be written.
        """
        file = io.BytesIO()
        file.write(_description(self))
        try:
            eqx.tree_serialise_leaves(file, _with_data_of_keys(self))
        except Exception as err:  # such as arrays of other processes
            raise CheckpointError(f"The run cannot be written into {path}: {err}") from err
        write_together({path: file.getvalue()})

    def load(self, path: str | os.PathLike[str]) -> "TrainingRun":
        """Read the run that `save` wrote, for the same model, adapters and optimiser as this run.

        The arrays get the shardings of this run's arrays. Frozen arrays are not in the file: those
        of adapters (LoRA-FA's `A`) are the same if the `Net` has the same key.

        **Raises:** `CheckpointError` if the file is damaged, if its adapters have other classes,
        ranks or alphas, if its random keys are of another kind (`jax.random.key_impl`), or if its
        arrays have other shapes or dtypes; `FileNotFoundError` if there is no file.
        """
        with open(path, "rb") as file:
            described = file.readline(_LONGEST)
            if described != _description(self):
                raise CheckpointError(_difference(path, described, _description(self)))
            try:
                loaded = eqx.tree_deserialise_leaves(file, _with_data_of_keys(self))
                fits = not file.read(1)
            except (RuntimeError, ValueError, EOFError) as err:
                raise CheckpointError(f"{_misfit(path)} {_first_misfit(err)}") from err
        if not fits:
            raise CheckpointError(f"{_misfit(path)} It holds more arrays than this run.")
        return sharded_like(jax.tree.map(_as_key, loaded, self), self)


def _is_key(leaf: object) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _with_data_of_keys(run: TrainingRun) -> TrainingRun:
    """The run with the bits of typed keys in their place, which files can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, run)


def _as_key(leaf: Any, like: Any) -> Any:
    """`leaf`, as a typed key if `like` is one."""
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf


def _description(run: TrainingRun) -> bytes:
    """A line that describes the adapters in the trainable part, and the kinds of typed keys."""
    described = [
        [path, type(adapter).__name__, adapter.rank, adapter.alpha]
        for path, adapter in adapted_layers(run.trainable)
    ]
    kinds = [str(jax.random.key_impl(leaf)) for leaf in jax.tree.leaves(run) if _is_key(leaf)]
    return json.dumps(described + kinds).encode() + b"\n"


def _difference(path: object, there: bytes, here: bytes) -> str:
    """The message for a file whose first line is `there`, and not the `here` of this run."""
    try:
        theirs = json.loads(there)
    except ValueError:
        theirs = None
    if not isinstance(theirs, list):
        return f"{path} should hold a training run, but was not written by TrainingRun.save."
    ours = json.loads(here)
    lines = [f"only in the file: {one}" for one in theirs if one not in ours]
    lines += [f"only in this run: {one}" for one in ours if one not in theirs]
    return (
        f"{_misfit(path)} Its adapters or random keys are others (path, class, rank, alpha of an "
        f"adapter; kind of a key):\n{bullets(lines or ['the same in another order'], _SHOWN)}"
    )


def _first_misfit(err: BaseException) -> str:
    """Where the file stops fitting, for a message, as far as Equinox's error says."""
    keys = getattr(err, "path", ())
    if not keys:
        return str(err)
    where = path_str(keys)
    other = "model" if where.startswith("trainable/") else "optimiser"
    while err.__cause__ is not None:
        err = err.__cause__
    return (
        f"It stops fitting at {where!r} ({err}): the {other} is another, or the file was cut short."
    )


def _misfit(path: object) -> str:
    return (
        f"{path} should hold a training run of this model, these adapters and this optimiser, but "
        "does not fit. Build them as they were built for the run, or remove the file to start anew."
    )
