"""Misfits of single modules, which `load_peft` and `save_peft` collect and tell at once."""

import contextlib
from collections.abc import Iterator


class MisfitError(ValueError):
    """The adapter of one module cannot be converted. `args` has a line for each reason."""


class Problems(list[str]):
    @contextlib.contextmanager
    def of(self, place: str) -> Iterator[None]:
        """Add the reasons of a `MisfitError` that is raised inside, for this place."""
        try:
            yield
        except MisfitError as err:
            self += [f"{place}: {line}" for line in err.args]
