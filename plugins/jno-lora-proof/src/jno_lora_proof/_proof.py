"""Whether the adapters of a model compute what they computed where they were saved."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
    MISSING,
    OTHER_BASE,
    SAME,
    Updates,
    base_finding,
    merged_finding,
    rounding,
    times_merged,
    update_finding,
)
from ._inputs import Inputs
from ._record import (
    Entry,
    Record,
    add_record,
    arrays_of,
    coarsest,
    difference,
    read_record,
    scheme_of,
    sketches,
    updates_of,
)
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
    - `versions`: the versions of the libraries that wrote the file, by name.
    """

    rows: tuple[Row, ...]
    verdict: Verdict
    cause: str | None
    error: float | None
    expected: float
    path: str
    versions: Mapping[str, str]

    def raise_for_fault(self) -> "Proof":
        """This proof. **Raises:** `CheckpointError` with the table if it is a fault."""
        if self.verdict == "fault":
            raise CheckpointError(f"{self}\ndocs/proof.md says what to do about each cause.")
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
        written = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return table(self._title(), columns, rows, f"{error} Saved by {written}.", by_path=True)

    @classmethod
    def from_outputs(cls, outputs: PyTree, path: FilePath) -> "Proof":
        """The proof of a server by its outputs (logits) on `read_inputs(path)`.

        **Arguments:** `outputs`: the arrays that the model itself would return.
        """
        record, arrays = _with_inputs(path), [np.asarray(x) for x in jax.tree.leaves(outputs)]
        found = np.concatenate([sketch(x) for x in arrays], axis=1)
        return _judged(record, path, (), None, found, None, "float16")

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Any],
        path: FilePath,
        *,
        bases: Mapping[str, Any] | None = None,
    ) -> "Proof":
        """The proof of weights into which the file's updates were merged: once, and all of them.

        **Arguments:**

        - `weights`: arrays by the names of the file's proof, such as `layers.0.query/weight` in a
            folder of PEFT. Others are ignored.
        - `bases`: the same arrays before merging, if there are any. They tell more causes apart.

        **Raises:** `CheckpointError` if there is no proof, it is damaged, or no name fits.
        """
        record = _record_of(path)
        updates = {} if bases is None else _Differences(record, weights, bases)
        names = [name for name in (*record.entries, *record.trained) if name in weights]
        if not names:
            raise CheckpointError(
                f"The proof of {os.fspath(path)!r} has names such as {next(iter(record.entries))}, "
                "and the weights have none of them. Give the weights these names."
            )
        arrays = {name: np.asarray(weights[name]) for name in names}
        scheme = coarsest(arrays.values())
        compared = _compared(record, updates, arrays, scheme)
        return _judged(record, path, *compared, None, None, scheme)


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
    updates = _by_the_files_names(updates, record, names or {})
    arrays = _by_the_files_names(arrays, record, names or {})
    rows, cause = _compared(record, updates, arrays, scheme)
    adapted = plain = None
    if run and record.was_called:
        inputs = dataclasses.replace(record.inputs, call=call)
        adapted = sketches(inputs, module)
        plain = sketches(inputs, disabled(module)) if updates else None
    return _judged(record, path, rows, cause, adapted, plain, scheme)


def recorded(
    model: PyTree | Net, inputs: Any, names: Mapping[str, str] | None = None
) -> Callable[[FilePath], None]:
    """Call the model, and return what puts its proof into a file of adapters or a folder of PEFT.

    - `inputs`: `Inputs`, a tuple of the model's arguments, or the one argument.
    - `names`: the name in the file of each path of an adapted layer, where they differ.

    **Raises:** `SelectionError` if the model is random, or an input cannot be kept.
    """
    record = Record.of(model, Inputs.of(inputs)).renamed(names or {})
    return lambda path: add_record(path, record)


def check(model: PyTree, path: FilePath, names: Mapping[str, str] | None = None) -> None:
    """**Raises:** `CheckpointError` if the adapters of `model` do not act as the file proves."""
    prove(model, path, names=names).raise_for_fault()


