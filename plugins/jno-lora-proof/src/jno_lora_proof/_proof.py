"""Whether the adapters of a model compute what they computed where they were saved."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jno.lora import CheckpointError, Net, disabled
from jno.lora.extending import Printed, expect_model, table

from ._findings import (
    FOUR_BITS,
    INACTIVE,
    MERGED,
    OTHER_BASE,
    SAME,
    Updates,
    base_finding,
    rounding,
    times_merged,
    update_finding,
)
from ._inputs import Inputs
from ._record import Record, add_record, arrays_of, read_record, scheme_of, sketches, updates_of
from ._signatures import signature, sketch

FilePath = str | os.PathLike[str]
Sketches = Float[np.ndarray, "examples width"]
Verdict = Literal["acts", "acts, rounded", "fault"]

_UNTRAINED = "never trained: the adapters changed no output where they were saved"
_ELSEWHERE = (
    "the outputs differ, though the adapters and their layers are as they were: the base differs "
    "elsewhere, or the inputs or the code of the model do"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """An array of an adapted layer, or a trained array. `finding` is empty if it is as it was.

    - `size`: the norm of its update where it was saved.
    """

    path: str
    method: str
    size: float
    finding: str


@dataclasses.dataclass(frozen=True, repr=False)
class Proof(Printed[Row]):
    """The answer of `prove`. Prints as a table.

    - `verdict`: `"acts"`; `"acts, rounded"`, on a base of less precision; or `"fault"`.
    - `cause`: the cause of a fault; else `None`.
    - `error`: how far the outputs are from those of the file, relative to what the adapters
        change; `None` if the model was not called.
    - `expected`: the error that the precision of the base explains.
    """

    rows: tuple[Row, ...]
    verdict: Verdict
    cause: str | None
    error: float | None
    expected: float
    path: str

    def raise_for_fault(self) -> "Proof":
        """This proof. **Raises:** `CheckpointError` with the table if it is a fault."""
        if self.verdict == "fault":
            raise CheckpointError(str(self))
        return self

    def __repr__(self) -> str:
        return f"Proof({self._title()})"

    def _title(self) -> str:
        cause = "" if self.cause is None else f": {self.cause}"
        return f"{self.path}: {self.verdict}{cause}"

    def _table(self) -> Any:
        columns = [
            ("array", "left"),
            ("saved as", "left"),
            ("update", "right"),
            ("finding", "left"),
        ]
        rows = [
            (r.path, r.method, f"{r.size:.3g}" if r.finding else "", r.finding or "as saved")
            for r in self.rows
        ]
        error = "The model was not called."
        if self.error is not None:
            error = (
                f"Error of the effect on the outputs: {self.error:.2g} (explained by the base's "
                f"precision: {self.expected:.2g})."
            )
        return table(self._title(), columns, rows, error, by_path=True)

    @classmethod
    def from_outputs(cls, outputs: PyTree, path: FilePath) -> "Proof":
        """The proof of a server by its outputs (logits) on `read_inputs(path)`.

        **Arguments:** `outputs`: the arrays that the model itself would return.
        """
        record, arrays = _record_of(path), [np.asarray(x) for x in jax.tree.leaves(outputs)]
        found = np.concatenate([sketch(x) for x in arrays], axis=1)
        return _judged(record, path, (), None, found, None, "float16")


def prove(
    model: PyTree | Net,
    path: FilePath,
    *,
    call: Callable[..., PyTree] | None = None,
    run: bool = True,
    names: Mapping[str, str] | None = None,
) -> Proof:
    """Whether the adapters of `model` compute what they computed where the file was saved.

    **Arguments:**

    - `model`: a `Net`, or a model with the adapters of the file, or with them merged.
    - `path`: a file of `net.save_adapters(path, proof=inputs)`, or a folder of `save_peft`.
    - `call`: the `call` of the proof's `Inputs`, if it had one.
    - `run`: whether to call the model. If not, only updates and bases are compared.
    - `names`: the name in the file of each path of an adapted layer, where they differ.

    **Raises:** `CheckpointError` if there is no proof, or it is damaged; `SelectionError` if the
    model is random.
    """
    record = _record_of(path)
    module = model.module if isinstance(model, Net) else model
    expect_model(module, "prove")
    updates, arrays, scheme = updates_of(module), arrays_of(module), scheme_of(module)
    for mine, theirs in (names or {}).items():
        updates = {_moved(key, mine, theirs): value for key, value in updates.items()}
        arrays = {_moved(key, mine, theirs): value for key, value in arrays.items()}
    rows, cause = _compared(record, updates, arrays, scheme)
    adapted = plain = None
    if run:
        inputs = dataclasses.replace(record.inputs, call=call)
        adapted = sketches(inputs, module)
        plain = sketches(inputs, disabled(module)) if updates else None
    return _judged(record, path, rows, cause, adapted, plain, scheme)


def write(
    model: PyTree | Net, path: FilePath, inputs: Any, names: Mapping[str, str] | None = None
) -> None:
    """Put a proof into a file of adapters, or beside the files of PEFT in a folder.

    - `inputs`: `Inputs`, a tuple of the model's arguments, or the one argument.
    - `names`: the name in the file of each path of an adapted layer, where they differ.

    **Raises:** `SelectionError` if the model is random, or an input cannot be kept.
    """
    add_record(path, Record.of(model, Inputs.of(inputs)).renamed(names or {}))


def check(model: PyTree, path: FilePath, names: Mapping[str, str] | None = None) -> None:
    """**Raises:** `CheckpointError` if the adapters of `model` do not act as the file proves."""
    prove(model, path, names=names).raise_for_fault()


def read_inputs(path: FilePath) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
    """The arguments and keyword arguments of the file's proof, for `Proof.from_outputs`."""
    return _record_of(path).inputs.arrays()


