"""What a proof keeps of a model with adapters: its outputs on some inputs, and its updates."""

import base64
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float, PyTree

from jno.lora import CheckpointError, Net, __version__, disabled
from jno.lora.extending import (
    adapted_layers,
    filler,
    is_coded,
    path_str,
    read_file,
    wide_layers,
    write_file,
)

from ._inputs import Inputs
from ._signatures import WIDTH, signature, sketch

KEY = "jno.lora.proof"  # in the metadata of a file of adapters
FILE = "adapter_proof.safetensors"  # in a folder of PEFT

Signature = Float[np.ndarray, "9"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array of an adapted layer: the signatures of its update, and of it without adapters."""

    method: str
    update: Signature
    base: Signature


@dataclasses.dataclass(frozen=True)
class Record:
    """A proof as a file keeps it.

    - `adapted`, `plain`: sketches of the outputs, with the adapters and without them.
    - `entries`: by the path of an array, such as `layers/0/weight`.
    - `trained`: signatures of the trained arrays outside of adapters, by path.
    - `scheme`: the dtype of the base, or its quantisation.
    - `versions`: of the libraries that wrote it, by name.

    The record of a model that was not called has no inputs, and sketches of no examples.
    """

    inputs: Inputs
    adapted: Float[np.ndarray, "examples width"]
    plain: Float[np.ndarray, "examples width"]
    entries: Mapping[str, Entry]
    trained: Mapping[str, Signature]
    scheme: str
    versions: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"jno-lora": __version__, "jax": jax.__version__}
    )

    @classmethod
    def of(cls, model: PyTree | Net, inputs: Inputs) -> "Record":
        """The record of a model with adapters, as it is now."""
        inputs.stored()  # raises before the model is called
        trained = {path: signature(x) for path, x in _trained_outside(model).items()}
        module = model.module if isinstance(model, Net) else model
        adapted, plain = sketches(inputs, module), sketches(inputs, disabled(module))
        return cls(inputs, adapted, plain, sign(module), trained, scheme_of(module))

    @classmethod
    def of_entries(cls, entries: Mapping[str, Entry], scheme: str) -> "Record":
        """The record of updates alone, of a model that was not called."""
        none = np.zeros((0, WIDTH))
        return cls(Inputs(()), none, none, entries, {}, scheme)

    @property
    def was_called(self) -> bool:
        """Whether there are outputs."""
        return len(self.adapted) > 0

    def renamed(self, names: Mapping[str, str]) -> "Record":
        """The record with other names of layers: `names` has the new name of each path."""

        def named(key: str) -> str:
            path, _, array = key.rpartition("/")
            return f"{names.get(path, path)}/{array}".removeprefix("/")

        entries = {named(key): entry for key, entry in self.entries.items()}
        trained = {named(key): array for key, array in self.trained.items()}
        return dataclasses.replace(self, entries=entries, trained=trained)

    def dump(self) -> bytes:
        """The record as a safetensors file."""
        arrays, inputs = self.inputs.stored()
        entries, none = self.entries.values(), np.zeros((0, 9))
        tensors = {
            "adapted": self.adapted.astype(np.float32),
            "plain": self.plain.astype(np.float32),
            "updates": np.stack([x.update for x in entries]) if entries else none,
            "bases": np.stack([x.base for x in entries]) if entries else none,
            "trained": np.stack([*self.trained.values()]) if self.trained else none,
            **arrays,
        }
        lists = {
            "entries": [*self.entries],
            "methods": [entry.method for entry in entries],
            "trained": [*self.trained],
        }
        facts = {"format": "1", "inputs": inputs, "scheme": self.scheme, "lists": json.dumps(lists)}
        facts["versions"] = json.dumps(dict(self.versions))
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        return safetensors.numpy.save(contiguous, facts)

    @classmethod
    def parse(cls, content: bytes) -> "Record":
        """The record that `dump` wrote."""
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = header["__metadata__"]
        lists = json.loads(facts["lists"])
        rows = zip(lists["methods"], tensors["updates"], tensors["bases"], strict=True)
        entries = {name: Entry(*row) for name, row in zip(lists["entries"], rows, strict=True)}
        return cls(
            Inputs.read(tensors, facts["inputs"]),
            tensors["adapted"],
            tensors["plain"],
            entries,
            dict(zip(lists["trained"], tensors["trained"], strict=True)),
            facts["scheme"],
            json.loads(facts["versions"]),
        )


def add_record(
    path: str | os.PathLike[str], record: Record, *, beside_weights: bool = False
) -> None:
    """Put a record into a file of adapters, or beside the files in a folder.

    - `beside_weights`: whether a file holds the weights of a model, which may exceed memory.
    """
    content = record.dump()
    if os.path.isdir(path):
        Path(path, FILE).write_bytes(content)
    elif beside_weights:
        _put_into_header(Path(path), base64.b64encode(content).decode())
    else:
        tensors, metadata = read_file(path)
        write_file(path, tensors, {**metadata, KEY: base64.b64encode(content).decode()})


def _put_into_header(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name[:40]}.tmp")
    with open(path, "rb") as old, open(temporary, "wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header.setdefault("__metadata__", {})[KEY] = text
        changed = json.dumps(header).encode()
        changed += b" " * (-len(changed) % 8)
        new.write(len(changed).to_bytes(8, "little") + changed)
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
    os.replace(temporary, path)


def read_record(path: str | os.PathLike[str]) -> Record | None:
    """The record of a file or folder; `None` if it has none.

    **Raises:** `CheckpointError` if it is damaged.
    """
    if os.path.isdir(path):
        file = Path(path, FILE)
        content = file.read_bytes() if file.exists() else None
    else:
        with safetensors.safe_open(path, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(KEY)
        content = None if text is None else base64.b64decode(text)
    try:
        return None if content is None else Record.parse(content)
    except (ValueError, KeyError, safetensors.SafetensorError) as err:
        raise CheckpointError(f"The proof of {os.fspath(path)!r} is damaged: {err!r}") from err


def sign(model: PyTree) -> dict[str, Entry]:
    """The entries of a model with adapters, by the paths of their arrays."""
    return {
        name: Entry(method, signature(update), signature(base))
        for name, (method, update, base) in updates_of(model).items()
    }


def sign_update(weight: Any, base: Any) -> Entry:
    """The entry of a weight into which the update of a LoRA was merged."""
    return Entry("lora", signature(difference(weight, base)), signature(base))


def updates_of(model: PyTree) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """The method, the update and the base of each array of the adapted layers, by path.

    Layer 3 of a stack has a path such as `layers/query[3]/weight`, as in PEFT's files. Adapters
    that cannot be merged have no update, and are left out.
    """
    fill = filler(model)
    found: dict[str, tuple[str, np.ndarray, np.ndarray]] = {}
    with jax.enable_x64(True):
        for path, adapter in adapted_layers(model):
            if not type(adapter).mergeable:
                continue
            method = adapter.variant or type(adapter).__name__
            plain, merged = wide_layers(jax.tree.map(_decoded, fill(adapter), is_leaf=is_coded))
            before = jtu.tree_leaves_with_path(eqx.filter(plain, eqx.is_inexact_array))
            after = jax.tree.leaves(eqx.filter(merged, eqx.is_inexact_array))
            stack = before[0][1].shape[: type(adapter).stack_ndim(adapter.base)]
            for (keys, old), new in zip(before, after, strict=True):
                base, update = np.asarray(old), np.asarray(new) - np.asarray(old)
                for index in np.ndindex(*stack):
                    layer = f"{path}[{','.join(map(str, index))}]" if stack else path
                    name = f"{layer}/{path_str(keys)}".removeprefix("/")
                    found[name] = method, update[index], base[index]
    return found


def sketches(inputs: Inputs, model: PyTree) -> Float[np.ndarray, "examples width"]:
    """The sketches of the model's outputs, side by side."""
    return np.concatenate([sketch(array) for array in inputs.outputs(model)], axis=1)


def scheme_of(model: PyTree) -> str:
    """The dtype of the adapted layers, or of the model: the coarsest; or the quantisation."""
    bases = [adapter.base for _, adapter in adapted_layers(model)] or [model]
    leaves = jax.tree.leaves(bases, is_leaf=is_coded)
    codes = [leaf.code for leaf in leaves if is_coded(leaf)]
    return codes[0] if codes else coarsest(filter(eqx.is_inexact_array, leaves))


def coarsest(arrays: Iterable[Any]) -> str:
    """The dtype with the fewest bytes."""
    return str(min((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize))


def difference(weight: Any, base: Any) -> np.ndarray:
    """The update in a weight, in double precision."""
    wide = np.complex128 if np.iscomplexobj(base) else np.float64
    return np.asarray(weight).astype(wide) - np.asarray(base).astype(wide)


def arrays_of(model: PyTree) -> dict[str, np.ndarray]:
    """The floating arrays of a model by path."""
    leaves = jtu.tree_leaves_with_path(eqx.filter(model, eqx.is_inexact_array))
    return {path_str(keys): np.asarray(leaf) for keys, leaf in leaves}


def _trained_outside(model: PyTree | Net) -> dict[str, np.ndarray]:
    if not isinstance(model, Net):
        return {}
    # The model itself may be the adapted layer.
    adapted = tuple(f"{path}/" if path else "" for path, _ in adapted_layers(model.module))
    trains = jtu.tree_leaves_with_path(model.trainable)
    paths = {path_str(keys) for keys, flag in trains if flag is True}
    arrays = arrays_of(model.module)
    return {p: x for p, x in arrays.items() if p in paths and not p.startswith(adapted)}


def _decoded(leaf: Any) -> Any:
    return leaf.decoded() if is_coded(leaf) else leaf
