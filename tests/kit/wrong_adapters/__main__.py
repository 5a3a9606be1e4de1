"""Prints the share of the wrong adapters that the kit notices, and the survivors by name.

    python -m tests.kit.wrong_adapters [--without-law] [--whole] [--only PATTERN]

Each adapter is tried on its standard cases until a required check fails, at first with the check
that the table names. With `--whole`, all checks of all cases run, and are listed.
"""

import argparse
import collections
import fnmatch
import gc
import time
from collections.abc import Iterator

import conftest  # noqa: F401  (the settings of every test)
import jax

from jno.lora.testing import ADVICE, CHECKS, ConformanceError, WrapperCase, wrapper_checks

from . import TABLE, Wrong


def failures(wrong: Wrong, cases: list[WrapperCase]) -> Iterator[str]:
    """The checks that fail, the check of the table first."""
    names = sorted(CHECKS, key=lambda name: (name != wrong.noticed_by, name in ADVICE))
    for name in names:
        for case in cases:
            try:
                wrapper_checks(case).get(name, str)()
            except ConformanceError:
                yield name
                break


def noticed(wrong: Wrong, with_law: bool, whole: bool) -> set[str]:
    """Checks that fail: all, or the advice before the first required check, and this check."""
    failed: set[str] = set()
    for name in failures(wrong, wrong.cases(with_law)):
        failed.add(name)
        if name not in ADVICE and not whole:
            break
    return failed


def main() -> None:
    """Try every adapter and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--without-law", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--only", default="*")
    arguments = parser.parse_args()
    rows = [wrong for wrong in TABLE if fnmatch.fnmatch(f"{wrong.family}:{wrong}", arguments.only)]
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    survivors: list[str] = []
    began = time.perf_counter()
    for number, wrong in enumerate(rows, 1):
        failed = noticed(wrong, not arguments.without_law, arguments.whole)
        is_noticed = bool(failed - ADVICE)
        for family in (wrong.family, "all"):
            counts[family][0] += 1
            counts[family][1] += is_noticed
            counts[family][2] += bool(failed)
        if arguments.whole:
            print(
                f"{wrong.family}:{wrong} [{wrong.noticed_by}]: {' '.join(sorted(failed))}",
                flush=True,
            )
        if not is_noticed:
            by = f" (advice: {', '.join(sorted(failed))})" if failed else ""
            survivors.append(f"{wrong.family}:{wrong}{by}: {wrong.fault} {wrong.survives}".rstrip())
        if number % 20 == 0:
            jax.clear_caches()
            gc.collect()
    print(f"{'class of fault':20} {'adapters':>9} {'required':>9} {'advice':>9}")
    for family, (size, required, any_check) in sorted(
        counts.items(), key=lambda row: row[0] == "all"
    ):
        print(f"{family:20} {size:9} {required / size:9.1%} {any_check / size:9.1%}")
    print(f"{time.perf_counter() - began:.0f} s. Survivors:")
    print("\n".join(survivors))


if __name__ == "__main__":
    main()