def _record_of(path: FilePath) -> Record:
    record = read_record(path)
    if record is None:
        raise CheckpointError(
            f"{os.fspath(path)!r} has no proof. Save it by net.save_adapters(path, proof=inputs), "
            "or save_peft(net, folder, proof=inputs)."
        )
    return record


def _moved(key: str, mine: str, theirs: str) -> str:
    return f"{theirs}{key[len(mine) :]}" if key.startswith(f"{mine}/") else key


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array))


def _compared(
    record: Record, updates: Updates, arrays: Mapping[str, np.ndarray], scheme: str
) -> tuple[tuple[Row, ...], str | None]:
    """A row for each array of the record, and the cause that the rows show."""
    bases = {name: update[2] for name, update in updates.items()} or arrays
    bases = {name: array for name, array in bases.items() if name in record.entries}
    times = times_merged(record, {name: signature(array) for name, array in bases.items()})
    rows: list[Row] = []
    for name, entry in record.entries.items():
        finding = update_finding(name, record, updates) if updates else ""
        if times > (0 if updates else 1):
            finding = MERGED if entry.update.any() else ""
        elif times == 0 and not updates:
            finding = INACTIVE if entry.update.any() else ""
        elif times == 0 and name in bases:
            finding = base_finding(name, record, bases[name], scheme) or finding
        rows.append(Row(name, entry.method, float(entry.update[0]), finding))
    for path, was in record.trained.items():
        found = signature(arrays[path]) if path in arrays else np.zeros(9)
        is_same = np.linalg.norm(found - was) <= rounding(scheme) * np.linalg.norm(was)
        finding = "" if is_same else "this trained array was not loaded"
        rows.append(Row(path, "trained", float(was[0]), finding))
    # An update of zero, such as that of a bias, cannot be missed.
    counts = Counter(row.finding for row in rows if row.finding and row.size)
    if not counts:
        return tuple(rows), None
    finding, count = counts.most_common(1)[0]
    where = next(row.path for row in rows if row.finding == finding)
    return tuple(rows), finding if count > 1 else f"{finding}, at {where}"


def _judged(
    record: Record,
    path: FilePath,
    rows: tuple[Row, ...],
    cause: str | None,
    adapted: Sketches | None,
    plain: Sketches | None,
    scheme: str,
) -> Proof:
    """The verdict, from the outputs where there are any, and from the rows."""
    size = _norm(record.adapted - record.plain)
    per_effect = _norm(record.plain) / max(size, 1e-30)
    expected = SAME if scheme.startswith("float") else max(SAME, SAME * per_effect)
    file = os.fspath(path)
    if size <= 1e-6 * _norm(record.plain):
        return Proof(rows, "fault", _UNTRAINED, None, expected, file)
    if adapted is None:
        return Proof(rows, "fault" if cause else "acts", cause, None, expected, file)
    drift = 0.0 if plain is None else _norm(plain - record.plain) / _norm(record.plain)
    error = _norm(adapted - record.adapted) / size
    if error <= SAME:
        return Proof(rows, "acts", None, error, expected, file)
    if plain is not None:
        error = _norm(adapted - plain - record.adapted + record.plain) / size
        # The effect moves with the activations, which move with every layer before.
        expected = max(expected, 3 * drift * per_effect)
    is_rounded = drift <= rounding(scheme) and error <= min(expected, FOUR_BITS)
    if is_rounded and cause is None:
        return Proof(rows, "acts, rounded", None, error, expected, file)
    if _norm(adapted - record.plain) <= SAME * size:
        cause = INACTIVE
    elif cause is None:
        cause = OTHER_BASE if drift > rounding(scheme) else _ELSEWHERE
    return Proof(rows, "fault", cause, error, expected, file)
