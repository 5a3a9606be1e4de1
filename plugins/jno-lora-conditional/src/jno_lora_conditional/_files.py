"""A conditional in one safetensors file: adapters, directions and basis."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import CheckpointError, LoRAWrapper, Registry, SelectionError
from jno.lora.extending import (
    Extension,
    adapted_layers,
    bullets,
    expect_model,
    load_extended,
    path_str,
    save_extended,
    show_path,
)

from ._bases import Basis
from ._basis_files import MalformedError, arrays_in, check_forms, described, filled, template_of
from ._conditional import Conditional, size_of
from ._film import Film, film_of
from ._moving import moving_fields, starting_at_zero, trained_fields

FilePath = str | os.PathLike[str]
Classes = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None

_DISTRIBUTION = "jno-lora-conditional"
_FORMAT = 1


def save_conditional(
    conditional: Conditional,
    path: FilePath,
    *,
    metadata: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    base_values: bool | PyTree = True,
) -> None:
    """Write the adapters, their directions and the basis into one safetensors file.

    The file does not contain the pretrained model. At any time, `path` is the whole old file or the
    whole new file. `jno-lora inspect` shows the file.

    **Arguments:**

    - `conditional`: the whole conditional, not a half that `partition` returned.
    - `path`: of the file, usually `NAME.safetensors`. Its directory must exist.
    - `metadata`, `registry`, `base_values`: as for `jno.lora.save_adapters`. Adapters that changed
        their layer (PiSSA) get a hash only from a model given as `base_values`.

    **Raises:** `CheckpointError` as `save_adapters`; also if the settings of the basis are too
    large to be read again.
    """
    for layer_path, adapter in adapted_layers(conditional.model):
        _refuse_half(adapter, conditional.directions.get(layer_path))
    with _errors_of(path, "written"):
        directions = conditional.directions
        size = jax.tree.leaves(directions)[0].shape[0]
        content = {
            "format": _FORMAT,
            "size": size,
            "basis": described(conditional.basis),
            "moving": {layer_path: [*fields] for layer_path, fields in directions.items()},
            "film": bool(conditional.film),
        }
        arrays = {f"basis/{name}": leaf for name, leaf in arrays_in(conditional.basis).items()}
        arrays |= _named(directions, conditional.film)
    reader = "jno_lora_conditional.load_conditional"
    extension = Extension(_DISTRIBUTION, "conditional adapters", reader, content, arrays)
    save_extended(
        conditional.model,
        path,
        extension,
        registry=registry,
        base_values=base_values,
        metadata=metadata,
    )


def load_conditional(
    path: FilePath,
    model: PyTree,
    *,
    basis: Basis | None = None,
    strict: bool | Literal["values"] = True,
    wrappers: Classes = (),
    registry: Registry | None = None,
) -> Conditional:
    """The conditional of a file, around the layers of the pretrained model.

    Its outputs are bit for bit the outputs of the saved conditional.

    **Arguments:**

    - `path`: of a file that `save_conditional` wrote.
    - `model`: the pretrained model, without adapters.
    - `basis`: an instance of the same structure, for a `Function` or your own class, because a file
        cannot store them. Its arrays are filled from the file; everything else is used as it is.
    - `strict`: with `"values"`, the layers must have the values that the adapters were made for.
        By default, other values are a `JnoLoraWarning`.
    - `wrappers`, `registry`: as for `jno.lora.load_adapters`.

    **Raises:** `CheckpointError`, which names the file, as `load_adapters`; also if the directions
    or the basis are damaged, or if `basis` is missing or does not fit.
    """
    expect_model(model, "load_conditional")
    if strict is not True and strict != "values":
        raise SelectionError(
            f"`strict` must be True or 'values', but is {strict!r}: a part of a conditional is not "
            "a conditional."
        )
    loaded, extension = load_extended(
        model, path, _DISTRIBUTION, strict=strict, wrappers=wrappers, registry=registry
    )
    content = extension.content
    with _errors_of(path, "used"):
        if content["format"] != _FORMAT:
            raise MalformedError(
                f"its format is {content['format']!r:.100}, and this jno-lora-conditional reads "
                f"{_FORMAT}. Upgrade it with\n    pip install -U jno-lora-conditional\n"
            )
        arrays = dict(extension.arrays)
        of_basis = {
            name.removeprefix("basis/"): arrays.pop(name)
            for name in extension.arrays
            if name.startswith("basis/")
        }
        whole_basis = filled(template_of(content["basis"], basis), of_basis)
        if (size := size_of(whole_basis)) != content["size"]:
            shapes = f"values of shape [{size}], its directions [{content['size']}]"
            raise MalformedError(f"its basis has {shapes}")
        film = film_of(loaded, content["size"]) if content.get("film") else {}
        forms = _forms(loaded, content["moving"], content["size"]), film
        expected = _named(*forms)
        check_forms(expected, arrays, "directions")
        names = jax.tree.unflatten(jax.tree.structure(forms), list(expected))
        directions, film = jax.tree.map(arrays.__getitem__, names)
        _check_start(loaded, model, directions)
    return _assembled(loaded, directions, film, whole_basis)


def _assembled(
    model: PyTree, directions: dict[str, dict[str, Any]], film: dict[str, Film], basis: Basis
) -> Conditional:
    # The constructor would make new directions, and merge each layer to find the moving fields.
    conditional = object.__new__(Conditional)
    moving = {
        path: tuple(name for name in trained_fields(adapter) if name in directions[path])
        for path, adapter in adapted_layers(model)
    }
    values = {"model": model, "directions": directions, "film": film, "basis": basis}
    for name, value in {**values, "from_zero": starting_at_zero(model, moving)}.items():
        object.__setattr__(conditional, name, value)
    return conditional


def _check_start(model: PyTree, plain: PyTree, directions: Mapping[str, Any]) -> None:
    """**Raises:** `MalformedError` unless the start of the adapters is the plain model."""
    adapters = list(adapted_layers(model))
    declared = {type(a).__name__: tuple(directions[p]) for p, a in adapters if not a.mergeable}
    try:
        moving = moving_fields(model, plain, declared, exact=False)
    except SelectionError as err:
        raise MalformedError(f"its adapters do not start as the model: {err}") from err
    if still := {path for path in moving if set(moving[path]) - directions[path].keys()}:
        raise MalformedError(
            f"fields that change {', '.join(map(show_path, sorted(still)))} do not move"
        )


def _forms(model: PyTree, moving: Any, size: int) -> dict[str, dict[str, Any]]:
    """The shapes of the directions of the fields that move. **Raises:** `MalformedError`."""
    adapters = dict(adapted_layers(model))
    lines: list[str] = []
    for path in {**adapters, **moving}:
        fields = moving.get(path, [])
        trained = trained_fields(adapters[path]) if path in adapters else ()
        if not fields or not set(trained).issuperset(fields):
            lines.append(
                f"{show_path(path)}: {fields!r:.100} must be some of the trained fields "
                f"{', '.join(trained) or '(no adapter)'}"
            )
    if lines:
        raise MalformedError(
            f"its moving fields are not fields of its adapters:\n{bullets(lines)}\nGive the "
            "pretrained model, without adapters"
        )

    def direction(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype)

    return {
        path: {name: jax.tree.map(direction, getattr(adapters[path], name)) for name in fields}
        for path, fields in moving.items()
    }


def _named(directions: Mapping[str, Any], film: Mapping[str, Film]) -> dict[str, Any]:
    """The arrays by their names in a file, in the order of the leaves of `(directions, film)`."""
    arrays: dict[str, Any] = {}
    for keys, leaf in jtu.tree_leaves_with_path((dict(directions), dict(film))):
        kind, path, field, *inner = keys
        name = f"{('directions', 'film')[kind.idx]}/{path.key}:{path_str((field,))}"
        name += f"/{path_str(tuple(inner))}" if inner else ""
        arrays[name] = leaf
    return arrays


def _refuse_half(adapter: LoRAWrapper, directions: Any) -> None:
    is_array = lambda x: eqx.is_array(x) or isinstance(x, np.ndarray)  # noqa: E731
    arrays = [eqx.filter(tree, is_array) for tree in (adapter.base, directions)]
    if not all(map(jax.tree.leaves, arrays)):
        raise CheckpointError(
            "This is one half of a conditional, as conditional.partition() returns it. Call "
            "save_conditional(conditional.update(trainable), path)."
        )


@contextlib.contextmanager
def _errors_of(path: FilePath, done: str) -> Iterator[None]:
    try:
        yield
    except MalformedError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be {done}: {err}.") from err
    except Exception as err:  # a damaged description, or a basis of the user
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be {done}: its basis does not fit, or its description is "
            f"damaged: {type(err).__name__}: {err}."
        ) from err
