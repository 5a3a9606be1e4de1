"""Convert LoRA from the files of one project into files of another, or merge it into a base.

Every array of the source is used, or named in an error or in the report. The adapter is read into
memory, and the base array by array.
"""

import collections
import dataclasses
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jno.lora import PeftFormatError, SelectionError
from jno.lora.extending import show_path, warn
from jno.lora.parts import tracked
from jno_lora_peft.errors import MisfitError, Problems
from jno_lora_peft.files import not_finite, write
from jno_lora_peft.layouts import Shape
from jno_lora_peft.names import HEAD, PREFIX, Rename, compiled, has_rule, module_name, peft_name
from jno_lora_peft.saving import with_pattern
from jno_lora_peft.types.lora import LORA, PURE

from ._load_state import alpha_of
from ._pairs import Pair, normalise, pairs_of, with_core
from ._sources import ADAPTER, Index, Law, at
from ._states import State, flat, open_state, save_orbax, write_like, write_safetensors

TARGETS = ("peft", "merged", "safetensors", "orbax")
# The record of an unfinished conversion, which a second call resumes.
_RECORD = "jno-lora-convert.txt"
_WIDE = ("float16", "bfloat16", "float32", "float64")
# Settings that make more of an adapter than a product of two factors.
_ODD = ("use_dora", "lora_bias", "target_parameters", "alora_invocation_tokens")
Arrays = Mapping[str, Any]


class Update(NamedTuple):
    """The LoRA of one module: its factors, and the law and the scale of the update.

    - `pair`: of the module in the source; `module`: its name in PEFT.
    - `part`: the index of the module in the weight; `modules`: how many modules the weight has
        along its axes; `weights`: the possible names of the weight, by `_path`.
    - `laws`: the possible laws, which differ in the axes of the weight.
    - `is_renamed`: whether `rename` has a rule for the module.
    - `ties`: whether PEFT uses the LoRA of a table in a head, too.
    - `is_transposed`: whether Torch's weight is `(in, out)`, unless its shape says otherwise;
        `None` for layers that are not linear.
    """

    pair: Pair
    module: str
    part: Index
    modules: Mapping[str, int]
    A: np.ndarray
    B: np.ndarray
    laws: list[Law]
    scale: float
    weights: list[str]
    is_renamed: bool
    ties: bool
    is_transposed: bool | None

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
            form = law.torch_shape(sizes) if in_torch else tuple(sizes[x] for x in law.weight)
            axes = law.torch_axes()[2] if in_torch else law.weight
            laws[form, *map(f"{law.a},{law.b}".find, axes)] = law
        step = -1 if in_torch and (self.pair.is_embedding or self.is_transposed) else 1
        fitting = [x for (form, *_), x in laws.items() if shape in (None, form, form[::step])]
        if not (fitting or in_torch or self.modules):
            fitting = [law for (weight, *_), law in laws.items() if _is_split(weight, shape)]
        if len(fitting) != 1 and {law.a for law in fitting} != {"ri"}:
            raise MisfitError(
                f"{name} has {f'the shape {shape}' if shape else 'no known shape: give a base'}. "
                f"{len(fitting)} layouts of its factors fit: {', '.join(str(x) for x, *_ in laws)}"
            )
        return self._replace(laws=fitting[:1])  # a square weight is transposed

    def dense(self, axes: str, dtype: Any) -> np.ndarray:
        """The update with these axes."""
        A, B, scale = (np.asarray(x, dtype) for x in (self.A, self.B, self.scale))
        return np.einsum(f"{self.law.a},{self.law.b}->{axes}", A, B, optimize=True) * scale

    def added_to(self, weight: np.ndarray, dtype: Any) -> tuple[Any, np.ndarray]:
        """The place of the module in its weight, and the sum there."""
        place = at(self.law.weight, self.part)
        axes = "".join(axis for axis in self.law.weight if axis not in self.part)
        old = weight[place].astype(dtype)
        return place, old + self.dense(axes, dtype).reshape(old.shape)


Plan = dict[str, list[Update]]


