"""Prints the share of the wrong adapters that the kit notices, and the survivors by name.

    python -m tests.kit.wrong_adapters [--whole] [--without-law] [--only PATTERN]

Each adapter is tried on its standard cases until a required check fails, first with the check that
the table names. `--whole` runs all checks of all cases, and lists the checks that fail.
"""

import argparse
import fnmatch
import gc
import time
from collections.abc import Iterator

import conftest  # noqa: F401  (the settings of every test)
import jax

from jno.lora.testing import ADVICE, CHECKS, ConformanceError, wrapper_checks

from . import TABLE, Wrong


def failures(wrong: Wrong, with_law: bool) -> Iterator[str]:
    """The checks that fail on a case, the check of the table first, and advice last."""
    names = sorted(CHECKS, key=lambda name: (name != wrong.noticed_by, name in ADVICE))
    cases = [wrapper_checks(case) for case in wrong.cases(with_law)]
    for name in names:
        for checks in cases:
            try:
                checks.get(name, bool)()
            except ConformanceError:
                yield name
                break


def try_all(rows: list[Wrong], with_law: bool, whole: bool) -> None:
    """Try the adapters, and print the shares and the survivors."""
    noticed: dict[str, list[tuple[bool, bool]]] = {"all": []}
    survivors: list[str] = []
    began = time.perf_counter()
    for number, wrong in enumerate(rows, 1):
        failed: list[str] = []
        for name in failures(wrong, with_law):
            failed.append(name)
            if name not in ADVICE and not whole:
                break
        by_required = any(name not in ADVICE for name in failed)
        for family in (wrong.family, "all"):
            noticed.setdefault(family, []).append((by_required, bool(failed)))
        if whole:
            print(f"{wrong}: {', '.join(failed)}", flush=True)
        if not by_required:
            by_advice = f" [advice: {', '.join(failed)}]" if failed else ""
            survivors.append(f"{wrong}{by_advice}: {wrong.survives}")
        if number % 20 == 0:
            jax.clear_caches()  # a process may have only so many programs
            gc.collect()
    print(f"{'class of fault':16} {'adapters':>9} {'required':>9} {'with advice':>12}")
    noticed["all"] = noticed.pop("all")  # the last row
    for family, pairs in noticed.items():
        required, with_advice = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        print(f"{family:16} {len(pairs):9} {required:9.1%} {with_advice:12.1%}")
    print(f"{time.perf_counter() - began:.0f} s. Survivors of the required checks:")
    print("\n".join(survivors))


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whole", action="store_true", help="run all checks")
    parser.add_argument("--without-law", action="store_true", help="as without a law in the cases")
    parser.add_argument("--only", default="*", help="names of wrong adapters, or class:name")
    arguments = parser.parse_args()
    pattern = arguments.only if ":" in arguments.only else f"*:{arguments.only}"
    rows = [row for row in TABLE if fnmatch.fnmatch(f"{row.family}:{row}", pattern)]
    try_all(rows, not arguments.without_law, arguments.whole)


if __name__ == "__main__":
    main()
