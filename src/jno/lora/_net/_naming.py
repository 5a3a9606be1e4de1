"""The methods of `Net` for several sets of adapters, by name."""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

from .._errors import SelectionError
from .._paths import nearest
from .._sets import AdapterSet, check_fit, extract_adapters
from ._holder import Holder
from ._kept import Kept

N = TypeVar("N", bound="NamesAdapters")


class NamesAdapters(Holder):
    """Holds several sets of adapters by name. One of them may be in the model. No fields."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they were added."""
        return tuple(self._named)

    @property
    def active(self) -> str | None:
        """The name of the adapters in the model. `None` without adapters, or without a name."""
        return None if self._disabled else self._active_name()

    def adapter(self, name: str) -> AdapterSet:
        """The adapters of that name with their current values, to save, scale or combine them.

        **Raises:** `SelectionError` if there is no such name.
        """
        kept = self._named[self._known(name)]
        if kept is not None:
            return kept.adapters
        return extract_adapters((self._disabled or self._now).module)

    def add_adapter(self: N, name: str, adapters: AdapterSet | None = None) -> N:
        """Name the adapters of the model, or keep a set of adapters under a name.

        **Arguments:**

        - `name`: a new one.
        - `adapters`: a set (`extract_adapters`, `combine`). It is kept, and `activate` puts it into
            the model. Without it, the adapters that `lora` made get the name, and are active.

        **Raises:** `SelectionError` if the name is taken, if the model's adapters have a name or
        there are none, if `adapters` is not a set, or does not fit the model (listing every
        misfit).
        """
        self._refuse_disabled("add_adapter")
        if not isinstance(name, str):
            raise SelectionError(f"The name of adapters must be a string, but is {name!r}.")
        if name in self._named:
            raise SelectionError(
                f"There are adapters called {name!r} already. Choose another name, or call "
                f"net.delete_adapter({name!r}) first."
            )
        if adapters is None:
            self._refuse_naming(name)
        else:
            check_fit(self._now.plain().module, adapters, f"The adapters to be called {name!r}")
        self._named = {**self._named, name: None if adapters is None else Kept(adapters)}
        return self

    def activate(self: N, name: str) -> N:
        """Put the adapters of that name in the place of those that the model carries.

        The latter are kept under their name with their current values, together with which of their
        arrays, and of their layers' arrays, were trainable. Adapters that were active before train
        as they did then, even if `freeze` was called since. Adapters that become active for the
        first time train as after `lora`. A `lora` call adds to the active adapters.

        **Raises:** `SelectionError` if there is no such name, if the model carries adapters without
        a name (which would be lost), or if a mask is pending.
        """
        self._refuse_mask("activate")
        kept = self._named[self._known(name)]
        if kept is None:
            return self._become(self._now)
        return self._become(kept.put_into(self._now.plain()), {**self._put_away(), name: None})

    def deactivate(self: N) -> N:
        """Take the adapters out of the model, and keep them under their name.

        The layers they wrapped stay as frozen as they were in them (see `unfreeze`).

        **Raises:** `SelectionError` if the model carries adapters without a name (which would be
        lost), or if a mask is pending.
        """
        self._refuse_mask("deactivate")
        return self._become(self._now.plain(), self._put_away())

    def delete_adapter(self: N, name: str) -> N:
        """Drop the adapters of that name, out of the model too if they are active.

        **Raises:** `SelectionError` if there is no such name, or if a mask is pending.
        """
        self._refuse_mask("delete_adapter")
        is_active = self._named[self._known(name)] is None
        return self._become(self._now.plain() if is_active else self._now, self._without(name))

    @contextlib.contextmanager
    def disabled(self: N) -> Iterator[N]:
        """A block in which the net is the model without adapters, and cannot be changed.

        ```python
        with net.disabled():
            reference = net(x)
        ```

        At its end, or when it raises, everything is as it was before. In the block, the layers are
        bit for bit those that were adapted, unless they were trained themselves.
        """
        if self._disabled is not None:
            yield self
            return
        state, mask = self._now, self._mask
        plain = state.plain()
        try:
            self._disabled = state
            yield self._become(plain)
        finally:
            # There is no call here, see `_become`.
            self._now, self._disabled, self._mask = state, None, mask

    def _active_name(self) -> str | None:
        return next((name for name, kept in self._named.items() if kept is None), None)

    def _known(self, name: str) -> str:
        if name in self._named:
            return name
        near = nearest(str(name), self._named, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; no adapters have a name."
        raise SelectionError(f"No adapters are called {name!r}{hint}")

    def _refuse_naming(self, name: str) -> None:
        """**Raises:** `SelectionError` if the model carries no adapters, or they have a name."""
        if not self._now.is_adapted:
            raise SelectionError(
                f"The model carries no adapters that could be called {name!r}. Call "
                "net.lora(...) first, or give an AdapterSet."
            )
        active = self._active_name()
        if active is not None:
            raise SelectionError(
                f"The model's adapters are called {active!r} already. To add a copy, give it: "
                f"net.add_adapter({name!r}, net.adapter({active!r}))"
            )

    def _put_away(self) -> dict[str, Kept | None]:
        """The named adapters once those in the model are kept out of it."""
        active = self._active_name()
        if active is not None:
            return {**self._named, active: Kept.of(self._now)}
        if self._now.is_adapted:
            raise SelectionError(
                "The model carries adapters without a name, which would be lost. Call "
                "net.add_adapter(name) to keep them, or net.unwrap() to drop them."
            )
        return {**self._named}

    def _without(self, name: str | None) -> dict[str, Kept | None]:
        return {other: kept for other, kept in self._named.items() if other != name}