class _Options(NamedTuple):
    """How a source is read: arguments of `convert_lora`."""

    alpha: float | None = None
    rename: Rename = None
    prefix: str = ""
    stack_axis: int | None = None
    transposed: str | None = None


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of `convert_lora`.

    - `sources`: the projects whose names the arrays have; `modules`: rank and scale of each module.
    - `left`: arrays of the source that are not part of the adapter, and were not written.
    - `difference`: the largest difference between numbers of the updates before and after, or of
        merged weights to the sums in float64, if they were compared.
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
    transposed: str | None = None,
    tied: bool | None = None,
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
    - `transposed`: a regular expression for the names of linear layers with a weight `(in, out)` in
        Torch, such as the Conv1D of GPT-2. PEFT's `fan_in_fan_out` says the same.
    - `tied`: whether a head reads the table of an embedding, whose adapter PEFT uses for lookups
        alone; needed if the base has no `lm_head.weight`, and merged only if `False`.
    - `verify`: read the result, and compare each update in float64.

    `out` must not exist, and appears when it is complete. After a kill, a call with the same
    arguments resumes.

    **Returns:** a `Conversion`.

    **Raises:** `PeftFormatError` that lists the arrays without a use, factors that do not fit or
    hold NaN or infinity, and weights that are missing or ambiguous; also for a merged weight that
    overflows, and a difference beyond rounding. `SelectionError` for an alpha that is missing,
    and for an alpha, `rename`, `stack_axis` or `transposed` that no LoRA uses.
    """
    source, out, problems = Path(source), Path(out), Problems()
    if to not in TARGETS:
        raise SelectionError(f"to={to!r}, but the targets are {', '.join(TARGETS)}")
    if out.exists():
        raise PeftFormatError(f"{os.fspath(out)!r} exists. Give a new name.")
    state, options = open_state(source), _Options(alpha, rename, prefix, stack_axis, transposed)
    updates, left, skipped = _read_updates(state, problems, options)
    arrays, like = flat(state.tree), source if base is None else Path(base)
    kept = [*left, *skipped]
    weights = {name: arrays[name] for name in kept} if base is None else flat(open_state(like).tree)
    by_path = {_path(name): array for name, array in weights.items()}
    plan: Plan = {}
    if to == "merged":
        plan = _plan(updates, weights, tied, problems)
        problems += [
            f"{name}: it is not part of a LoRA, and the base has no equal array. If it was "
            "trained, put it into the base; otherwise, take it out of the source"
            for name in (left if base is not None else ())
            if not np.array_equal(arrays[name], by_path.get(_path(name), ()))
        ]
    else:
        updates = _check_modules(updates, by_path, problems)
        if base is not None and not any(_path(f"{u.module}.weight") in by_path for u in updates):
            problems.append(f"{os.fspath(base)!r} has none of these modules: use `rename`")
    problems.refuse("The LoRA cannot be converted", "Nothing was written.")
    facts = {"rename": "is_renamed", "transposed": "is_transposed", "stack_axis": "modules"}
    for name, fact in facts.items():
        value, is_used = getattr(options, name), any(getattr(x, fact) for x in updates)
        if value not in (None, "", {}) and not is_used:
            raise SelectionError(
                f"{name}={value!r} fits no module like {updates[0].module}. Correct it, or omit it."
            )
    new, difference = _start(out, [source, base], to, tied, options), None
    try:
        if to == "merged":
            write_like(like, new, weights, lambda name: _merged(name, weights, plan))
        else:
            _write_adapter(to, new, updates)
        if verify:
            written = open_state(new)
            merged = _merge_differences(flat(written.tree), weights, plan)
            difference = max(merged if to == "merged" else _differences(written, updates))
    except (PeftFormatError, ImportError):
        shutil.rmtree(new.parent)
        raise
    os.replace(new, out)
    shutil.rmtree(new.parent)
    sources = sorted({update.pair.source.name for update in updates})
    modules = {update.module: (update.rank, update.scale) for update in updates}
    return Conversion(sources, modules, [] if plan and base is None else kept, difference)


def _read_updates(
    state: State, problems: Problems, options: _Options
) -> tuple[list[Update], list[str], list[str]]:
    """The updates of a state, and the names of other arrays: with the prefix, and without it."""
    for config in state.configs.values():
        start = config.settings.get("init_lora_weights")
        odd = {name: value for name in _ODD if (value := config.settings.get(name))}
        if config.type.name != "LORA" or odd or start not in PURE:
            raise PeftFormatError(
                f"Only plain LoRA can be converted, not {config.type.name} with "
                f"{odd | {'init_lora_weights': start}}. If load_peft reads it, use save_peft."
            )
    pairs, lines, unknown, skipped = pairs_of(state.tree, options.prefix)
    # A file with a configuration has nothing but an adapter.
    strange = [key for key in unknown if state.configs or ADAPTER.search(normalise(key))]
    problems += [*lines, *(f"{key}: no array of LoRA has such a name" for key in strange)]
    if not (pairs or problems):
        raise PeftFormatError("The source holds no arrays of LoRA, or none with this prefix.")
    kinds = {"none" if state.config_for(x.key)[0] else x.source.alpha for x in pairs}
    if options.alpha is not None and kinds == {"none"}:
        raise SelectionError(f"alpha={options.alpha!r}, but the scales of all LoRAs are known")
    updates: list[Update] = []
    for pair in pairs:
        with problems.of(show_path(pair.key)):
            updates += _read_modules(pair, state, options)
    if options.alpha is None and (number := sum(bool(x.source.alpha_is_rank) for x in pairs)):
        warn(
            f"openpi does not save its alphas: {number} LoRAs are scaled by 1, as in its variants "
            "gemma_2b_lora and gemma_300m_lora. If your LoRAConfig has another scale, give `alpha`."
        )
    return updates, [key for key in unknown if key not in strange], skipped


def _read_modules(pair: Pair, state: State, options: _Options) -> list[Update]:
    """The updates of the modules of a pair. **Raises:** `MisfitError`."""
    alpha, rename, _, stack_axis, transposed = options
    arrays = {name: np.asarray(array) for name, array in pair.arrays.items()}
    if lines := not_finite(arrays):
        raise MisfitError(*(f"NaN or infinity in its array {line}" for line in lines))
    B = arrays["B"]
    A = with_core(arrays["A"], arrays["mid"]) if "mid" in arrays else arrays["A"]
    source, stack = pair.source, _stack_axis(pair, A.shape, B.shape, stack_axis)
    laws = source.laws_of(pair.law, A.shape, B.shape, stack)
    a, b, _ = laws[0]
    sizes = laws[0].sizes(A, B)
    (config, name), rank = state.config_for(pair.key), sizes["r"]
    settings = {} if config is None else config.settings
    if config is not None and config.rank(name) != rank:
        raise MisfitError(f"its rank is {rank}, but {config.rank(name)} in its configuration")
    numerator = alpha_of(pair, arrays.get("alpha"), state, alpha)
    divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
    scale = 1.0 if numerator is None else numerator / divisor
    if not scale:
        raise MisfitError("its alpha is 0, so that it changes nothing")
    laws = [law.of_module() for law in laws]
    is_linear = not (pair.is_embedding or "x" in a)
    pattern = transposed or ("" if settings.get("fan_in_fan_out") else "(?!)")
    names = [x for x in pair.names if source.name == "diffusers" or pair.key.endswith(x)]
    modules = [module_name(x, rename) for x in names]
    weights = [_path(x.replace("{module}", module)) for module in modules for x in pair.weights]
    ties = config is not None and config.ties_adapter_of(name)
    counts = {axis: sizes[axis] for axis in "lc" if axis in sizes}
    updates: list[Update] = []
    for place in np.ndindex(*counts.values()):
        index = dict(zip(counts, place, strict=True))
        title = source.module_of(pair.law, pair.title, index)
        module, renamed = module_name(title, rename), has_rule((title, *names), rename)
        flag = bool(compiled(pattern, "transposed").search(module)) if is_linear else None
        flipped = [x._replace(weight="io") for x in laws if flag and x.weight == "oi"]
        factors = A[at(a, index)], B[at(b, index)], [*flipped, *laws], scale
        updates.append(Update(pair, module, index, counts, *factors, weights, renamed, ties, flag))
    return updates


def _stack_axis(pair: Pair, A: Shape, B: Shape, given: int | None) -> int | None:
    """The axis of Qwix's factors that runs over layers. **Raises:** `MisfitError` if it is open."""
    if pair.source.name not in ("Qwix", "MaxText") or min(len(A), len(B)) < 3:
        return None
    axes = [x for x in (0, 1) if given in (None, x) and A[x] == B[x] and B[1 - x] == A[-1]]
    if len(axes) > 1:
        raise MisfitError(f"axis 0 or axis 1 of {A} and {B} may run over layers: say stack_axis")
    return axes[0] if axes else None


