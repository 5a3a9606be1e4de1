"""Convert LoRA from the files of one project into files of another, or merge it into a base.

Every array of the source is used, or named in an error or in the report. The adapter is read into
memory, and the base array by array.
"""

import collections
import dataclasses
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jno.lora import PeftFormatError, SelectionError
from jno.lora.extending import show_path, warn
from jno.lora.parts import tracked, write_file

from .._errors import MisfitError, Problems, format_errors
from .._names import PREFIX, Rename, module_name, peft_name
from ..files import write
from ..layouts import Shape
from ..saving import with_pattern
from ..types import TYPES
from .containers import State, flat, open_state, save_orbax, write_like
from .loading import alpha_of
from .pairs import Pair, normalise, pairs_of, with_core
from .sources import ADAPTER, Index, Law, at, without

TARGETS = ("peft", "merged", "safetensors", "orbax")
# The record of an unfinished conversion, which a second call resumes.
_RECORD = "jno-lora-convert.txt"
_WIDE = ("float16", "bfloat16", "float32", "float64")


class Update(NamedTuple):
    """One LoRA: its factors, and the law and the scale of the update.

    - `key`, `source`: its name in the source, and the project.
    - `laws`: the possible laws, which differ in the axes of the weight.
    - `weights`: the possible names of the weight; `modules`: the indices of the modules in PEFT, by
        their names; `is_embedding`: the weight in Torch is a table, with the inputs first.
    """

    key: str
    source: str
    A: np.ndarray
    B: np.ndarray
    laws: list[Law]
    scale: float
    weights: tuple[str, ...]
    modules: Mapping[str, Index]
    is_embedding: bool

    @property
    def law(self) -> Law:
        return self.laws[0]

    @property
    def sizes(self) -> dict[str, int]:
        return self.law.sizes(self.A, self.B)

    @property
    def rank(self) -> int:
        """The rank in Torch, which has one product for all heads."""
        return self.sizes["r"] * (self.sizes["n"] if "n" in self.law.a else 1)

    def with_law(self, name: str, shape: Shape | None, index: Index | None = None) -> "Update":
        """The update with the law that makes a weight of this shape, or the only law.

        - `index`: of a module, if the weight is Torch's.

        **Raises:** `MisfitError` if no law makes such a weight, or several laws do.
        """
        laws: dict[Any, Law] = {}
        for law in self.laws:  # some differ in the meaning of axes alone
            if index is None:
                axes = [f"{law.a},{law.b}".index(axis) for axis in law.weight]
                laws[(law.shape(self.sizes), *axes)] = law
            else:
                inputs = law.torch_axes(index)[2]
                laws[(law.torch_shape(self.sizes, index), *map(law.a.index, inputs))] = law
        fitting = [law for (made, *_), law in laws.items() if shape in (None, made)]
        if len(fitting) != 1:
            raise MisfitError(
                f"{name} has {f'the shape {shape}' if shape else 'no known shape: give a base'}. "
                f"The factors {self.A.shape} and {self.B.shape} have {len(fitting)} layouts for "
                f"it, of the shapes {', '.join(str(made) for made, *_ in laws)}"
            )
        return self._replace(laws=fitting)

    def in_torch(self, shapes: Mapping[str, Shape]) -> "Update":
        """The update with the law that fits all of Torch's weights. **Raises:** `MisfitError`."""
        update = self
        for name, index in self.modules.items():
            shape = shapes.get(_path(f"{name}.weight"))
            if self.is_embedding and shape is not None:
                shape = shape[::-1]
            update = update.with_law(f"{name}.weight", shape, index)
        return update

    def dense(self, index: Index, axes: str, dtype: Any) -> np.ndarray:
        """The update of one module, with these axes."""
        update = self.law.update(self.A, self.B, index, axes, dtype)
        return update * np.dtype(dtype).type(self.scale)

    def added_to(self, weight: np.ndarray, dtype: Any) -> Iterator[tuple[Any, np.ndarray]]:
        """The places of the modules in their weight, and the sums there."""
        axes = self.law.weight
        for index in self.law.indices(self.sizes):
            place = at(axes, index)
            yield (
                place,
                weight[place].astype(dtype) + self.dense(index, without(axes, index), dtype),
            )


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of `convert_lora`.

    - `sources`: the projects whose names the arrays have; `modules`: rank and scale of each module.
    - `left`: arrays of the source that are not part of the adapter, and were not written.
    - `difference`: the largest difference between numbers of the updates before and after, if they
        were compared.
    """

    sources: list[str]
    modules: dict[str, tuple[int, float]]
    left: list[str]
    difference: float | None


def convert_lora(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str,
    base: str | os.PathLike[str] | None = None,
    alpha: float | None = None,
    rename: Rename = None,
    prefix: str = "",
    stack_axis: int | None = None,
    verify: bool = False,
) -> Conversion:
    """Convert the LoRA in `source`, and write it to `out`.

    `source` is of openpi, gemma, Keras, EasyDeL, Levanter, Qwix, Tunix, MaxText, diffusers, kohya
    or PEFT: a file (`.safetensors`, `.h5`) or a folder (safetensors, PEFT, Orbax).

    **Arguments:**

    - `to`: `"peft"`, a directory that PEFT, vLLM and `load_peft` read; `"merged"`, the base with
        the updates, in the base's format; `"safetensors"`, one file with an alpha for each module,
        which `load_lora_state` reads; `"orbax"`, Qwix's names in a folder of Orbax.
    - `base`: the weights to merge into, by default the source's own, with the names of the source.
        For other names, convert to PEFT first, and merge the result. For other targets, the shapes
        of Torch's weights, which tell the inputs of an einsum of Keras.
    - `alpha`: for sources without an alpha in their arrays, as for `load_lora_state`. For rsLoRA,
        it is `alpha * sqrt(rank)`.
    - `rename`: from names in the source to names in PEFT or in the base, as for
        `load_lora_state`. openpi and gemma get the names of Transformers without it.
    - `prefix`, `stack_axis`: as for `load_lora_state`.
    - `verify`: read the result, and compare each update in float64.

    `out` must not exist, and appears when it is complete. After a kill, a call with the same
    arguments resumes.

    **Returns:** a `Conversion`.

    **Raises:** `PeftFormatError` that lists the arrays without a use, factors that do not fit, and
    weights that are missing or ambiguous; `SelectionError` for a missing alpha.
    """
    source, out, problems = Path(source), Path(out), Problems()
    if to not in TARGETS:
        raise SelectionError(f"to={to!r}, but the targets are {', '.join(TARGETS)}")
    if out.exists():
        raise PeftFormatError(f"{os.fspath(out)!r} exists. Give a new name.")
    state = open_state(source)
    updates, left = _read_updates(state, problems, alpha, rename, prefix, stack_axis)
    arrays = flat(state.tree if base is None else open_state(Path(base)).tree)
    weights = {name: arrays[name] for name in (left if base is None else arrays)}
    plan: dict[str, Update] = {}
    if to == "merged":
        plan = _plan(updates, weights, problems)
        left = left if base is not None else []
    else:
        updates = _check_modules(updates, weights, rename, problems)
    problems.refuse("The LoRA cannot be converted", "Nothing was written.")
    partial = _start(out, [source, base], to, alpha, rename, prefix, stack_axis)
    if to == "merged":
        like = source if base is None else Path(base)
        write_like(like, partial / out.name, weights, lambda name: _merged(name, weights, plan))
    else:
        _write_adapter(to, partial / out.name, updates)
    difference = None
    if verify:
        written = open_state(partial / out.name)
        merged = _merge_differences(flat(written.tree), weights, plan)
        difference = max(merged if to == "merged" else _differences(written, updates))
    os.replace(partial / out.name, out)
    shutil.rmtree(partial)
    return Conversion(
        sorted({update.source for update in updates}),
        {name: (update.rank, update.scale) for update in updates for name in update.modules},
        left,
        difference,
    )


def _read_updates(
    state: State,
    problems: Problems,
    alpha: float | None = None,
    rename: Rename = None,
    prefix: str = "",
    stack_axis: int | None = None,
) -> tuple[list[Update], list[str]]:
    """The updates of a state, and the names of the arrays that are not part of an adapter."""
    for config in state.configs.values():
        names = ("peft_type", "init_lora_weights", "alora_invocation_tokens")
        kind, start, tokens = map(config.settings.get, names)
        if kind != "LORA" or start in ("pissa", "olora") or tokens:
            raise PeftFormatError(
                f"Only plain LoRA can be converted, not {kind} with init_lora_weights={start!r}, "
                f"alora_invocation_tokens={tokens}. If load_peft reads it, save it by save_peft."
            )
    pairs, lines, unknown = pairs_of(state.tree, prefix)
    # A file with a configuration has nothing but an adapter.
    strange = [key for key in unknown if state.configs or ADAPTER.search(normalise(key))]
    problems += [*lines, *(f"{key}: no array of LoRA has such a name" for key in strange)]
    if not (pairs or problems):
        raise PeftFormatError("The source holds no arrays of LoRA, or none with this prefix.")
    if alpha is not None and {pair.source.alpha for pair in pairs} == {"none"}:
        raise SelectionError(f"alpha={alpha!r}, but {pairs[0].source.name} has no alpha")
    updates: list[Update] = []
    for pair in pairs:
        with problems.of(show_path(pair.key)):
            updates.append(_read_update(pair, state, alpha, rename, stack_axis))
    if alpha is None and (number := sum(bool(pair.source.known) for pair in pairs)):
        warn(
            f"openpi does not save its alphas: {number} LoRAs are scaled by 1, as in its variants "
            "gemma_2b_lora and gemma_300m_lora. If your LoRAConfig has another scale, give `alpha`."
        )
    start = prefix.replace(".", "/")
    skipped = [key for key in flat(state.tree) if not normalise(key).startswith(start)]
    return updates, [*(key for key in unknown if key not in strange), *skipped]


def _read_update(
    pair: Pair, state: State, alpha: float | None, rename: Rename, stack_axis: int | None
) -> Update:
    arrays = {name: np.asarray(array) for name, array in pair.arrays.items()}
    A, B = arrays["A"], arrays["B"]
    if "mid" in arrays:
        A = with_core(A, arrays["mid"])
    stack = _stack_axis(pair, A.shape, B.shape, stack_axis)
    laws = pair.source.laws_of(pair.law, A.shape, B.shape, stack)
    sizes = laws[0].sizes(A, B)
    config, _ = state.config_for(pair.key)
    settings = {} if config is None else config.settings
    numerator, rank = alpha_of(pair, arrays.get("alpha"), state, alpha), sizes["r"]
    divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
    scale = 1.0 if numerator is None else numerator / divisor
    if settings.get("fan_in_fan_out"):
        laws = [law._replace(weight=law.weight[::-1]) for law in laws]
    modules = {
        module_name(pair.source.module_of(pair.law, pair.title, index), rename): index
        for index in laws[0].indices(sizes)
    }
    weights = (*pair.weights, *(module_name(weight, rename) for weight in pair.weights))
    name, is_table = pair.source.name, pair.is_embedding
    return Update(pair.key, name, A, B, laws, scale, weights, modules, is_table)


def _stack_axis(pair: Pair, A: Shape, B: Shape, given: int | None) -> int | None:
    """The axis of Qwix's factors that runs over layers. **Raises:** `MisfitError` if it is open."""
    if pair.source.name not in ("Qwix", "MaxText") or min(len(A), len(B)) < 3:
        return None
    axes = [
        axis
        for axis in ((0, 1) if given is None else (given,))
        if A[axis] == B[axis] and B[1 - axis] == A[-1]
    ]
    if len(axes) > 1:
        raise MisfitError(f"axis 0 or axis 1 of {A} and {B} may run over layers: say stack_axis")
    return axes[0] if axes else None


