"""Convert LoRA from the files of one project into files of another, or merge it into a base.

Every array of the source is used, or named in an error or in the report. The adapter is read into
memory, and the base array by array.
"""

import collections
import dataclasses
import itertools
import math
import operator
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
from .sources import ADAPTER, Index, Law, at

TARGETS = ("peft", "merged", "safetensors", "orbax")
# The record of an unfinished conversion, which a second call resumes.
_RECORD = "jno-lora-convert.txt"
_WIDE = ("float16", "bfloat16", "float32", "float64")


class Update(NamedTuple):
    """The LoRA of one module: its factors, and the law and the scale of the update.

    - `key`, `source`: its name in the source, and the project; `module`: its name in PEFT.
    - `laws`: the possible laws, which differ in the axes of the weight; `modules`: how many modules
        the weight has along its axes.
    - `weights`: the possible names of the weight; `part`: the index of the module in it.
    - `is_embedding`: the weight in Torch is a table, with the inputs first.
    """

    key: str
    source: str
    module: str
    part: Index
    modules: Mapping[str, int]
    A: np.ndarray
    B: np.ndarray
    laws: list[Law]
    scale: float
    weights: tuple[str, ...]
    is_embedding: bool

    @property
    def law(self) -> Law:
        return self.laws[0]

    @property
    def rank(self) -> int:
        """The rank in Torch, which has one product for all heads."""
        sizes = self.law.sizes(self.A, self.B)
        return sizes["r"] * sizes.get(self.law.torch_axes()[0], 1)

    def with_law(self, name: str, shape: Shape | None, *, in_torch: bool = False) -> "Update":
        """The update with the law that makes a weight of this shape, or the only law.

        **Raises:** `MisfitError` if no law makes such a weight, or several laws do.
        """
        laws: dict[Any, Law] = {}
        for law in self.laws:  # some differ in the meaning of axes alone
            sizes = {**self.modules, **law.sizes(self.A, self.B)}
            if in_torch:
                form = law.torch_shape(sizes), *map(law.a.index, law.torch_axes()[2])
            else:
                form = law.shape(sizes), *map(f"{law.a},{law.b}".find, law.weight)
            laws[form] = law
        fitting = [law for (weight, *_), law in laws.items() if shape in (None, weight)]
        if not (fitting or in_torch or self.modules):
            fitting = [law for (weight, *_), law in laws.items() if _is_split(weight, shape)]
        if len(fitting) != 1:
            raise MisfitError(
                f"{name} has {f'the shape {shape}' if shape else 'no known shape: give a base'}. "
                f"The factors {self.A.shape} and {self.B.shape} have {len(fitting)} layouts for "
                f"it, of the shapes {', '.join(str(weight) for weight, *_ in laws)}"
            )
        return self._replace(laws=fitting)

    def dense(self, axes: str, dtype: Any) -> np.ndarray:
        """The update with these axes."""
        return self.law.update(self.A, self.B, axes, dtype) * np.dtype(dtype).type(self.scale)

    def added_to(self, weight: np.ndarray, dtype: Any) -> tuple[Any, np.ndarray]:
        """The place of the module in its weight, and the sum there."""
        place = at(self.law.weight, self.part)
        axes = "".join(axis for axis in self.law.weight if axis not in self.part)
        old = weight[place].astype(dtype)
        return place, old + self.dense(axes, dtype).reshape(old.shape)


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
    plan: dict[str, list[Update]] = {}
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
        {update.module: (update.rank, update.scale) for update in updates},
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
            updates += _read_modules(pair, state, alpha, rename, stack_axis)
    if alpha is None and (number := sum(bool(pair.source.alpha_is_rank) for pair in pairs)):
        warn(
            f"openpi does not save its alphas: {number} LoRAs are scaled by 1, as in its variants "
            "gemma_2b_lora and gemma_300m_lora. If your LoRAConfig has another scale, give `alpha`."
        )
    start = prefix.replace(".", "/")
    skipped = [key for key in flat(state.tree) if not normalise(key).startswith(start)]
    return updates, [*(key for key in unknown if key not in strange), *skipped]


def _read_modules(
    pair: Pair, state: State, alpha: float | None, rename: Rename, stack_axis: int | None
) -> list[Update]:
    """The updates of the modules of a pair. **Raises:** `MisfitError`."""
    arrays = {name: np.asarray(array) for name, array in pair.arrays.items()}
    A, B = arrays["A"], arrays["B"]
    if "mid" in arrays:
        A = with_core(A, arrays["mid"])
    source, stack = pair.source, _stack_axis(pair, A.shape, B.shape, stack_axis)
    laws = source.laws_of(pair.law, A.shape, B.shape, stack)
    a, b, _ = laws[0]
    sizes = laws[0].sizes(A, B)
    config, _ = state.config_for(pair.key)
    settings = {} if config is None else config.settings
    numerator, rank = alpha_of(pair, arrays.get("alpha"), state, alpha), sizes["r"]
    divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
    scale = 1.0 if numerator is None else numerator / divisor
    laws = [law.of_module() for law in laws]
    if settings.get("fan_in_fan_out"):
        laws = [law._replace(weight=law.weight[::-1]) for law in laws]
    weights = (*pair.weights, *(module_name(weight, rename) for weight in pair.weights))
    counts = {axis: sizes[axis] for axis in "lc" if axis in sizes}
    updates: list[Update] = []
    for place in np.ndindex(*counts.values()):
        index = dict(zip(counts, place, strict=True))
        module = module_name(source.module_of(pair.law, pair.title, index), rename)
        factors = A[at(a, index)], B[at(b, index)]
        names = pair.key, source.name, module
        updates.append(
            Update(*names, index, counts, *factors, laws, scale, weights, pair.is_embedding)
        )
    return updates


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
    for key, modules in itertools.groupby(updates, lambda update: update.key):
        with problems.of(show_path(key)):
            for update in modules:
                if update.source == "kohya" and "_" in key and not rename:
                    raise MisfitError("kohya has underscores for dots: use `rename`")
                name = f"{peft_name(update.module, None)}.weight"
                shape = shapes.get(_path(name))
                if update.is_embedding and shape is not None:
                    shape = shape[::-1]
                checked.append(update.with_law(name, shape, in_torch=True))
    names = collections.Counter(update.module for update in updates)
    problems += [f"{name}: {n} LoRAs are of this module" for name, n in names.items() if n > 1]
    return checked