def _start(out: Path, paths: list[Any], *arguments: Any) -> Path:
    """The result's place in a folder, with the files of an earlier call like this one."""
    partial = out.with_name(f".{out.name}.partial")
    roots = [Path(path).resolve() for path in paths if path is not None]
    files = [file for root in roots for file in (root, *sorted(root.rglob("*"))) if file.is_file()]
    facts = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    record, file = repr((facts, arguments)), partial / _RECORD
    if not (file.exists() and file.read_text() == record):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        file.write_text(record)
    return partial / out.name


# --- adapters


def _check_modules(updates: list[Update], base: Arrays, problems: Problems) -> list[Update]:
    """The updates with laws that fit Torch's weights; each module must have a name and one LoRA.

    - `base`: arrays by `_path`.
    """
    checked: list[Update] = []
    for key, modules in itertools.groupby(updates, lambda update: update.pair.key):
        with problems.of(show_path(key)):
            for part in modules:
                if "_" in part.module and part.pair.source.name == "kohya" and not part.is_renamed:
                    raise MisfitError("kohya has underscores for dots: `rename` needs a rule")
                name = f"{peft_name(part.module, None)}.weight"
                shape = getattr(base.get(_path(name)), "shape", None)
                checked.append(part.with_law(name, shape, in_torch=True))
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
        is_table = update.pair.is_embedding
        if to == "orbax":
            start = f"{name.replace('.', '/')}/{'embedding' if is_table else 'kernel'}"
            B = B if alphas[name] == alpha else B * np.float32(alphas[name] / alpha)
            tensors[f"{start}_lora_a"] = np.moveaxis(A, (0, 1), (-1, -2))
            tensors[f"{start}_lora_b"] = B.reshape(len(B), -1).T
        else:
            infix, end = ("embedding_", "") if is_table else ("", ".weight")
            tensors |= {f"{name}.lora_{infix}A{end}": A, f"{name}.lora_{infix}B{end}": B}
    if to == "orbax":
        save_orbax(path, tensors, alpha)
    elif to == "safetensors":
        tensors |= {f"{name}.alpha": np.asarray(number) for name, number in alphas.items()}
        write_safetensors(path, tensors, tensors.__getitem__)
    else:
        numbers = {name: int(x) if x.is_integer() else x for name, x in alphas.items()}
        flags = {update.is_transposed for update in updates} - {None}
        if len(flags) > 1:
            raise PeftFormatError("PEFT has one fan_in_fan_out for all linear layers.")
        config = {"peft_type": "LORA", "inference_mode": True, "fan_in_fan_out": True in flags}
        config |= {"bias": "none", "target_modules": sorted(ranks)}
        config |= with_pattern(LORA.rank, ranks, {}) | with_pattern(LORA.alpha, numbers, {})
        write(path, config, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()})


