"""Register and run checks, and the error that a failed check raises."""

import functools
import inspect
import pathlib
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jaxtyping import PyTree

from jno.lora import JnoLoraError

Check: TypeAlias = Callable[[Any], None]

# The checks by their ids. A check returns a reason if it is not applicable.
CHECKS: dict[str, Callable[[Any], str | None]] = {}
ADVICE: set[str] = set()
# What to do after a failure, by the ids of the checks.
REMEDIES: dict[str, str] = {}


class NotApplicableError(Exception):
    """A check is not applicable to a case; the message has the reason."""


def skip_unless(condition: object, reason: str) -> None:
    """**Raises:** `NotApplicableError` unless `condition` holds."""
    if not condition:
        raise NotApplicableError(reason)


class ConformanceError(AssertionError):
    """An adapter fails a check. The message names the check, the problem and the remedy.

    - `problem`: the problem alone, without the check, the case and the remedy.
    - `exception`, `place`: the exception that stopped the check, if any, and its line, as text.
    """

    problem: str = ""
    exception: str | None = None
    place: str = ""


_PROMOTION = (
    "\nThe checks forbid implicit promotion, as many users do: cast with `astype`, and add axes "
    "with `[None, :]`."
)


def required(remedy: str, *, is_advice: bool = False) -> Callable[[Check], Check]:
    """Register a check of a promise, without which a documented use fails or nothing trains.

    - `remedy`: the advice after a failure, unless `require` gives other advice.
    - `is_advice`: whether an adapter that fails still works, but for fewer layers or less
        precisely.
    """

    def register(check: Check) -> Check:
        name = check.__name__.removeprefix("check_").replace("_", "-")

        @functools.wraps(check)
        def checked(case: Any) -> str | None:
            with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
                try:
                    check(case)
                except NotApplicableError as reason:
                    return f"{reason}"
                except ConformanceError as err:
                    problem, specific = err.args
                    failure = ConformanceError(
                        f"[{name}] {case}: {problem}\nWhat to do: {specific or remedy}"
                    )
                    failure.problem = problem
                    raise failure from err
                except Exception as err:
                    place = raised_in(err, case.wrapper)
                    exception = f"{type(err).__name__}: {err}\n{place}"
                    if "_dtype_promotion" in f"{err}" or "_rank_promotion" in f"{err}":
                        exception += _PROMOTION
                    purpose = inspect.cleandoc(check.__doc__ or "").partition("\n\n")[0]
                    stopped = ConformanceError(
                        f"[{name}] {case}: the check stopped at an exception, {exception}\n"
                        f"What is checked: {purpose}"
                    )
                    stopped.exception, stopped.place = exception, place
                    raise stopped from err
            return None

        CHECKS[name], REMEDIES[name] = checked, remedy
        if is_advice:
            ADVICE.add(name)
        return check

    return register


advice = functools.partial(required, is_advice=True)


def answer_of(function: Any, name: str, value: object) -> PyTree:
    """The result of a classmethod for an object; messages call the object by the given name.

    **Raises:** `ConformanceError` if it raises.
    """
    try:
        return function(value)
    except Exception as err:
        problem = f"`{function.__name__}` raises for {name}: {type(err).__name__}: {err}"
        place = raised_in(err, function.__self__)
        raise ConformanceError(f"{problem}\n{place}", "") from err


def raised_in(err: BaseException, cls: type) -> str:
    """The innermost line that led to `err`, if possible in the package of `cls`."""
    frame = (_frames(err, cls) or _frames(err))[-1]
    return f"(raised in {frame.name}, {frame.filename}:{frame.lineno}: {frame.line})"


def _frames(err: BaseException, author_of: type | None = None) -> list[traceback.FrameSummary]:
    """The lines that led to an error and its causes, in all packages or only the author's."""
    packages = {_package(c.__module__) for c in author_of.__mro__} if author_of else set()
    frames: list[traceback.FrameSummary] = []
    seen: BaseException | None = err
    while seen is not None:
        for frame, line in traceback.walk_tb(seen.__traceback__):
            if not author_of or _package(frame.f_globals.get("__name__", "")) in packages - _OURS:
                code = frame.f_code
                frames.append(traceback.FrameSummary(code.co_filename, line, code.co_name))
        seen = seen.__cause__
    return frames


# Packages of the base classes of every adapter.
_OURS = {"jno.lora", "equinox", "abc", "builtins", "typing"}


def _package(module: str) -> str:
    # Other distributions have modules in `jno`.
    return "jno.lora" if f"{module}.".startswith("jno.lora.") else module.partition(".")[0]


def is_refusal(err: BaseException) -> bool:
    """Whether a constructor, and not a library, raised this `ValueError` or jno-lora error."""
    if not isinstance(err, ValueError | JnoLoraError):
        return False
    frames = _frames(err)
    is_raised = (frames[-1].line or "").startswith("raise ")
    in_constructor = any(frame.name == "__init__" for frame in frames)
    libraries = {"jax", "jaxlib", "numpy", "equinox"}
    in_library = not libraries.isdisjoint(pathlib.Path(frames[-1].filename).parts)
    return is_raised and in_constructor and not in_library
