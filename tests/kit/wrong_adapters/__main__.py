"""Prints the share of the wrong adapters that the kit notices, and the survivors by name.

    python -m tests.kit.wrong_adapters [--whole] [--without-law] [--only PATTERN]
    python -m tests.kit.wrong_adapters --time
    python -m tests.kit.wrong_adapters --ours

Each adapter is tried on its standard cases until a required check fails, first with the check that
the table names. `--whole` runs all checks of all cases, and lists the checks that fail. `--time`
prints the seconds of the kit for a correct adapter of a linear layer, in a new process the first
time, then with another class. `--ours` runs the kit on all adapters of the plugins, and prints the
number of false alarms.
"""

import argparse
import collections
import dataclasses
import fnmatch
import gc
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import conftest  # noqa: F401  (the settings of every test)
import jax

from jno.lora.testing import ADVICE, CHECKS, ConformanceError, run_checks, wrapper_checks

from . import TABLE, Wrong, cases_of
from ._bases import LoRA

ROOT = pathlib.Path(__file__).parents[3]


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


@dataclasses.dataclass
class Count:
    """The wrong adapters of a class of fault, and how many are noticed."""

    size: int = 0
    required: int = 0
    with_advice: int = 0

    def add(self, failed: list[str]) -> None:
        """Count an adapter with these failed checks."""
        self.size += 1
        self.required += any(name not in ADVICE for name in failed)
        self.with_advice += bool(failed)

    def __str__(self) -> str:
        shares = (self.required / self.size, self.with_advice / self.size)
        return f"{self.size:9} {shares[0]:9.1%} {shares[1]:12.1%}"


def try_all(rows: list[Wrong], with_law: bool, whole: bool) -> None:
    """Try the adapters, and print the shares and the survivors."""
    counts: dict[str, Count] = collections.defaultdict(Count)
    survivors: list[str] = []
    began = time.perf_counter()
    for number, wrong in enumerate(rows, 1):
        failed: list[str] = []
        for name in failures(wrong, with_law):
            failed.append(name)
            if name not in ADVICE and not whole:
                break
        for family in (wrong.family, "all"):
            counts[family].add(failed)
        if whole:
            print(f"{wrong}: {', '.join(failed)}", flush=True)
        if all(name in ADVICE for name in failed):
            by_advice = f" [advice: {', '.join(failed)}]" if failed else ""
            survivors.append(f"{wrong}{by_advice}: {wrong.fault} ({wrong.survives})")
        if number % 20 == 0:
            jax.clear_caches()  # a process may have only so many programs
            gc.collect()
    print(f"{'class of fault':16} {'adapters':>9} {'required':>9} {'with advice':>12}")
    counts["all"] = counts.pop("all")  # the last row
    for family, count in counts.items():
        print(f"{family:16} {count}")
    print(f"{time.perf_counter() - began:.0f} s. Survivors of the required checks:")
    print("\n".join(survivors))


def print_time() -> None:
    """The seconds of the kit for a correct adapter of `Linear`: in a new process, and again."""
    for when in ("in a new process", "with another class"):
        adapter = type("Another", (LoRA,), {})
        began = time.perf_counter()
        results = run_checks(cases_of(adapter)[0])
        seconds = time.perf_counter() - began
        alarms = [result.check for result in results if result.error is not None]
        print(f"{len(results)} checks {when}: {seconds:.1f} s, false alarms: {alarms}")


def check_ours() -> None:
    """Run the kit on all adapters of the plugins, with pytest."""
    tests = [*ROOT.glob("plugins/*/tests/test_*.py"), ROOT / "tests/core/test_conformance_kit.py"]
    files = [f"{path}" for path in tests if "@parametrize_with_checks" in path.read_text()]
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-k", "conformance or correct"]
    result = subprocess.run([*pytest, *files], cwd=ROOT, capture_output=True, text=True)
    alarms = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    print("\n".join([*alarms, result.stdout.splitlines()[-1]]))
    print(f"{len(alarms)} false alarms on adapters of ours")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whole", action="store_true", help="run all checks")
    parser.add_argument("--without-law", action="store_true", help="as without a law in the cases")
    parser.add_argument("--only", default="*", help="names of wrong adapters, or class:name")
    parser.add_argument("--time", action="store_true", help="the time of the kit")
    parser.add_argument("--ours", action="store_true", help="false alarms on our adapters")
    arguments = parser.parse_args()
    if arguments.time:
        print_time()
    elif arguments.ours:
        check_ours()
    else:
        pattern = arguments.only if ":" in arguments.only else f"*:{arguments.only}"
        rows = [row for row in TABLE if fnmatch.fnmatch(f"{row.family}:{row}", pattern)]
        try_all(rows, not arguments.without_law, arguments.whole)


if __name__ == "__main__":
    main()
