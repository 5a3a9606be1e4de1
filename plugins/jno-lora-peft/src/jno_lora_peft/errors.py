"""Errors of single modules, which `load_peft` and `save_peft` collect and report together."""

import contextlib
from collections.abc import Iterator

from jno.lora import CheckpointError, PeftFormatError
from jno.lora.extending import bullets


class MisfitError(ValueError):
    """The adapter of one module cannot be converted. `args` has a line for each reason."""


@contextlib.contextmanager
def format_errors() -> Iterator[None]:
    """Turn errors of files and arrays into `PeftFormatError`."""
    try:
        yield
    except (CheckpointError, OSError) as err:
        raise PeftFormatError(str(err)) from err


NO_PRODUCT = "its update is not a product of two factors of low rank; `to_lora` approximates it"


class Problems(list[str]):
    """A line for each reason why a call fails."""

    def refuse(self, title: str, consequence: str) -> None:
        """**Raises:** `PeftFormatError` that lists the problems, if there are any."""
        if self:
            raise PeftFormatError(f"{title}:\n{bullets(self)}\n{consequence}")

    @contextlib.contextmanager
    def of(self, place: str) -> Iterator[None]:
        """Collect the reasons of a `MisfitError` raised inside the block, for this place."""
        try:
            yield
        except MisfitError as err:
            self += [f"{place}: {line}" for line in err.args]