def write_entries(path: FilePath, entries: Mapping[str, Entry], scheme: str) -> None:
    """Put a proof of updates alone beside weights, in a file or folder.

    - `entries`: of `sign(model)` and `sign_update(weight, base)`; `scheme`: the dtype of the base.
    """
    add_record(path, Record.of_entries(entries, scheme), beside_weights=True)


def read_inputs(path: FilePath) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
    """The arguments and keyword arguments of the file's proof, for `Proof.from_outputs`.

    **Raises:** `CheckpointError` if there is no proof, or it has no inputs.
    """
    return _with_inputs(path).inputs.arrays()


def _with_inputs(path: FilePath) -> Record:
    record = _record_of(path)
    if not record.was_called:
        raise CheckpointError(
            f"The proof of {os.fspath(path)!r} was made of updates alone, and has no inputs. Use "
            "prove(model, path) or Proof.from_weights(weights, path)."
        )
    return record


class _Differences(Mapping[str, tuple[str, np.ndarray, np.ndarray]]):
    """Updates as `updates_of` has them, of merged weights. One is in memory at a time."""

    def __init__(
        self, record: Record, weights: Mapping[str, Any], bases: Mapping[str, Any]
    ) -> None:
        self._weights, self._bases, self._entries = weights, bases, record.entries

    def __getitem__(self, name: str) -> tuple[str, np.ndarray, np.ndarray]:
        weight, base = np.asarray(self._weights[name]), np.asarray(self._bases[name])
        update = difference(weight, base)
        dtype = min(weight.dtype, base.dtype, key=lambda dtype: dtype.itemsize)
        return self._entries[name].method, update, base.astype(dtype)

    def __iter__(self) -> Iterator[str]:
        return (x for x in self._entries if x in self._bases and x in self._weights)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _record_of(path: FilePath) -> Record:
    record = read_record(path)
    if record is None:
        raise CheckpointError(
            f"{os.fspath(path)!r} has no proof. Save it by net.save_adapters(path, proof=inputs), "
            "or save_peft(net, folder, proof=inputs)."
        )
    return record


def _by_the_files_names(
    found: Mapping[str, Any], record: Record, names: Mapping[str, str]
) -> dict[str, Any]:
    """The values by the names of the record, which has points for slashes in PEFT's folders."""
    spelled = {name.replace(".", "/"): name for name in (*record.entries, *record.trained)}

    def name_of(key: str) -> str:
        for mine, theirs in names.items():
            if key.startswith(f"{mine}/"):
                return f"{theirs}{key[len(mine) :]}"
        return spelled.get(key, key)

    return {name_of(key): value for key, value in found.items()}


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
        elif not updates:
            finding = MISSING
            if name in bases:
                finding = merged_finding(entry, signature(bases[name]), scheme)
        elif times == 0 and name in bases:
            finding = base_finding(name, record, bases[name], scheme) or finding
        rows.append(Row(name, entry.method, float(entry.update[0]), finding))
    if not updates and all(row.finding == MISSING for row in rows if row.size):
        rows = [dataclasses.replace(row, finding=INACTIVE if row.size else "") for row in rows]
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

    def proof(verdict: Verdict, cause: str | None, error: float | None) -> Proof:
        return Proof(rows, verdict, cause, error, expected, file, record.versions)

    if record.was_called and size <= 1e-6 * _norm(record.plain):
        return proof("fault", _UNTRAINED, None)
    if adapted is None:
        return proof("fault" if cause else "acts", cause, None)
    drift = 0.0 if plain is None else _norm(plain - record.plain) / _norm(record.plain)
    error = _norm(adapted - record.adapted) / size
    if error <= SAME:
        return proof("acts", None, error)
    if plain is not None:
        error = _norm(adapted - plain - record.adapted + record.plain) / size
        # The effect moves with the activations, which move with every layer before.
        expected = max(expected, 3 * drift * per_effect)
    is_rounded = drift <= rounding(scheme) and error <= min(expected, FOUR_BITS)
    if is_rounded and cause is None:
        return proof("acts, rounded", None, error)
    if _norm(adapted - record.plain) <= SAME * size:
        cause = INACTIVE
    elif cause is None:
        cause = OTHER_BASE if drift > rounding(scheme) else _ELSEWHERE
    return proof("fault", cause, error)
