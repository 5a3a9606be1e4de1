"""The methods of `Net` that write adapters to a file and read them."""

from typing import TypeVar

import jax
import jax.tree_util as jtu

from .._checkpoint import Classes, FilePath, load, save
from .._errors import warn
from .._paths import bullets, path_str, show_path
from .._registry import Registry
from .._sets import extract_adapters, put_in
from .._trainability import lora_trainable_filter
from ._holder import Holder
from ._originals import originals_of
from ._state import NetState

N = TypeVar("N", bound="SavesAdapters")


class SavesAdapters(Holder):
    """Writes the adapters of its model to a file, and reads them. No fields."""

    def save_adapters(self: N, path: FilePath, *, registry: Registry | None = None) -> N:
        """Write the model's adapters into one safetensors file. See `jno.lora.save_adapters`.

        The file does not hold adapters that are kept under a name:
        `save_adapters(net.adapter(name), path)` writes those. Warns if arrays outside the adapters
        train too, since the file does not hold them either.

        **Arguments:**

        - `registry`: where the plugins of the classes are looked up, instead of in that of the net.

        **Raises:** `CheckpointError` if there are no adapters, or the file cannot be written.
        """
        state = self._disabled or self._now
        save(extract_adapters(state.module), path, self._registry if registry is None else registry)
        left_out = _trained_outside(state)
        if left_out:
            warn(
                f"The adapters were saved. {len(left_out)} other arrays train too, and are in no "
                f"file:\n{bullets(map(show_path, left_out), 5)}\n"
                "`net.freeze().lora(...)` trains adapters only; to keep the others as well, save "
                "`net.partition()[0]` with `eqx.tree_serialise_leaves`."
            )
        return self

    def load_adapters(
        self: N,
        path: FilePath,
        *,
        strict: bool = True,
        wrappers: Classes = (),
        registry: Registry | None = None,
    ) -> N:
        """Put the adapters of a file around their layers. See `jno.lora.load_adapters`.

        Afterwards the loaded adapters train, the layers they wrap do not, and everything else is
        as it was. A loaded adapter replaces the one that its layer carries; others stay. If the
        net's adapters have a name, the loaded ones join them; to keep them apart, give
        `add_adapter` the set that `read_adapters` returns.

        **Arguments:**

        - `strict`: whether all must fit; if not, those that do are loaded, with a warning.
        - `wrappers`: the classes of adapters that no plugin provides.
        - `registry`: where the other classes are looked up, instead of in that of the net.

        **Raises:** `CheckpointError` if the file is damaged, a plugin is missing, something does
        not fit, or the net carries an adapter around a layer of the file's, or in it;
        `SelectionError` if a mask is pending, or two of `wrappers` have one name; `WrapperError` if
        one of them is not an adapter class.
        """
        self._refuse_mask("load_adapters")
        state = self._now
        # Built around the plain layers: an adapter in the way may keep its layer changed (PiSSA).
        plain = state.plain().module
        loaded = load(
            state.module,
            path,
            strict=strict,
            wrappers=wrappers,
            registry=self._registry if registry is None else registry,
            plain=plain,
        )
        if loaded:
            originals = originals_of(plain, put_in(plain, loaded, drop_others=False))
            adapted = put_in(state.module, loaded, drop_others=False)
            state = state.readapted(adapted, originals, loaded)
        return self._become(state)


def _trained_outside(state: NetState) -> list[str]:
    """The paths of the arrays that train and belong to no adapter."""
    adapters = lora_trainable_filter(state.module)
    others = jax.tree.map(lambda trains, own: trains and not own, state.trainable, adapters)
    return [path_str(keys) for keys, other in jtu.tree_leaves_with_path(others) if other]
