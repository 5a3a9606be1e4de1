"""Arrays of files of several formats, by name, each read when it is used."""

import contextlib
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import imported_for, path_str, read_json
from jno.lora.parts import tracked

from ..config import Config
from ..files import CONFIG, TENSORS
from ..layouts import Shape

# The key of PEFT's configurations in the header of diffusers' files.
_CONFIGS = "lora_adapter_metadata"
# The file in the folder of an Orbax tree, and the subfolders in which libraries store the tree.
_TREE, _STEP = "_METADATA", "_CHECKPOINT_METADATA"
_FOLDERS = ("", "model_params", "params", "items", "default", "state")
# Files of a model beside its weights.
_BESIDE = (".json", ".txt", ".model", ".jinja")
_DTYPES: dict[str, Any] = {
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "BOOL": np.bool_,
}


class State(NamedTuple):
    """A tree of arrays, its alpha, and configurations by the first component of names."""

    tree: PyTree
    alpha: float | None = None
    configs: Mapping[str, Config] = {}

    def config_for(self, key: str) -> tuple[Config | None, str]:
        """The configuration for a layer, and the layer's PEFT name in this configuration."""
        model, _, name = key.partition("/")
        if model not in self.configs:
            model, name = "", key
        return self.configs.get(model), name.replace("/", ".")


class Later:
    """An array in a file, which `numpy.asarray` reads."""

    def __init__(self, shape: Shape, dtype: Any, read: Any):
        self.shape, self.dtype, self.read = tuple(shape), np.dtype(dtype), read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def open_state(path: Path) -> State:
    """The arrays of a file or a folder, by their names. **Raises:** `PeftFormatError`."""
    if (path / CONFIG).exists():
        tensors, _ = map_safetensors(path / TENSORS)
        return State(tensors, configs={"": Config.parse(read_json(path / CONFIG))})
    if path.is_dir() and (files := sorted(path.glob("*.safetensors"))):
        return State(_joined(map_safetensors(file)[0] for file in files))
    if path.is_dir():
        return open_orbax(path)
    if not path.exists():
        raise PeftFormatError(f"There is no file or folder {os.fspath(path)!r}.")
    if path.suffix == ".h5":
        return State(_read_h5(path))
    if path.suffix == ".npz":
        arrays = np.load(path, allow_pickle=False)
        return State({name: arrays[name] for name in arrays.files})
    tensors, metadata = map_safetensors(path)
    return State(tensors, configs=_configs(metadata.get(_CONFIGS)))