def _start(out: Path, paths: list[Any], *arguments: Any) -> Path:
    """The folder of an unfinished conversion, with the files of an earlier call like this one."""
    partial = out.with_name(f".{out.name}.partial")
    times = [(os.fspath(path), os.stat(path).st_mtime_ns) for path in paths if path is not None]
    record, file = repr((times, arguments)), partial / _RECORD
    if not (file.exists() and file.read_text() == record):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        file.write_text(record)
    return partial


# --- adapters


def _check_modules(
    updates: list[Update], base: Mapping[str, Any], rename: Rename, problems: Problems
) -> list[Update]:
    """The updates with laws that fit Torch's weights; each module must have a name and one LoRA."""
    shapes = {_path(name): tuple(array.shape) for name, array in base.items()}
    checked: list[Update] = []
    for update in updates:
        with problems.of(show_path(update.key)):
            if update.source == "kohya" and "_" in update.key and not rename:
                raise MisfitError("kohya has underscores for dots: use `rename`")
            for name in update.modules:
                peft_name(name, None)
            checked.append(update.in_torch(shapes))
    names = collections.Counter(name for update in updates for name in update.modules)
    problems += [f"{name}: {n} LoRAs are of this module" for name, n in names.items() if n > 1]
    return checked


def _write_adapter(to: str, path: Path, updates: list[Update]) -> None:
    tensors: dict[str, Any] = {}
    modules = {name: update for update in updates for name in update.modules}
    ranks = {name: update.rank for name, update in modules.items()}
    alphas = {name: update.rank * update.scale for name, update in modules.items()}
    # Qwix has one alpha for all layers.
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
    for name, update in modules.items():
        A, B = update.law.matrices(update.A, update.B, update.modules[name])
        if to == "orbax":
            start = f"{name.replace('.', '/')}/{'embedding' if update.is_embedding else 'kernel'}"
            B = B if alphas[name] == alpha else B * np.float32(alphas[name] / alpha)
            tensors[f"{start}_lora_a"] = np.moveaxis(A, (0, 1), (-1, -2))
            tensors[f"{start}_lora_b"] = B.reshape(len(B), -1).T
        else:
            ends = (
                ("embedding_A", "embedding_B") if update.is_embedding else ("A.weight", "B.weight")
            )
            tensors |= {f"{name}.lora_{end}": x for end, x in zip(ends, (A, B), strict=True)}
    if to == "orbax":
        save_orbax(path, tensors, alpha)
    elif to == "safetensors":
        tensors |= {f"{name}.alpha": np.asarray(number) for name, number in alphas.items()}
        with format_errors():
            write_file(path, tensors, {"format": "pt"})
    else:
        kind = TYPES["LORA"]
        numbers = {name: int(x) if x.is_integer() else x for name, x in alphas.items()}
        config = {"peft_type": kind.name, "inference_mode": True, "fan_in_fan_out": False}
        config |= {"bias": "none", "target_modules": sorted(ranks)}
        config |= with_pattern(kind.rank, ranks, {}) | with_pattern(kind.alpha, numbers, {})
        write(path, config, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()})


