"""The state of a training run, saved in one file, so that a killed run resumes exactly."""

import io
import json
import math
import os
import zlib
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jno.lora import CheckpointError
from jno.lora.extending import (
    adapted_layers,
    bullets,
    path_str,
    sharded_like,
    show_path,
    write_atomically,
)


class TrainingRun(eqx.Module):
    """A training run between two steps, as `Trainer.start` and `Trainer.step` return it.

    A run is immutable: every method returns a new run.

    **Attributes:**

    - `trainable`: the trainable part of the model.
    - `state`: the state of the optimiser.
    - `step`: how many batches the run has trained on.
    - `best`, `best_loss`: the trainable part at the evaluation with the smallest loss, and this
        loss. Before the first evaluation: the newest trainable part, and infinity.
    - `waited`: how many evaluations came after the best one, for early stopping.
    """

    trainable: PyTree
    state: PyTree
    step: int
    best: PyTree
    best_loss: float = math.inf
    waited: int = 0

    def evaluated(self, loss: float) -> "TrainingRun":
        """Record the loss of an evaluation: it is a new best, or `waited` grows by one."""
        if loss < self.best_loss:
            return replace(self, best=self.trainable, best_loss=float(loss), waited=0)
        return replace(self, waited=self.waited + 1)  # a loss of NaN ends up here too

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run into one file. A crash leaves the old file or the new file, complete.

        The file begins with a checksum of its contents.

        **Raises:** `CheckpointError` if the file cannot be written.
        """
        file = io.BytesIO()
        file.write(_header(self))
        try:
            eqx.tree_serialise_leaves(file, _with_key_data(self))
        except Exception as err:  # such as arrays on the devices of other processes
            raise CheckpointError(f"The run cannot be written into {path}: {err}") from err
        content = file.getvalue()
        write_atomically(path, _first_line(zlib.crc32(content)) + content)

    def load(self, path: str | os.PathLike[str]) -> "TrainingRun":
        """Read a run that `save` wrote, for the same model, adapters and optimiser as this run.

        The arrays get the shardings of this run's arrays. The file has no frozen arrays:
        frozen arrays of adapters (LoRA-FA's `A`) are the same if the `Net` has the same key.

        **Raises:** `CheckpointError` if the file is damaged, or differs from this run in the
        classes, ranks or alphas of its adapters, in the kind of its random keys
        (`jax.random.key_impl`), or in the shapes or dtypes of its arrays; `FileNotFoundError` if
        there is no file.
        """
        with open(path, "rb") as file:
            first, begin, checksum = file.readline(2**28), file.tell(), 0
            while chunk := file.read(2**20):
                checksum = zlib.crc32(chunk, checksum)
            if first != _first_line(checksum):
                raise CheckpointError(
                    f"{path} is damaged, or not written by TrainingRun.save: its bytes do not "
                    "match its checksum. Copy it again from where it is whole, or remove it to "
                    "start anew."
                )
            file.seek(begin)
            header = file.readline(2**28)
            if header != _header(self):
                raise CheckpointError(_describe_header_mismatch(path, header, _header(self)))
            try:
                loaded = eqx.tree_deserialise_leaves(file, _with_key_data(self))
                is_at_end = not file.read(1)
            except (RuntimeError, ValueError, EOFError) as err:
                leaf = show_path(path_str(getattr(err, "path", ())))
                cause: BaseException = err
                while cause.__cause__ is not None:  # the first of Equinox's errors has the reason
                    cause = cause.__cause__
                problem = f"{_misfit(path)} It stops fitting at {leaf}: {cause}"
                raise CheckpointError(problem) from err
        if not is_at_end:
            raise CheckpointError(f"{_misfit(path)} It has more arrays than this run.")
        return sharded_like(jax.tree.map(_as_key, loaded, self), self)


def _is_key(leaf: object) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _with_key_data(run: TrainingRun) -> TrainingRun:
    """The run with each typed key replaced by its bits, which can be saved."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, run)


def _as_key(leaf: PyTree, like: PyTree) -> PyTree:
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf


def _first_line(checksum: int) -> bytes:
    return b"crc32 %08x\n" % checksum


def _header(run: TrainingRun) -> bytes:
    """The first line of the file: the trainable adapters, and the kinds of typed keys."""
    adapters = [
        [path, type(adapter).__name__, adapter.rank, adapter.alpha]
        for path, adapter in adapted_layers(run.trainable)
    ]
    kinds = [str(jax.random.key_impl(leaf)) for leaf in jax.tree.leaves(run) if _is_key(leaf)]
    return json.dumps(adapters + kinds).encode() + b"\n"


def _describe_header_mismatch(path: object, header: bytes, expected_header: bytes) -> str:
    entries, expected = json.loads(header), json.loads(expected_header)
    lines = [f"only in the file: {entry}" for entry in entries if entry not in expected]
    lines += [f"only in this run: {entry}" for entry in expected if entry not in entries]
    return (
        f"{_misfit(path)} Its adapters or random keys differ (path, class, rank, alpha of an "
        f"adapter; kind of a key):\n{bullets(lines or ['the order differs'], limit=12)}"
    )


def _misfit(path: object) -> str:
    return (
        f"{path} should hold a training run of this model, these adapters and this optimiser, but "
        "does not fit. Build all three as for that run, or remove the file to start anew."
    )