def flat(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree, by their names with slashes."""
    return {path_str(keys): leaf for keys, leaf in jtu.tree_leaves_with_path(tree)}


def _joined(files: Iterable[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for tensors in files:
        if twice := [name for name in tensors if name in joined]:
            raise PeftFormatError(f"Two files of the folder hold an array {twice[0]!r}.")
        joined |= tensors
    return joined


def map_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a safetensors file, mapped into memory, in their order, and its metadata."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks the header
            pass
    except (safetensors.SafetensorError, OSError) as err:
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be read: {err}") from err
    with open(path, "rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8))
    metadata = header.pop("__metadata__", {})
    content = np.memmap(path, np.uint8, "r")
    arrays: dict[str, Any] = {}
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = (begin + offset for offset in info["data_offsets"])
        code = info["dtype"]
        dtype = np.dtype(_DTYPES.get(code) or f"{code[0].lower()}{int(code[1:]) // 8}")
        arrays[name] = content[start:stop].view(dtype).reshape(info["shape"])
    return arrays, metadata


def write_safetensors(
    path: Path,
    arrays: Mapping[str, Any],
    make: Callable[[str], Any] | None = None,
) -> None:
    """Write a file, array by array, which is complete under its name or not there.

    - `arrays`: arrays by name, or anything with their shapes and dtypes, if `make` gives them.
    """
    codes = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        dtype = np.dtype(array.dtype)
        start, end = end, end + dtype.itemsize * math.prod(array.shape)
        code = codes.get(dtype) or f"{dtype.kind.upper()}{8 * dtype.itemsize}"
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in arrays.items():
            whole = np.ascontiguousarray(array if make is None else make(name))
            file.write(whole.reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which gets the name `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name[:40]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _configs(text: str | None) -> dict[str, Config]:
    """The configurations in `{"transformer.r": 8}`, by the names of a pipeline's models."""
    if text is None:
        return {}
    by_model: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(text).items():
        model, _, setting = name.rpartition(".")
        by_model.setdefault(model, {"peft_type": "LORA"})[setting] = value
    return {model: Config.parse(settings) for model, settings in by_model.items()}


def _read_h5(path: Path) -> dict[str, Any]:
    with imported_for("Reading an .h5 file", "keras", "h5py"):
        import h5py  # pyright: ignore[reportMissingImports]
    arrays: dict[str, Any] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            is_bfloat16 = item.attrs.get("dtype") == "bfloat16"
            dtype = jnp.bfloat16 if is_bfloat16 else item.dtype
            arrays[name] = Later(item.shape, dtype, lambda: h5_value(item))

    try:
        h5py.File(path, "r").visititems(add)
    except OSError as err:
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be read: {err}") from err
    return arrays


def h5_value(item: Any) -> np.ndarray:
    """A dataset of Keras, which marks bfloat16 by an attribute."""
    value = np.asarray(item[()])
    if item.attrs.get("dtype") != "bfloat16":
        return value
    return value.view(jnp.bfloat16) if value.dtype.kind == "V" else value.astype(jnp.bfloat16)


def tree_folder(path: Path) -> str:
    """The folder of the tree in a checkpoint. **Raises:** `PeftFormatError` if it has none."""
    for name in _FOLDERS:
        if (path / name / _TREE).exists():
            return name
    raise PeftFormatError(
        f"{os.fspath(path)!r} is not a checkpoint of Orbax: {_TREE} is not in it, nor in "
        f"{', '.join(_FOLDERS[1:])}. Give the folder of one step, such as 'checkpoints/100'."
    )


def save_orbax(path: Path, arrays: Mapping[str, Any], alpha: float | None = None) -> None:
    """Save arrays as a tree, whose names have slashes, and the alpha as MaxText does."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = np.asarray(array)
    folder = path if alpha is None else path / "model_params"
    with _errors_of_orbax(path) as orbax, orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree, force=True)
    if alpha is not None:
        facts = {"custom_metadata": {"lora": {"lora_alpha": alpha}}}
        (path / _STEP).write_text(json.dumps(facts))


def write_like(
    base: Path, out: Path, arrays: Mapping[str, Any], make: Callable[[str], np.ndarray]
) -> None:
    """Write the arrays that `make` gives in the format of `base`, or else as safetensors.

    Finished files of an earlier call stay as they are.
    """
    files = sorted(base.glob("*.safetensors")) if base.is_dir() else []
    if files:
        out.mkdir(exist_ok=True)
        for file in tracked([x for x in files if not (out / x.name).exists()], "Writing files"):
            names = [name for name in map_safetensors(file)[0] if name in arrays]
            write_safetensors(out / file.name, {name: arrays[name] for name in names}, make)
        for file in base.iterdir():
            if file.suffix in _BESIDE:
                shutil.copy2(file, out / file.name)
    elif base.is_dir():
        # Orbax saves whole trees, so it gets arrays that are mapped from files.
        scratch, tree = out.with_name("arrays"), dict[str, Any]()
        scratch.mkdir(exist_ok=True)
        for number, name in enumerate(tracked([*arrays], "Writing arrays")):
            file = scratch / f"{number}.safetensors"
            if not file.exists():
                write_safetensors(file, {name: arrays[name]}, make)
            tree |= map_safetensors(file)[0]
        save_orbax(out / tree_folder(base), tree)
    else:
        write_safetensors(out, arrays, make)


def open_orbax(path: Path) -> State:
    """The arrays of a checkpoint of Orbax, as NumPy arrays that are read when they are used."""
    folder = (path / tree_folder(path)).absolute()
    with _errors_of_orbax(path) as orbax, orbax.PyTreeCheckpointer() as checkpointer:
        tree: Any = checkpointer.metadata(folder).item_metadata.tree
    leaves, structure = jtu.tree_flatten(tree)

    def read(number: int) -> np.ndarray:
        # As a NumPy array, because the devices on which it was saved may not exist here.
        wanted = [orbax.PLACEHOLDER] * len(leaves)
        wanted[number] = leaves[number]
        args = [orbax.RestoreArgs(restore_type=np.ndarray)] * len(leaves)
        with _errors_of_orbax(path), orbax.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(
                folder,
                item=jtu.tree_unflatten(structure, wanted),
                restore_args=jtu.tree_unflatten(structure, args),
            )
        return jtu.tree_leaves(tree)[number]

    later = [
        Later(leaf.shape, leaf.dtype, functools.partial(read, number))
        for number, leaf in enumerate(leaves)
    ]
    # MaxText writes the alpha beside its states.
    facts: Any = read_json(path / _STEP) if (path / _STEP).exists() else {}
    custom = facts.get("custom_metadata") or {}
    return State(jtu.tree_unflatten(structure, later), custom.get("lora", {}).get("lora_alpha"))


@contextlib.contextmanager
def _errors_of_orbax(path: Path) -> Iterator[Any]:
    with imported_for("Reading a folder of Orbax", "orbax", "orbax"):
        import orbax.checkpoint  # pyright: ignore[reportMissingImports]
    try:
        yield orbax.checkpoint
    # A damaged folder has no metadata, so `item_metadata` is `None`.
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise PeftFormatError(f"Orbax cannot read {os.fspath(path)!r}: {err}") from err