def _differences(written: State, updates: list[Update]) -> Iterator[float]:
    """The largest differences between the updates of the source and of the written factors."""
    problems = Problems()
    again, _ = _read_updates(written, problems)
    problems.refuse("The result cannot be read", "Nothing was kept.")
    by_name = {name: update for update in again for name in update.modules}
    for update in tracked(updates, "Verifying"):
        for name, index in update.modules.items():
            # A difference below the precision of float32 is only the order of the sum.
            before, after = (
                part.dense(i, "".join(part.law.torch_axes(i)), np.float64).astype(np.float32)
                for part, i in ((update, index), (by_name.pop(name), {}))
            )
            yield float(np.max(np.abs(after.ravel() - before.ravel()), initial=0))
    if by_name:
        raise PeftFormatError(f"The result has updates that the source lacks: {', '.join(by_name)}")


# --- merged


def _plan(updates: list[Update], base: Mapping[str, Any], problems: Problems) -> dict[str, Update]:
    """The update of each weight of the base, which has the names of the source."""
    names: dict[str, list[str]] = {}
    for name in base:
        for path in {_path(name), re.sub(r"\W", "_", _path(name))}:
            names.setdefault(path, []).append(name)
    plan: dict[str, Update] = {}
    for update in updates:
        with problems.of(show_path(update.key)):
            found = {name for weight in update.weights for name in names.get(_path(weight), ())}
            if len(found) != 1:
                raise MisfitError(
                    f"the base must have one array {' or '.join(dict.fromkeys(update.weights))}, "
                    f"and has {', '.join(sorted(found)) or 'none'}. If its names are other ones, "
                    "convert to PEFT first"
                )
            (name,) = found
            if np.dtype(base[name].dtype).name not in _WIDE:
                raise MisfitError(f"{name} has the dtype {base[name].dtype}, not floating")
            if name in plan:
                raise MisfitError(f"{show_path(plan[name].key)} updates {name}, too")
            plan[name] = update.with_law(name, tuple(base[name].shape))
    return plan


def _path(name: str) -> str:
    return normalise(name).removeprefix("params/")


def _merged(name: str, base: Mapping[str, Any], plan: Mapping[str, Update]) -> np.ndarray:
    """The weight with its update, computed in float32 and rounded once."""
    weight = np.asarray(base[name])
    result, dtype = np.array(weight), np.promote_types(weight.dtype, np.float32)
    for place, total in plan[name].added_to(weight, dtype) if name in plan else ():
        result[place] = total.astype(weight.dtype)
    return result


def _merge_differences(
    written: Mapping[str, Any], base: Mapping[str, Any], plan: Mapping[str, Update]
) -> Iterator[float]:
    """The largest differences between the written sums and the sums in float64."""
    for name in tracked([*base], "Verifying"):
        old, new = np.asarray(base[name]), np.asarray(written[name])
        if name not in plan and old.tobytes() != new.tobytes():
            raise PeftFormatError(f"{name} has no update, and was written with other values")
        for place, total in plan[name].added_to(old, np.float64) if name in plan else ():
            yield float(np.max(np.abs(new[place] - total), initial=0))
