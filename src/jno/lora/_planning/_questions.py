"""Questions to adapter classes about layers. A class that fails does not hurt other classes."""

from collections.abc import Container
from typing import Any, NoReturn

import equinox as eqx
import numpy as np

from .._contract import LoRAWrapper
from .._errors import WrapperError, warn
from .._paths import show_array, show_path
from .._registry import Registry, how_to_block
from .._tree import default_adapters

AdapterClass = type[LoRAWrapper]

# Packages whose layers get no adapters by default from plugins: a call that names no adapter would
# do something else as soon as a plugin is imported.
_CLOSED = {"builtins", "collections", "equinox", "jax"}


_NOTHING_REGISTERED = default_adapters.dispatch(object)


class StartOverError(Exception):
    """A class was left out. The walk that met its failure starts over without the class."""


class Questions:
    """Asks the adapter classes of one call about layers. All walks of the call share this object.

    A class that the user named must answer. A class that a variant, `"auto"` or a registration
    gives is left out of the call if it fails, with one warning.
    """

    def __init__(self, registry: Registry, named: Container[AdapterClass]):
        self.registry = registry
        self._named = named
        self._left_out: set[AdapterClass] = set()
        self._warned: set[Any] = set()  # classes, or functions, whose answers are left out

    def applies(self, cls: AdapterClass, path: str, layer: Any) -> bool:
        """Whether `cls` applies to the layer at `path`.

        **Raises:** `WrapperError` if a named class fails; `StartOverError` if another class does.
        """
        if cls in self._left_out:
            return False
        try:
            answer = cls.applies_to(layer)
            return answer if type(answer) is bool else _as_bool(answer)
        except Exception as err:
            self._leave_out(cls, path, layer, err)

    def _leave_out(self, cls: AdapterClass, path: str, layer: Any, err: Exception) -> NoReturn:
        failure = _failure(cls, "applies_to", path, layer, err)
        if cls in self._named:
            raise WrapperError(
                f"{failure}\nIt is asked about every module of a model, and must answer False to "
                "what it does not know."
            ) from err
        self._left_out.add(cls)
        origin, advice = self._origin(cls)
        warn(f"{failure}\nThis call goes on without {cls.__name__} ({origin}).{advice}")
        raise StartOverError from err

    def why_not(self, cls: AdapterClass, path: str, layer: Any) -> str | None:
        """The reason why `cls` does not apply to the layer at `path`, if the class gives one."""
        try:
            reason = cls.why_not(layer)
            return None if reason is None else str(reason)
        except Exception as err:
            failure = _failure(cls, "why_not", path, layer, err)
            origin, advice = self._origin(cls)
            text = f"{failure}\nReasons of {cls.__name__} ({origin}) are left out.{advice}"
            self._warn_once(cls, text)
            return None

    def layers_own(self, path: str, layer: Any) -> tuple[AdapterClass, ...]:
        """The adapters that are registered for the class of the layer at `path`."""
        if self._is_refused(layer):
            return ()
        try:
            return default_adapters(layer)
        except Exception as err:
            function = default_adapters.dispatch(type(layer))
            self._warn_once(
                type(layer),
                f"The function that {function.__module__} registered with `default_adapters` for "
                f"{type(layer).__name__} raised {type(err).__name__} at {show_path(path)!r}: "
                f"{err}\nThe adapters that it would give are left out.",
            )
            return ()

    def _is_refused(self, layer: Any) -> bool:
        """Whether a package has registered adapters for layers of Equinox. Warns if so."""
        function = default_adapters.dispatch(type(layer))
        if function is _NOTHING_REGISTERED:
            return False
        registered = [cls for cls, f in default_adapters.registry.items() if f is function]
        classes = (type(layer), *(cls for cls in registered if isinstance(layer, cls)))
        packages = _CLOSED.intersection(map(_package, classes))
        if not packages or _package(function) in packages:
            return False
        names = ", ".join(cls.__name__ for cls in registered)
        self._warn_once(
            function,
            f"The function that {function.__module__} registered with `default_adapters` for "
            f"{names} is left out for a {type(layer).__name__}: layers of "
            f"{', '.join(sorted(packages))} get adapters by default from jno-lora alone. Name the "
            "adapter in the call, or register a layer class of your own.",
        )
        return True

    def _warn_once(self, reason: Any, message: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warn(message)

    def _origin(self, cls: AdapterClass) -> tuple[str, str]:
        """Where a class comes from, and the advice on how to do without its plugin."""
        provider = self.registry.provider(cls)
        if provider is None:
            return f"of {cls.__module__}", ""
        return f"from {provider.distribution}", how_to_block(provider.distribution)


def _package(definition: Any) -> str:
    return definition.__module__.partition(".")[0]


def _as_bool(answer: Any) -> bool:
    """**Raises:** `TypeError` for an array that is not one bool; JAX's error for a traced bool."""
    is_array = eqx.is_array(answer) or isinstance(answer, np.ndarray)
    if is_array and (answer.shape != () or answer.dtype != np.bool_):
        raise TypeError(f"the answer must be True or False, but is an array {show_array(answer)}")
    return bool(answer)


def _failure(cls: AdapterClass, question: str, path: str, layer: Any, err: Exception) -> str:
    return (
        f"{cls.__name__}.{question} raised {type(err).__name__} on the {type(layer).__name__} at "
        f"{show_path(path)!r}: {err}"
    )
