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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jno.lora import PeftFormatError, SelectionError
from jno.lora.extending import show_path
from jno.lora.parts import tracked

from .._errors import MisfitError, Problems
from .._names import PREFIX, Rename, module_name, peft_name
from ..files import write
from ..layouts import Shape
from ..saving import with_pattern
from ..types import TYPES
from .containers import State, flat, open_state, save_orbax, write_like, write_safetensors
from .loading import alpha_of
from .pairs import Pair, normalise, pairs_of, with_core
from .sources import ADAPTER, Index, Law, at, law_from_shapes, without

TARGETS = ("peft", "merged", "safetensors", "orbax")
# The record of an unfinished conversion, which a second call resumes.
_RECORD = "jno-lora-convert.json"
_EMBEDDING = re.compile(r"embeddings?_(lora_)?[abAB]\b")
_ENDS = ("A.weight", "B.weight")
_WIDE = ("float16", "bfloat16", "float32", "float64")


class Update(NamedTuple):
    """One LoRA: its factors, and the law and the scale of the update.

    - `key`, `source`: its name in the source, and the project.
    - `laws`: the possible laws, which differ in the axes of the weight; `weights`: the possible
        names of the weight; `modules`: the indices of the modules in PEFT, by their names.
    - `origin`: of Torch's factors, the update, its law and the index of the module.
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
    origin: Any = None

    def in_torch(self, shapes: Mapping[str, Shape]) -> "Iterator[Update]":
        """The update of each module, with Torch's factors.

        If several laws are possible, the shapes of Torch's weights tell which is right.

        **Raises:** `MisfitError` if they do not.
        """
        for name, index in self.modules.items():
            wanted = shapes.get(_path(f"{name}.weight"))
            found: dict[Any, tuple[Law, np.ndarray, np.ndarray]] = {}
            for law in self.laws:
                A, B = law.matrices(self.A, self.B, index)
                shape = (len(B), *A.shape[1:])
                if wanted in (None, shape[::-1] if self.is_embedding else shape):
                    inputs = law.torch_axes(index)[2]
                    found.setdefault((shape, *map(law.a.index, inputs)), (law, A, B))
            if len(found) != 1:
                raise MisfitError(
                    f"{len(found)} of the layouts {', '.join(map(','.join, self.laws))} of its "
                    f"factors {self.A.shape} and {self.B.shape} fit the weight of {name!r}, "
                    f"{wanted or 'whose shape is unknown: give a base that has it'}"
                )
            ((law, A, B),) = found.values()
            torch, origin = (
                law_from_shapes(A.shape, B.shape, inputs_first=False),
                (self, law, index),
            )
            torch = torch._replace(weight="io") if self.is_embedding else torch
            weights, modules = (f"{name}.weight",), {name: {}}
            yield Update(
                *self[:2], A, B, [torch], self.scale, weights, modules, self.is_embedding, origin
            )

    def dense(self, law: Law, index: Index, axes: str, dtype: Any) -> np.ndarray:
        """The update of one module, with these axes."""
        return np.dtype(dtype).type(self.scale) * law.update(self.A, self.B, index, axes, dtype)

    def added(self, weight: np.ndarray, dtype: Any) -> Iterator[tuple[Any, np.ndarray]]:
        """The parts of a weight of the first law, and each with its update."""
        law = self.laws[0]
        for index in law.indices(law.sizes(self.A, self.B)):
            place, axes = at(law.weight, index), without(law.weight, index)
            yield place, weight[place].astype(dtype) + self.dense(law, index, axes, dtype)


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
    or PEFT: a file (`.safetensors`, `.h5`, `.npz`) or a folder (safetensors, PEFT, Orbax).

    **Arguments:**

    - `to`: `"peft"`, a directory that PEFT, vLLM and `load_peft` read; `"merged"`, the base with
        the updates, in the base's format; `"safetensors"`, one file with an alpha for each module,
        which `load_lora_state` reads; `"orbax"`, Qwix's names in a folder of Orbax.
    - `base`: the weights to merge into, with the names of the source or of the modules in PEFT. By
        default, the source's own. For other targets, the shapes of Torch's weights, which tell the
        inputs of an einsum of Keras.
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
    source, out = Path(source), Path(out)
    if to not in TARGETS:
        raise SelectionError(f"to={to!r}, but the targets are {', '.join(TARGETS)}")
    if out.exists():
        raise PeftFormatError(f"{os.fspath(out)!r} exists. Give a new name.")
    problems, state = Problems(), open_state(source)
    updates, left = _read_updates(state, problems, alpha, rename, prefix, stack_axis)
    problems.refuse("The LoRA cannot be converted", "Nothing was written.")
    arrays = flat(state.tree if base is None else open_state(Path(base)).tree)
    weights = arrays if base is not None else {name: arrays[name] for name in left}
    shapes = {_path(name): tuple(array.shape) for name, array in weights.items()}
    modules: list[Update] = []
    for update in updates:
        with problems.of(show_path(update.key)):
            modules += [update] if to == "merged" else update.in_torch(shapes)
    names = collections.Counter(name for update in modules for name in update.modules)
    problems += [f"{name}: {n} LoRAs are of this module" for name, n in names.items() if n > 1]
    plan: dict[str, Update] = {}
    if to == "merged":
        plan = _plan(updates, weights, shapes, problems)
        left = left if base is not None else []
    else:
        for name in names:
            with problems.of(name):
                peft_name(name, None)
        kohya = [x.key for x in updates if x.source == "kohya" and "_" in x.key and not rename]
        problems += [f"{key}: kohya has underscores for dots: use `rename`" for key in kohya]
    problems.refuse("The LoRA cannot be converted", "Nothing was written.")
    partial = _start(out, [source, base], to, alpha, rename, prefix, stack_axis)
    if to == "merged":
        like = source if base is None else Path(base)
        write_like(like, partial / out.name, weights, lambda name: _merged(name, weights, plan))
    else:
        _write_adapter(to, partial / out.name, modules)
    differences: Iterable[float] = ()
    if verify and to == "merged":
        differences = _merge_differences(flat(open_state(partial / out.name).tree), weights, plan)
    elif verify:
        differences = _differences(open_state(partial / out.name), modules)
    difference = max(differences, default=0.0) if verify else None
    os.replace(partial / out.name, out)
    shutil.rmtree(partial)
    ranks = {
        name: (update.laws[0].sizes(update.A, update.B)["r"], update.scale)
        for update in modules
        for name in update.modules
    }
    return Conversion(sorted({update.source for update in updates}), ranks, left, difference)


def _read_updates(
    state: State,
    problems: Problems,
    alpha: float | None,
    rename: Rename,
    prefix: str,
    stack_axis: int | None,
) -> tuple[list[Update], list[str]]:
    """The updates of a state, and the names of the arrays that are not part of an adapter."""
    for config in state.configs.values():
        start = config.settings.get("init_lora_weights")
        if config.settings.get("peft_type") != "LORA" or start in ("pissa", "olora"):
            raise PeftFormatError(
                f"Only plain LoRA can be converted, not {config.settings.get('peft_type')} with "
                f"init_lora_weights={start!r}. If load_peft reads it, save it again by save_peft."
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
    is_embedding = _EMBEDDING.search(pair.full_names[0]) is not None
    return Update(pair.key, pair.source.name, A, B, laws, scale, weights, modules, is_embedding)


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


def _start(out: Path, paths: Iterable[Any], *arguments: Any) -> Path:
    """The folder of an unfinished conversion, with the files of an earlier call like this one."""
    partial = out.with_name(f".{out.name}.partial")
    times = [(os.fspath(path), os.stat(path).st_mtime_ns) for path in paths if path is not None]
    record, file = repr((times, arguments)), partial / _RECORD
    if not (file.exists() and file.read_text() == record):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        file.write_text(record)
    return partial


def _write_adapter(to: str, path: Path, modules: list[Update]) -> None:
    tensors: dict[str, Any] = {}
    ranks = {name: len(update.A) for update in modules for name in update.modules}
    alphas = {name: ranks[name] * update.scale for update in modules for name in update.modules}
    # Qwix has one alpha for all layers.
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
    for update in modules:
        (name,), A, B = update.modules, update.A, update.B
        if to == "orbax":
            start = f"{name.replace('.', '/')}/{'embedding' if update.is_embedding else 'kernel'}"
            B = B if alphas[name] == alpha else B * np.float32(alphas[name] / alpha)
            tensors[f"{start}_lora_a"] = np.moveaxis(A, (0, 1), (-1, -2))
            tensors[f"{start}_lora_b"] = B.reshape(len(B), -1).T
        else:
            ends = ("embedding_A", "embedding_B") if update.is_embedding else _ENDS
            tensors |= {f"{name}.lora_{end}": x for end, x in zip(ends, (A, B), strict=True)}
    if to == "orbax":
        save_orbax(path, tensors, alpha)
    elif to == "safetensors":
        tensors |= {f"{name}.alpha": np.asarray(number) for name, number in alphas.items()}
        write_safetensors(path, tensors)
    else:
        kind, numbers = (
            TYPES["LORA"],
            {n: int(x) if x.is_integer() else x for n, x in alphas.items()},
        )
        config = {"peft_type": kind.name, "inference_mode": True, "fan_in_fan_out": False}
        config |= {"bias": "none", "target_modules": sorted(ranks)}
        config |= with_pattern(kind.rank, ranks, {}) | with_pattern(kind.alpha, numbers, {})
        write(path, config, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()})


# --- merged


def _plan(
    updates: list[Update], base: Mapping[str, Any], shapes: Mapping[str, Shape], problems: Problems
) -> dict[str, Update]:
    """The update of each weight of the base, which has the names of the source or of PEFT."""
    names: dict[str, list[str]] = {}
    for name in base:
        for path in {_path(name), re.sub(r"\W", "_", _path(name))}:
            names.setdefault(path, []).append(name)
    plan: dict[str, Update] = {}
    for update in updates:
        with problems.of(show_path(update.key)):
            has_own = any(_path(weight) in names for weight in update.weights)
            for part in [update] if has_own else update.in_torch(shapes):
                found = {name for weight in part.weights for name in names.get(_path(weight), ())}
                if len(found) != 1:
                    raise MisfitError(
                        f"the base must have one array {' or '.join(part.weights)}, and has "
                        f"{', '.join(sorted(found)) or 'none'}"
                    )
                (name,) = found
                if name in plan:
                    raise MisfitError(f"{show_path(plan[name].key)} updates {name}, too")
                plan[name] = part._replace(laws=[_fitting_law(part, name, base[name])])
    return plan


def _fitting_law(update: Update, name: str, weight: Any) -> Law:
    laws: dict[Any, Law] = {}
    for law in update.laws:  # some differ in the meaning of axes alone
        axes = tuple((law.a.find(axis), law.b.find(axis)) for axis in law.weight)
        laws.setdefault((law.shape(law.sizes(update.A, update.B)), axes), law)
    fitting = [law for (shape, _), law in laws.items() if shape == tuple(weight.shape)]
    if len(fitting) != 1 or np.dtype(weight.dtype).name not in _WIDE:
        raise MisfitError(
            f"{name} has shape {tuple(weight.shape)} and dtype {weight.dtype}; the update needs "
            f"one of {', '.join(_WIDE)}, and has {len(fitting)} layouts of this shape, of "
            f"{', '.join(str(shape) for shape, _ in laws)}"
        )
    return fitting[0]


def _path(name: str) -> str:
    return normalise(name).removeprefix("params/")


def _merged(name: str, base: Mapping[str, Any], plan: Mapping[str, Update]) -> np.ndarray:
    """The weight with its update, computed in float32 and rounded once."""
    weight = np.asarray(base[name])
    result, dtype = np.array(weight), np.promote_types(weight.dtype, np.float32)
    for place, total in plan[name].added(weight, dtype) if name in plan else ():
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
        for place, total in plan[name].added(old, np.float64) if name in plan else ():
            yield float(np.max(np.abs(new[place] - total), initial=0))


def _differences(written: State, modules: list[Update]) -> Iterator[float]:
    """The largest differences between the updates of the source and of the written factors."""
    problems = Problems()
    again, _ = _read_updates(written, problems, None, None, "", None)
    problems.refuse("The result cannot be read", "Nothing was kept.")
    by_name = {name: update for update in again for name in update.modules}
    for part in tracked(modules, "Verifying"):
        new = by_name.pop(*part.modules)
        # A difference below the precision of float32 is only the order of the sum.
        before, after = (
            update.dense(law, index, "".join(law.torch_axes(index)), np.float64).astype(np.float32)
            for update, law, index in (part.origin, (new, new.laws[0], {}))
        )
        yield float(np.max(np.abs(after.ravel() - before.ravel()), initial=0))
    if by_name:
        raise PeftFormatError(f"The result has updates that the source lacks: {', '.join(by_name)}")
