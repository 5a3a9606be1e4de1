"""Switch jNO to the adapters of `jno.lora`, or back to its own adapters."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from jno.lora import AdapterSet, JnoLoraError, SelectionError

from ._functions import adapters_merged_into
from ._installs import describe_jno
from ._replacement import Replacement, forbid_lora

_current: Replacement | None = None
_refusal: str | None = None  # set by an import that failed: why this jNO cannot use the adapters


def enable() -> None:
    """Make jNO use the adapters of `jno.lora`. A second call has no effect.

    jNO's `net.lora` then takes names and variants, `options=` and `"auto"`, and its training loop,
    filters, logs and merge treat every adapter alike.

    **Raises:** `JnoLoraError` if jNO is not installed, or if this version of jNO is too different;
    the message names the version and the differences. In that case, nothing changes.
    """
    global _current
    if _refusal is not None:
        raise JnoLoraError(_refusal)
    if _current is None:
        replacement = Replacement()
        replacement.put()
        _current = replacement


def disable() -> None:
    """Make jNO use its own adapters again. A second call has no effect.

    Afterwards, pass jNO's `net.lora` adapters of `jno.architectures.lora`, because jNO's core would
    not train adapters of `jno.lora`.
    """
    global _current
    if _current is not None:
        _current.take_back()
        _current = None


@contextlib.contextmanager
def enabled(on: bool = True) -> Iterator[None]:
    """A context in which jNO uses the adapters of `jno.lora`, or its own adapters.

    The previous state, which all threads share, is restored at the end.

    **Arguments:**

    - `on`: `False` for a context in which jNO uses its own adapters.

    **Raises:** as `enable`.
    """
    before = is_enabled()
    (enable if on else disable)()
    try:
        yield
    finally:
        (enable if before else disable)()


def is_enabled() -> bool:
    """Whether jNO uses the adapters of `jno.lora`."""
    return _current is not None


def trained_adapters(net: Any) -> AdapterSet:
    """The adapters that the last `solve` trained on `net`, although jNO has merged them.

    Save them, combine them, or put them on the original model with `swap_adapters`.

    **Arguments:**

    - `net`: a model that `jno.nn.wrap` returned, or a call of the model.

    **Returns:** an `AdapterSet`.

    **Raises:** `SelectionError` for another `net`, or if no adapters were trained in its last
    solve. (jNO's `load` makes a new model: save the adapters themselves with `save_adapters`.)
    """
    model = getattr(net, "model", net)
    try:
        module = model.module
    except AttributeError:
        raise SelectionError(
            f"`trained_adapters` takes a model of jNO (jno.nn.wrap(...)), but got {net!r}."
        ) from None
    adapters = adapters_merged_into(module)
    if adapters is None:
        raise SelectionError(
            f"No adapters were trained in the last solve of this {type(module).__name__}. Call "
            "net.lora(...) and then solve; a loaded or changed model has no trained adapters."
        )
    return adapters


def enable_at_import() -> None:
    """Enable while jNO is imported, unless the environment variable `JNO_LORA_JNO` is 0.

    **Raises:** as `enable`, after which jNO's `net.lora` raises this error, too.
    """
    global _refusal
    if os.environ.get("JNO_LORA_JNO") == "0":
        return
    try:
        enable()
    except JnoLoraError as err:
        _refusal = (
            f"jno.lora could not put its adapters into {describe_jno()}, so net.lora of jNO raises "
            f"an error. JNO_LORA_JNO=0 lets it use jNO's own adapters.\n{err}"
        )
        forbid_lora(_refusal)
        raise JnoLoraError(_refusal) from err
