"""The state of a training run, which a file holds whole, so that a killed run goes on exactly."""

import io
import json
import math
import os
from dataclasses import replace

import equinox as eqx
from jaxtyping import PyTree

from jno.lora import CheckpointError
from jno.lora.extending import adapted_layers, sharded_like, write_together

_LONGEST = 2**28  # bytes of the first line


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
        file.write(_adapters_of(self))
        try:
            eqx.tree_serialise_leaves(file, self)
        except Exception as err:  # such as typed keys in the state of an optimiser
            raise CheckpointError(f"The run cannot be written into {path}: {err}") from err
        write_together({path: file.getvalue()})

    def load(self, path: str | os.PathLike[str]) -> "TrainingRun":
        """Read the run that `save` wrote, for the same model, adapters and optimiser as this run.

        The arrays get the shardings of this run's arrays. Frozen arrays are not in the file: those
        of adapters (LoRA-FA's `A`) are the same if the `Net` has the same key.

        **Raises:** `CheckpointError` if the file is damaged, if its adapters have other classes,
        ranks or alphas, or if its arrays have other shapes or dtypes; `FileNotFoundError` if there
        is no file.
        """
        with open(path, "rb") as file:
            adapters = file.readline(_LONGEST)
            if adapters != _adapters_of(self):
                raise CheckpointError(f"{_misfit(path)} Its adapters are others: {adapters!r:.300}")
            try:
                loaded = eqx.tree_deserialise_leaves(file, self)
                fits = not file.read(1)
            except (RuntimeError, ValueError, EOFError) as err:
                raise CheckpointError(f"{_misfit(path)} {err}") from err
        if not fits:
            raise CheckpointError(f"{_misfit(path)} It holds more arrays than this run.")
        return sharded_like(loaded, self)


def _adapters_of(run: TrainingRun) -> bytes:
    """A line that describes the adapters in the trainable part."""
    described = [
        [path, type(adapter).__name__, adapter.rank, adapter.alpha]
        for path, adapter in adapted_layers(run.trainable)
    ]
    return json.dumps(described).encode() + b"\n"


def _misfit(path: object) -> str:
    return (
        f"{path} should hold a training run of this model, these adapters and this optimiser, but "
        "does not fit. Build them as they were built for the run, or remove the file to start anew."
    )
