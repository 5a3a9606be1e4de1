"""Libraries that only some functions need, and that are installed by an extra."""

import contextlib
from collections.abc import Iterator

from ._errors import MissingLibraryError


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
