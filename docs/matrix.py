"""Write the table of versions in `testing.md`. `make test-matrix` runs this at its end."""

import pathlib
import re
import subprocess
import xml.etree.ElementTree as ET

PAGE = pathlib.Path(__file__).with_name("testing.md")
ENVIRONMENTS = PAGE.parents[1] / ".venv-matrix"
PACKAGES = ("jax", "equinox", "numpy")
VERSIONS = (
    "import importlib.metadata as m, platform; print(platform.python_version(), "
    f"*map(m.version, {PACKAGES}))"
)


def row(results: pathlib.Path) -> str:
    """The row of one environment, from pytest's results in it."""
    run = next(ET.parse(results).iter("testsuite")).attrib
    versions = subprocess.run(
        [results.parent / "bin/python", "-c", VERSIONS], check=True, capture_output=True, text=True
    )
    bad = int(run["failures"]) + int(run["errors"])
    passed = int(run["tests"]) - bad - int(run["skipped"])
    counts = (f"{passed:,}", run["skipped"], str(bad), f"{float(run['time']) / 60:.0f}")
    return f"| {' | '.join((*versions.stdout.split(), *counts))} |"


def main() -> None:
    """Write the rows of all environments, the oldest versions last."""
    names = ("Python", "JAX", "Equinox", "NumPy", "passed", "skipped", "failed", "minutes")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    rows += [row(results) for results in sorted(ENVIRONMENTS.glob("*/results.xml"))]
    text = "\n".join(rows)
    page, count = re.subn(
        r"(?<=<!-- versions -->\n).*?(?=\n<!-- /versions -->)",
        lambda _: text,
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    assert count == 1, f"{PAGE} should have the comments `versions` once"
    PAGE.write_text(page)
    print(text)


if __name__ == "__main__":
    main()
