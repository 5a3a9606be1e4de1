"""An ensemble in one safetensors file, with its calibration."""

import dataclasses
import os
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import CheckpointError, LoRAWrapper, SelectionError, unwrap_lora
from jno.lora.extending import (
    Extension,
    adapted_layers,
    bullets,
    load_extended,
    map_adapters,
    path_str,
    save_extended,
    show_array,
    trainable_fields,
)
from jno_lora_conditional import Conditional

from ._calibrated import Calibrated
from ._classes import CalibratedClasses
from ._ensemble import Ensemble, hide_shared
from ._scales import Scales

FilePath = str | os.PathLike[str]
_DISTRIBUTION = "jno-lora-uncertainty"
_FORMAT = 1


def save_ensemble(
    ensemble: Ensemble | Calibrated | CalibratedClasses,
    path: FilePath,
    *,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write an ensemble, or a calibrated ensemble, into one safetensors file without its base.

    `jno-lora inspect` shows the adapters of the first member and the names of all arrays.

    **Arguments:** `metadata`: as for `jno.lora.save_adapters`.

    **Raises:** `CheckpointError` as `save_adapters`.
    """
    if not isinstance(ensemble, Ensemble | Calibrated | CalibratedClasses):
        raise SelectionError(
            f"A {type(ensemble).__name__} cannot be saved. Save its ensemble, and calibrate again."
        )
    bare = ensemble if isinstance(ensemble, Ensemble) else ensemble.ensemble
    content = {"format": _FORMAT, "kind": type(ensemble).__name__, "members": bare.members}
    content["basis"] = _basis_of(bare)
    arrays = _members(bare)
    if isinstance(ensemble, Calibrated):
        content["outputs"] = [scales.path for scales in ensemble.scales]
    if not isinstance(ensemble, Ensemble):
        leaves = jtu.tree_leaves_with_path(eqx.tree_at(lambda c: c.ensemble, ensemble, None))
        arrays |= {path_str(keys): leaf for keys, leaf in leaves}
    reader = "jno_lora_uncertainty.load_ensemble"
    extension = Extension(_DISTRIBUTION, "an ensemble of adapters", reader, content, arrays)
    model = _model_of(bare)
    save_extended(model, path, extension, metadata=metadata, base_values=_plain(bare, model))


def load_ensemble(path: FilePath, ensemble: Ensemble) -> Ensemble | Calibrated | CalibratedClasses:
    """The ensemble of a file, with its calibration if it was saved. Its outputs are the same bits.

    **Arguments:**

    - `path`: of a file that `save_ensemble` wrote.
    - `ensemble`: a new ensemble of the same form, `Ensemble(make, members, key=key)`, which gives
        the base. The file gives all arrays of the adapters, also the frozen ones.

    **Raises:** `CheckpointError` as `jno.lora.load_adapters`; also if the arrays do not fit
    `ensemble`, or if its conditionals have another basis. Warns if the base has other values than
    the base of the file.
    """
    model = _model_of(ensemble)
    loaded, extension = load_extended(unwrap_lora(_plain(ensemble, model)), path, _DISTRIBUTION)
    content, arrays = extension.content, dict(extension.arrays)
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{os.fspath(path)!r} has the format {content.get('format')!r:.100}, and this "
            f"{_DISTRIBUTION} reads {_FORMAT}. Upgrade it: pip install -U {_DISTRIBUTION}"
        )
    expected = _members(ensemble)
    calibration = {name: arrays.pop(name) for name in [*arrays] if not name.startswith("members/")}
    problems = [
        f"{name}: expected {_shown(expected.get(name))}, the file has {_shown(arrays.get(name))}"
        for name in {**expected, **arrays}
        if _shown(expected.get(name)) != _shown(arrays.get(name))
    ]
    from_file = dict(adapted_layers(loaded))
    if (basis := _basis_of(ensemble)) != content["basis"]:
        problems.append(f"the basis: expected {basis}, the file has {content['basis']}")
    try:
        model = map_adapters(lambda path, adapter: _filled(adapter, from_file[path]), model)
    except (KeyError, ValueError):
        problems = problems or ["the adapters: another method, rank, alpha or option"]
    if problems:
        raise CheckpointError(
            f"{os.fspath(path)!r} does not fit this ensemble:\n{bullets(problems)}\nMake the "
            "ensemble with the arguments that the saved one had."
        )
    one_of: dict[int, Array] = {}  # an array that adapters share stays one array
    stacks = [
        jtu.tree_map_with_path(lambda k, leaf: one_of.setdefault(id(leaf), arrays[_name(k)]), tree)
        for tree in (ensemble.trained, ensemble.constants)
    ]
    member = ensemble.member(0)
    member = eqx.tree_at(lambda c: c.model, member, model) if content["basis"] else model
    shared = jax.tree.map(
        lambda old, new: None if old is None else new,
        ensemble.shared,
        hide_shared(member),
        is_leaf=lambda leaf: leaf is None,
    )
    where = lambda e: (e.trained, e.constants, e.shared)  # noqa: E731
    ensemble = eqx.tree_at(where, ensemble, (*stacks, shared))
    if content["kind"] == "Ensemble":
        return ensemble
    if content["kind"] == "CalibratedClasses":
        return CalibratedClasses(ensemble, calibration["temperature"])
    names = [field.name for field in dataclasses.fields(Scales)][1:]
    scales = (
        Scales(path, *(calibration[f"scales/{number}/{name}"] for name in names))
        for number, path in enumerate(content["outputs"])
    )
    counts = calibration["examples"], calibration["unseen"]
    return Calibrated(ensemble, tuple(scales), *counts, calibration.get("nearest"))


def _model_of(ensemble: Ensemble) -> PyTree:
    """The adapted model of the first member."""
    member = ensemble.member(0)
    return member.model if isinstance(member, Conditional) else member


def _plain(ensemble: Ensemble, model: PyTree) -> PyTree:
    """The adapted model, with plain layers where they are known and an adapter changed them."""
    return map_adapters(lambda path, adapter: ensemble.originals.get(path, adapter), model)


def _basis_of(ensemble: Ensemble) -> str | None:
    """The basis of conditionals, whose settings are no arrays."""
    member = ensemble.member(0)
    return " ".join(repr(member.basis).split()) if isinstance(member, Conditional) else None


def _filled(adapter: LoRAWrapper, from_file: LoRAWrapper) -> LoRAWrapper:
    """The adapter of a file, with the settings that a file lacks, such as dropout.

    **Raises:** `ValueError` if its class or a static field, such as the rank, differs.
    """
    filled = eqx.combine(from_file, eqx.filter(adapter, eqx.is_array, inverse=True))
    if jax.tree.structure(filled) != jax.tree.structure(adapter):
        raise ValueError
    # The layer that PiSSA changed keeps its bits if the start is the same.
    if eqx.tree_equal(_start(filled), _start(adapter)):
        filled = eqx.tree_at(lambda a: a.base, filled, adapter.base)
    return filled


def _start(adapter: LoRAWrapper) -> dict[str, PyTree]:
    skipped = {"base", *trainable_fields(type(adapter))}
    return {name: value for name, value in vars(adapter).items() if name not in skipped}


def _members(ensemble: Ensemble) -> dict[str, Array]:
    """The arrays of all members by their names in a file."""
    leaves = jtu.tree_leaves_with_path((ensemble.trained, ensemble.constants))
    return {_name(keys[1:]): jnp.asarray(leaf) for keys, leaf in leaves}


def _name(keys: tuple[object, ...]) -> str:
    return f"members/{path_str(keys)}"


def _shown(array: Array | np.ndarray | None) -> str:
    return "no such array" if array is None else show_array(array)
