"""Find out which jNO is installed, and detect installations that break `jno.lora`."""

import itertools
import pathlib
import sys
from importlib import metadata

# The names until 0.2.3, and since 0.3.
JNO_DISTRIBUTIONS = ("jax-neural-operators", "jax-numerical-operators")

_WHEELS = (
    "Install both as wheels, not editable and not through PYTHONPATH: "
    "pip install jax-numerical-operators jno-lora"
)


def jno_version() -> str | None:
    """The version of the installed jNO; `None` if jNO is not installed."""
    return next(iter(_installed().values()), None)


def describe_jno() -> str:
    """The name for messages: "jNO 0.4.2"."""
    return f"jNO {jno_version() or '(of an unknown version)'}"


def find_bad_installs(packages: list[str], package_of_jno: str | None) -> list[str]:
    """Problems with the installation of jNO and `jno.lora`, each with its fix.

    **Arguments:**

    - `packages`: where `jno.lora` was imported from (its `__path__`).
    - `package_of_jno`: the `__init__.py` of the package `jno`; `None` if it has none.
    """
    ours = {pathlib.Path(package).parent.resolve() for package in packages}
    troubles: list[str] = []
    installed = _installed()
    if len(installed) > 1:
        troubles.append(
            f"{' and '.join(installed)} are both installed, and both own the package `jno`. "
            "Uninstall both, then install jax-numerical-operators."
        )
    if installed and package_of_jno is None:
        troubles.append(
            f"jNO is installed ({', '.join(f'{n} {v}' for n, v in installed.items())}), but `jno` "
            f"has no modules other than jno.lora: jno-lora hides an editable jNO. "
            f"{_WHEELS}"
        )
    for entry in dict.fromkeys(sys.path):
        package = pathlib.Path(entry) / "jno"
        if (package / "__init__.py").is_file() and package.resolve() not in ours:
            troubles.append(
                f"A package `jno` at {package} does not hold this jno.lora, and hides it wherever "
                f"that path comes first or jno-lora is editable. {_WHEELS}"
            )
    return troubles


def _installed() -> dict[str, str]:
    """The versions of the installed distributions of jNO, by name."""
    return {
        name: distribution.version
        for name in JNO_DISTRIBUTIONS
        for distribution in itertools.islice(metadata.distributions(name=name), 1)
    }