def _write_adapter(to: str, path: Path, updates: list[Update]) -> None:
    tensors: dict[str, Any] = {}
    ranks = {update.module: update.rank for update in updates}
    alphas = {update.module: update.rank * update.scale for update in updates}
    # Qwix has one alpha for all layers.
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
    for update in updates:
        name, (A, B) = update.module, update.law.matrices(update.A, update.B)
        if to == "orbax":
            start = f"{name.replace('.', '/')}/{'embedding' if update.is_embedding else 'kernel'}"
            B = B if alphas[name] == alpha else B * np.float32(alphas[name] / alpha)
            tensors[f"{start}_lora_a"] = np.moveaxis(A, (0, 1), (-1, -2))
            tensors[f"{start}_lora_b"] = B.reshape(len(B), -1).T
        else:
            infix, end = ("embedding_", "") if update.is_embedding else ("", ".weight")
            tensors |= {f"{name}.lora_{infix}A{end}": A, f"{name}.lora_{infix}B{end}": B}
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
    by_name = {update.module: update for update in again}
    if by_name.keys() != {update.module for update in updates}:
        raise PeftFormatError(f"The result has LoRAs of other modules: {', '.join(by_name)}")
    for update in tracked(updates, "Verifying"):
        # A difference below the precision of float32 is only the order of the sum.
        before, after = (
            x.dense("".join(x.law.torch_axes()), np.float64).astype(np.float32).ravel()
            for x in (update, by_name[update.module])
        )
        yield float(np.max(np.abs(after - before), initial=0))


# --- merged


def _plan(
    updates: list[Update], base: Mapping[str, Any], problems: Problems
) -> dict[str, list[Update]]:
    """The updates of each weight of the base, which has the names of the source."""
    names: dict[str, list[str]] = {}
    for name in base:
        for path in {_path(name), re.sub(r"\W", "_", _path(name))}:
            names.setdefault(path, []).append(name)
    plan: dict[str, list[Update]] = {}
    for key, modules in itertools.groupby(updates, lambda update: update.key):
        with problems.of(show_path(key)):
            parts = [*modules]
            weights = parts[0].weights
            matches = {name for weight in weights for name in names.get(_path(weight), ())}
            if len(matches) != 1:
                raise MisfitError(
                    f"the base must have one array {' or '.join(dict.fromkeys(weights))}, and has "
                    f"{', '.join(sorted(matches)) or 'none'}. If the base has names of another "
                    "project, convert to PEFT first"
                )
            (name,) = matches
            if np.dtype(base[name].dtype).name not in _WIDE:
                raise MisfitError(f"{name} has the dtype {base[name].dtype}, not floating")
            if name in plan:
                raise MisfitError(f"{show_path(plan[name][0].key)} updates {name}, too")
            plan[name] = [part.with_law(name, tuple(base[name].shape)) for part in parts]
    return plan


def _is_split(weight: Shape, shape: Any) -> bool:
    """Whether Qwix's factors, which have one axis for all inputs, fit a weight of this shape."""
    products = [{*itertools.accumulate(axes, operator.mul)} for axes in (weight, shape)]
    return math.prod(weight) == math.prod(shape) and products[0] <= products[1]


def _path(name: str) -> str:
    return normalise(name).removeprefix("params/")


def _merged(name: str, base: Mapping[str, Any], plan: Mapping[str, list[Update]]) -> np.ndarray:
    """The weight with its update, computed in float32 and rounded once."""
    weight = np.asarray(base[name])
    result, dtype = np.array(weight), np.promote_types(weight.dtype, np.float32)
    for update in plan.get(name, ()):
        place, total = update.added_to(weight, dtype)
        result[place] = total.astype(weight.dtype)
    return result


def _merge_differences(
    written: Mapping[str, Any], base: Mapping[str, Any], plan: Mapping[str, list[Update]]
) -> Iterator[float]:
    """The largest differences between the written sums and the sums in float64."""
    for name in tracked([*base], "Verifying"):
        old, new = np.asarray(base[name]), np.asarray(written[name])
        if name not in plan and old.tobytes() != new.tobytes():
            raise PeftFormatError(f"{name} has no update, and was written with other values")
        for update in plan.get(name, ()):
            place, total = update.added_to(old, np.float64)
            yield float(np.max(np.abs(new[place] - total), initial=0))
