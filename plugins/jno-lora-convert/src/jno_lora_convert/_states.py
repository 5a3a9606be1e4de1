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

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import imported_for, path_str, read_file, read_json
from jno.lora.parts import tracked
from jno_lora_peft.config import Config
from jno_lora_peft.errors import format_errors
from jno_lora_peft.files import CONFIG, TENSORS
from jno_lora_peft.layouts import Shape

# The key of PEFT's configurations in the header of diffusers' files, and of the checksums in the
# header of jno-lora's.
_CONFIGS, _CHECKSUMS = "lora_adapter_metadata", "jno.lora.crc32"
# The file in the folder of an Orbax tree, and the subfolders in which libraries store the tree.
_TREE, _STEP = "_METADATA", "_CHECKPOINT_METADATA"
_FOLDERS = ("", "model_params", "params", "items", "default", "state")
# An Orbax tree is written in files of this size, because Orbax holds some of them in memory.
_SIZE = 2**26
# Files of weights, which are not copied with the other files of a base.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf", ".msgpack", ".onnx")
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    **{f"{kind}{8 * n}": np.dtype(f"{kind.lower()}{n}") for kind in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
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

    def __init__(self, shape: Shape, dtype: Any, read: Callable[[], Any]):
        self.shape, self.dtype, self.read = tuple(shape), np.dtype(dtype), read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = np.asarray(self.read())
        # HDF5 has no bfloat16, so Keras stores its bytes.
        value = value.view(self.dtype) if value.dtype.kind == "V" else value.astype(self.dtype)
        return value if dtype is None else value.astype(dtype)


def open_state(path: Path) -> State:
    """The arrays of a file or a folder, by their names. **Raises:** `PeftFormatError`."""
    if (path / CONFIG).exists():
        tensors, _ = map_safetensors(path / TENSORS)
        return State(tensors, configs={"": Config.parse(read_json(path / CONFIG))})
    if path.is_dir():
        files = _files_of(path)
        return _open_files(files) if files else _open_orbax(path)
    if path.suffix == ".h5":
        return State(_open_h5(path))
    tensors, metadata = map_safetensors(path)
    return State(tensors, configs=_configs(metadata.get(_CONFIGS)))


def flat(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree, by their names with slashes."""
    return {path_str(keys): leaf for keys, leaf in jtu.tree_leaves_with_path(tree)}


def map_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a safetensors file, mapped into memory, and its metadata.

    A file of jno-lora is read whole, because its arrays have checksums.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as checked:  # checks the header
            metadata = checked.metadata() or {}
    except (safetensors.SafetensorError, OSError) as err:
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be read: {err}") from err
    if _CHECKSUMS in metadata:
        with format_errors():
            return read_file(path)
    with open(path, "rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8))
    header.pop("__metadata__", None)
    content = np.memmap(path, np.uint8, "r")
    arrays: dict[str, Any] = {}
    for name, info in header.items():
        if info["dtype"] not in _DTYPES:
            raise PeftFormatError(f"{name} in {os.fspath(path)!r} has the dtype {info['dtype']}.")
        start, stop = (begin + offset for offset in info["data_offsets"])
        arrays[name] = content[start:stop].view(_DTYPES[info["dtype"]]).reshape(info["shape"])
    return arrays, metadata


def write_safetensors(path: Path, arrays: Mapping[str, Any], make: Callable[[str], Any]) -> None:
    """Write the array that `make` gives for each name, one after another.

    The file is complete under its name, or not there.

    - `arrays`: anything with the shapes and dtypes of the arrays, by name.
    """
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        dtype, start = np.dtype(array.dtype), end
        if dtype not in codes:
            raise PeftFormatError(f"{name} has the dtype {dtype}, which cannot be written.")
        end += dtype.itemsize * math.prod(array.shape)
        header[name] = {"dtype": codes[dtype], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name[:40]}.tmp")
    bar = tracked(arrays, f"Writing {path.name}")
    with open(temporary, "wb") as file, contextlib.closing(bar) as names:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(make(name)).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_like(
    base: Path, out: Path, arrays: Mapping[str, Any], make: Callable[[str], np.ndarray]
) -> None:
    """Write the arrays that `make` gives in the format of `base`, or else as safetensors.

    Files that an earlier call finished stay as they are. Other files in a folder of safetensors are
    copied, except other weights and subfolders. For Orbax, all arrays are on the disk twice at the
    end, and not in memory.

    **Raises:** `PeftFormatError` if `out` must end in `.safetensors`, or a dtype cannot be written.
    """
    files = _files_of(base) if base.is_dir() else []
    is_orbax = base.is_dir() and not files
    # Orbax saves whole trees, so it gets arrays that are mapped from a file.
    single = out.with_name(f"{out.name}.arrays") if is_orbax else out
    if base.is_file() and out.suffix != ".safetensors":
        raise PeftFormatError(f"{out.name!r} must end in .safetensors, the format of merged files.")
    parts = {out / file.name: [*map_safetensors(file)[0]] for file in files} or {single: arrays}
    for file, names in parts.items():
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            write_safetensors(file, {name: arrays[name] for name in names if name in arrays}, make)
    if is_orbax:
        written, _ = map_safetensors(single)
        tree = _open_orbax(base).tree
        filled = jtu.tree_map_with_path(lambda keys, _: written.get(path_str(keys)), tree)
        _save_tree(out / _tree_folder(base), filled, len(written) < len(jax.tree.leaves(tree)))
    for file in base.iterdir() if files else ():
        if file.is_file() and file.suffix not in _WEIGHTS:
            shutil.copy2(file, out / file.name)


def save_orbax(path: Path, arrays: Mapping[str, Any], alpha: float) -> None:
    """Save arrays as a tree, whose names have slashes, and the alpha as MaxText does."""
    with _errors_of_orbax(path) as orbax:
        _save_tree(path / "model_params", orbax.tree.from_flat_dict(arrays, sep="/"))
    (path / _STEP).write_text(json.dumps({"custom_metadata": {"lora": {"lora_alpha": alpha}}}))


class _Uncopied(np.ndarray):
    """An array that Orbax saves without a copy in memory."""

    def __deepcopy__(self, memo: Any) -> "_Uncopied":
        return self


def _save_tree(folder: Path, tree: PyTree, has_gaps: bool = False) -> None:
    """Save the arrays of a tree, without its nodes that hold no arrays if it has gaps."""
    tree = jax.tree.map(lambda array: np.asarray(array).view(_Uncopied), tree)
    with _errors_of_orbax(folder) as orbax, orbax.PyTreeCheckpointer() as checkpointer:
        tree = orbax.tree.serialize_tree(tree) if has_gaps else tree
        checkpointer.save(folder.absolute(), tree, force=True, ocdbt_target_data_file_size=_SIZE)


def _files_of(folder: Path) -> list[Path]:
    """The files of safetensors that Transformers would read in a folder, or else all of them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        return sorted({folder / name for name in read_json(index)["weight_map"].values()})
    return sorted(folder.glob("*.safetensors"))


def _open_files(files: Iterable[Path]) -> State:
    arrays: dict[str, Any] = {}
    for file in files:
        new, _ = map_safetensors(file)
        if twice := sorted(arrays.keys() & new.keys()):
            raise PeftFormatError(f"Two files of the folder hold an array {twice[0]!r}.")
        arrays |= new
    return State(arrays)


def _configs(text: str | None) -> dict[str, Config]:
    """The configurations in `{"transformer.r": 8}`, by the names of a pipeline's models."""
    if text is None:
        return {}
    by_model: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(text).items():
        model, _, setting = name.rpartition(".")
        by_model.setdefault(model, {"peft_type": "LORA"})[setting] = value
    return {model: Config.parse(settings) for model, settings in by_model.items()}


def _open_h5(path: Path) -> dict[str, Any]:
    with imported_for("Reading an .h5 file", "keras", "h5py"):
        import h5py  # pyright: ignore[reportMissingImports]
    arrays: dict[str, Any] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            dtype = jnp.bfloat16 if item.attrs.get("dtype") == "bfloat16" else item.dtype
            arrays[name] = Later(item.shape, dtype, lambda: item[()])

    try:
        h5py.File(path, "r").visititems(add)
    except OSError as err:
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be read: {err}") from err
    return arrays


def _open_orbax(path: Path) -> State:
    """The arrays of a checkpoint of Orbax, as NumPy arrays that are read when they are used."""
    folder = (path / _tree_folder(path)).absolute()
    with _errors_of_orbax(path) as orbax, orbax.PyTreeCheckpointer() as checkpointer:
        tree: Any = checkpointer.metadata(folder).item_metadata.tree
    if texts := [name for name, leaf in flat(tree).items() if not hasattr(leaf, "shape")]:
        raise PeftFormatError(f"{texts[0]} in {os.fspath(path)!r} is not an array.")

    def read(leaf: Any) -> np.ndarray:
        # As a NumPy array, because the devices on which it was saved may not exist here.
        args = jax.tree.map(lambda _: orbax.RestoreArgs(restore_type=np.ndarray), tree)
        wanted = jax.tree.map(lambda x: x if x is leaf else orbax.PLACEHOLDER, tree)
        with _errors_of_orbax(path), orbax.PyTreeCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder, item=wanted, restore_args=args)
        return next(x for x in jax.tree.leaves(arrays) if x is not orbax.PLACEHOLDER)

    later = jax.tree.map(lambda x: Later(x.shape, x.dtype, functools.partial(read, x)), tree)
    # MaxText writes the alpha beside its states.
    facts: Any = read_json(path / _STEP) if (path / _STEP).exists() else {}
    custom = facts.get("custom_metadata") or {}
    return State(later, custom.get("lora", {}).get("lora_alpha"))


def _tree_folder(path: Path) -> str:
    """The folder of the tree in a checkpoint. **Raises:** `PeftFormatError` if it has none."""
    for name in _FOLDERS:
        if (path / name / _TREE).exists():
            return name
    raise PeftFormatError(
        f"{os.fspath(path)!r} has no safetensors files, and is not a checkpoint of Orbax: {_TREE} "
        f"is not in it, nor in {', '.join(_FOLDERS[1:])}. Give the folder of one step, such as "
        "'checkpoints/100'."
    )


@contextlib.contextmanager
def _errors_of_orbax(path: Path) -> Iterator[Any]:
    with imported_for("A folder of Orbax", "orbax", "orbax"):
        import orbax.checkpoint  # pyright: ignore[reportMissingImports]
    try:
        yield orbax.checkpoint
    # A damaged folder has no metadata, so `item_metadata` is `None`.
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise PeftFormatError(f"Orbax cannot read or write {os.fspath(path)!r}: {err}") from err
