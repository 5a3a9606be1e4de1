"""The errors and warnings of `jno.lora`. All errors have one base class."""

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType


class JnoLoraError(Exception):
    """Base class of every error that `jno.lora` raises on purpose.

    An operation that raises this error has changed nothing. A message lists at most 100 problems,
    and counts the rest.
    """


class SelectionError(JnoLoraError, ValueError):
    """The arguments select no layer, or do not make sense for this model."""


class WrapperError(JnoLoraError):
    """An adapter class breaks the `LoRAWrapper` contract, or its constructor or merge failed."""


class PluginError(JnoLoraError, ImportError):
    """A plugin is missing, failed to load, is blocked or incompatible, or a name is ambiguous.

    Also an `ImportError`, so that `from jno.lora import DoRALinear` fails like any import.
    """


class CheckpointError(JnoLoraError):
    """A file of adapters is damaged, of an unknown format, or does not fit the model."""


class PeftFormatError(JnoLoraError):
    """A PEFT adapter, or LoRA of another library, is damaged, does not fit, or has no exact match.

    Also raised if the adapter's repository on the Hugging Face Hub cannot be read.
    """


class MissingLibraryError(JnoLoraError, ImportError):
    """A library that only some functions need (matplotlib, optax) is not installed."""


class JnoLoraWarning(UserWarning):
    """The category of every warning that `jno.lora` emits."""


@contextlib.contextmanager
def imported_for(what: str, extra: str, *libraries: str) -> Iterator[None]:
    """Guard the imports in the block: if a library is missing, the error names the extra.

    **Arguments:**

    - `what`: the function that needs the libraries, for the message.
    - `extra`: the extra of this distribution that installs them.
    - `libraries`: their import names. Errors for other missing modules pass unchanged.

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


# Modules between the package and the user's line: context managers, imports, constructors, run-time
# type checks.
_TRANSPARENT = r"contextlib|importlib|equinox|beartype|jaxtyping"


def warn(message: str) -> None:
    """Warn with a `JnoLoraWarning` at the nearest line outside the calling package."""
    caller = _first_outside(_TRANSPARENT, sys._getframe(1))
    package = _module_of(caller).partition(".")[0]
    # Other distributions have modules in `jno`: their lines count as user code. Plugins call each
    # other.
    packages = r"jno\.lora" if package == "jno" else re.escape(package)
    frame = _first_outside(rf"{_TRANSPARENT}|jno\.lora|jno_lora_\w+|{packages}", caller)
    scope = frame.f_globals
    warnings.warn_explicit(
        message,
        JnoLoraWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        scope.get("__name__", "<unknown>"),
        scope.setdefault("__warningregistry__", {}),
    )


def _module_of(frame: FrameType) -> str:
    # Generated code (a beartype wrapper) may lack the name of its module.
    return frame.f_globals.get("__name__", "beartype")


def _first_outside(packages: str, frame: FrameType) -> FrameType:
    """The first frame outside of these packages, a regex; or the outermost frame."""
    while frame.f_back is not None and re.match(rf"({packages})(\.|$)", _module_of(frame)):
        frame = frame.f_back
    return frame


@contextlib.contextmanager
def errors_as(
    what: str, error: type[JnoLoraError] | None = None, hint: str | Callable[[], str] = ""
) -> Iterator[None]:
    """An exception in the block becomes "Could not WHAT: why", followed by the hint.

    **Arguments:**

    - `what`: a verb, the class and the path: "merge the LoRALinear at 'layers/0'".
    - `error`: the class to raise. By default, a `JnoLoraError` keeps its class, and other errors
        become `WrapperError`s.
    - `hint`: advice, or a function that returns it.

    **Raises:** `JnoLoraError`, from the exception.
    """
    try:
        yield
    except Exception as err:
        cls = error or (type(err) if isinstance(err, JnoLoraError) else WrapperError)
        advice = hint if isinstance(hint, str) else hint()
        advice = f"\n{advice[0].upper()}{advice[1:]}" if advice else ""
        raise cls(f"Could not {what}: {reason_of(err)}{advice}") from err


def reason_of(err: Exception) -> str:
    """The message of `err`, after its class unless it is a `JnoLoraError`."""
    return f"{err}" if isinstance(err, JnoLoraError) else f"{type(err).__name__}: {err}"
