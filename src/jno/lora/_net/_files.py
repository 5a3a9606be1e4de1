"""A net's adapters, to and from a file."""

import jax
import jax.tree_util as jtu

from .._checkpoint import Classes, FilePath, load, save
from .._paths import bullets, path_str, show_path
from .._registry import Registry
from .._sets import extract_adapters
from .._trainability import lora_trainable_filter
from ._originals import originals_of
from ._state import NetState


def write_adapters(state: NetState, path: FilePath, registry: Registry) -> None:
    """Write the adapters of a model.

    **Raises:** `CheckpointError` if there are none, or the file cannot be written.
    """
    save(extract_adapters(state.module), path, registry)


def left_out_of_a_file(state: NetState) -> str | None:
    """What to warn of after saving the adapters: what else trains, and is in no file."""
    adapters = lora_trainable_filter(state.module)
    others = jax.tree.map(lambda trains, own: trains and not own, state.trainable, adapters)
    left_out = [path_str(keys) for keys, other in jtu.tree_leaves_with_path(others) if other]
    if not left_out:
        return None
    return (
        f"The adapters were saved. {len(left_out)} other arrays train too, and are in no "
        f"file:\n{bullets(map(show_path, left_out), 5)}\n"
        "`net.freeze().lora(...)` trains adapters only; to keep the others as well, save "
        "`net.partition()[0]` with `eqx.tree_serialise_leaves`."
    )


def with_adapters_of(
    state: NetState, path: FilePath, *, strict: bool, wrappers: Classes, registry: Registry
) -> tuple[NetState, tuple[str, ...]]:
    """The state with the adapters of a file around their layers, and what to warn of.

    **Raises:** `CheckpointError` as `load` does.
    """
    # Around the layers themselves, where an adapter in the way keeps them in another form.
    plain = state.plain().module
    loaded = load(
        state.module, path, strict=strict, wrappers=wrappers, registry=registry, plain=plain
    )
    if not loaded.adapters:  # none of them fits
        return state, loaded.warnings
    originals = originals_of(plain, loaded.put_into(plain))
    adapted = loaded.put_into(state.module)
    return state.readapted(adapted, originals, loaded.adapters), loaded.warnings
