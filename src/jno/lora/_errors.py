"""The errors and warnings of `jno.lora`: one base class, so that one `except` catches all."""

import contextlib
import sys
import warnings
from collections.abc import Iterator


class JnoLoraError(Exception):
    """Base class of every error that `jno.lora` raises on purpose.

    An operation that raises one has changed nothing: the model (or `Net`) is as it was before. A
    message that lists everything that is wrong shows 100 lines, and says how many more there are.
    """


class SelectionError(JnoLoraError, ValueError):
    """The arguments select no layer, or do not make sense for this model.

    Raised for a target, spec or wrapper that matches nothing, layers that all carry an adapter
    already, a mask of another structure, an invalid regular expression, rank or spec key.
    """


class WrapperError(JnoLoraError):
    """An adapter class breaks the `LoRAWrapper` contract, or its constructor or merge failed."""


class PluginError(JnoLoraError, ImportError):
    """A plugin is missing, failed to load, is blocked, incompatible, or in conflict with another.

    It is an `ImportError` too, so that `from jno.lora import DoRALinear` without the zoo fails in
    the way that Python programmers expect.
    """


class CheckpointError(JnoLoraError):
    """A file of adapters is damaged, of an unknown format, or does not fit the model."""


class PeftFormatError(JnoLoraError):
    """A PEFT adapter directory is damaged, does not fit, or is of a type that has no exact form."""


class MissingLibraryError(JnoLoraError, ImportError):
    """A library that only some functions need (matplotlib, optax) is not installed.

    The message says which extra of `jno-lora` installs it.
    """


class JnoLoraWarning(UserWarning):
    """The category of every warning that `jno.lora` emits."""


@contextlib.contextmanager
def imported_for(what: str, extra: str, *libraries: str) -> Iterator[None]:
    """For the imports inside: a library that is missing is an error that says what to install.

    **Arguments:**

    - `what`: who needs them, for the message.
    - `extra`: the extra of this distribution that installs them.
    - `libraries`: their names as they are imported. Another missing module is another error.

    **Raises:** `MissingLibraryError`.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        library = (err.name or "").partition(".")[0]
        if library not in libraries:
            raise
        raise MissingLibraryError(
            f"{what} needs {library}, which is not installed. Install what it needs with\n"
            f'    pip install "jno-lora[{extra}]"'
        ) from err


# Modules whose frames a warning skips, beside those of the caller: what stands between the package
# and the user's line (context managers, run-time type checks).
_TRANSPARENT = ("contextlib", "beartype", "jaxtyping")


def warn(message: str) -> None:
    """Warn with a `JnoLoraWarning` at the line outside the calling package that led here."""
    frame = sys._getframe(1)
    caller = frame.f_globals.get("__name__", "")
    own = "jno.lora" if caller.startswith("jno.lora") else caller.partition(".")[0]
    skipped = ("jno.lora", own, *_TRANSPARENT)
    level = 2
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", ""), skipped):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, JnoLoraWarning, stacklevel=level - 1)


def _is_inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@contextlib.contextmanager
def failing(what: str, error: type[JnoLoraError] | None = None, hint: str = "") -> Iterator[None]:
    """An exception inside becomes "Could not WHAT: why", with the hint behind it.

    **Arguments:**

    - `what`: a verb, the class and the path: "merge the LoRALinear at 'layers/0'".
    - `error`: the class to raise. By default that of the exception if it is one of `jno.lora`'s,
        else `WrapperError`.
    - `hint`: what to do, if the exception is not one of `jno.lora`'s, which say it themselves.

    **Raises:** `JnoLoraError`, from the exception.
    """
    try:
        yield
    except Exception as err:
        ours = isinstance(err, JnoLoraError)
        reason = f"{err}" if ours else f"{type(err).__name__}: {err}"
        cls = error or (type(err) if ours else WrapperError)
        hint = f"\n{hint}" if hint and not ours else ""
        raise cls(f"Could not {what}: {reason}{hint}") from err
