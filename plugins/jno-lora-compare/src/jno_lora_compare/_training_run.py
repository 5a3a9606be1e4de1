"""The state of a training run, which a file holds whole, so that a killed run goes on exactly."""

import io
import math
import os
from dataclasses import replace

import equinox as eqx
from jaxtyping import PyTree

from jno.lora import CheckpointError
from jno.lora.extending import sharded_like, write_together


class TrainingRun(eqx.Module):
    """A training run between two steps, as `Trainer.start` and `Trainer.step` return it.

    It never changes: every method returns another run.

    **Attributes:**

    - `trainable`: the part of the model that trains.
    - `state`: the state of the optimiser.
    - `step`: the number of batches that were trained on.
    - `best`, `best_loss`: the trainable part at the evaluation with the smallest loss; that loss.
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
        eqx.tree_serialise_leaves(file, self)
        write_together({path: file.getvalue()})

    def load(self, path: str | os.PathLike[str]) -> "TrainingRun":
        """Read the run that `save` wrote, for the same model, adapters and optimiser as this run.

        The arrays get the shardings of this run's arrays.

        **Raises:** `CheckpointError` if the file is damaged, or if its arrays have other shapes or
        dtypes; `FileNotFoundError` if there is no file.
        """
        with open(path, "rb") as file:
            try:
                loaded = eqx.tree_deserialise_leaves(file, self)
                fits = not file.read(1)
            except (RuntimeError, ValueError, EOFError) as err:
                raise CheckpointError(f"{_misfit(path)} {err}") from err
        if not fits:
            raise CheckpointError(f"{_misfit(path)} It holds more arrays than this run.")
        return sharded_like(loaded, self)


def _misfit(path: object) -> str:
    return (
        f"{path} should hold a training run of this model, these adapters and this optimiser, but "
        "does not fit. Build them as they were built for the run, or remove the file to start anew."
    )