def _differences(written: State, updates: list[Update]) -> Iterator[float]:
    """The largest differences between the updates of the source and of the written factors."""
    again, *_ = _read_updates(written, problems := Problems(), _Options())
    problems.refuse("The result cannot be read", "Nothing was kept.")
    by_name = {update.module: update for update in again}
    for update in tracked(updates, "Verifying"):
        # A difference below the precision of float32 is only the order of the sum.
        before, after = (
            x.dense("".join(x.law.torch_axes()), np.float64).astype(np.float32).ravel()
            for x in (update, by_name[update.module])
        )
        yield _difference(update.module, after, before, before)


def _difference(name: str, new: np.ndarray, wanted: np.ndarray, update: np.ndarray) -> float:
    """The largest difference. **Raises:** `PeftFormatError` if it is more than rounding."""
    info, difference = jnp.finfo(new.dtype), np.abs(new - wanted)
    limit = float(info.eps) * np.maximum(np.abs(wanted), float(info.tiny))
    # Sums of many products are less exact than float32.
    if not (difference <= limit + 1e-5 * np.max(np.abs(update), initial=0)).all():
        raise PeftFormatError(f"{name} was written with numbers off by {difference.max():g}")
    return float(np.max(difference, initial=0))


# --- merged


def _plan(updates: list[Update], base: Arrays, tied: bool | None, problems: Problems) -> Plan:
    """The updates of each weight of the base, which has the names of the source."""
    names: dict[str, list[str]] = {}
    for name in base:
        for path in {_path(name), re.sub(r"\W", "_", _path(name))}:
            names.setdefault(path, []).append(name)
    tables = [(x.A, x.B, x.scale) for x in updates if x.pair.is_embedding and x.ties]
    has_head = any(path.endswith(f"{HEAD}/weight") for path in names)
    plan: Plan = {}
    for key, modules in itertools.groupby(updates, lambda update: update.pair.key):
        with problems.of(show_path(key)):
            first, *_ = parts = [*modules]
            is_lookup = first.pair.is_embedding and first.pair.source.name == "PEFT"
            if is_lookup and not (first.ties or has_head or tied is False):
                raise MisfitError(
                    "it changes lookups alone, and a head may read the table. Give a base with its "
                    "lm_head.weight; or, if no head reads the table, say tied=False or --untied"
                )
            matches = {name for weight in first.weights for name in names.get(weight, ())}
            head = first.B.T, first.A.T, first.scale
            if not matches and any(all(map(np.array_equal, head, x)) for x in tables):
                continue  # PEFT tied it to a table, which is merged
            if len(matches) != 1:
                raise MisfitError(
                    f"the base must have one array {' or '.join(dict.fromkeys(first.weights))}, "
                    f"and has {', '.join(sorted(matches)) or 'none'}. Give its weights by base= or "
                    "--base. If names start with, say, lora_unet_, give `prefix`. If the base has "
                    "names of another project, convert to PEFT first"
                )
            (name,) = matches
            if np.dtype(base[name].dtype).name not in _WIDE:
                raise MisfitError(f"{name} has the dtype {base[name].dtype}, not floating")
            if name in plan:
                raise MisfitError(f"{show_path(plan[name][0].pair.key)} updates {name}, too")
            plan[name] = [part.with_law(name, tuple(base[name].shape)) for part in parts]
    return plan


def _is_split(weight: Shape, shape: Any) -> bool:
    """Whether Qwix's factors, which have one axis for all inputs, fit a weight of this shape."""
    products = [{*itertools.accumulate(axes, int.__mul__)} for axes in (weight, shape)]
    return math.prod(weight) == math.prod(shape) and products[0] <= products[1]


def _path(name: str) -> str:
    # EasyDeL puts a `base_module` into an adapter.
    return re.sub(r"^/?(params/)?", "", normalise(name).replace("/base_module/", "/"))


def _merged(name: str, base: Arrays, plan: Plan) -> np.ndarray:
    """The weight with its update, computed in float32 and rounded once."""
    weight = np.asarray(base[name])
    result, dtype = np.array(weight), np.promote_types(weight.dtype, np.float32)
    for update in plan.get(name, ()):
        place, total = update.added_to(weight, dtype)
        result[place] = total.astype(weight.dtype)
    if name in plan and not np.isfinite(result).all():
        raise PeftFormatError(f"{name} has NaN or infinity in {weight.dtype} when it is merged.")
    return result


def _merge_differences(written: Arrays, base: Arrays, plan: Plan) -> Iterator[float]:
    """The largest differences between the written sums and the sums in float64."""
    for name in tracked([*base], "Verifying"):
        old, new = np.asarray(base[name]), np.asarray(written[name])
        if name not in plan and old.tobytes() != new.tobytes():
            raise PeftFormatError(f"{name} has no update, and was written with other values")
        for update in plan.get(name, ()):
            place, total = update.added_to(old, np.float64)
            yield _difference(name, new[place], total, total - old[place])
