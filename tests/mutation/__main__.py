"""Mutation testing on a random sample.

    make mutation [MUTATION="--mutants 400 --seed 1 --folders src/jno/lora"]

Each mutant is one small change of the sources, such as `<` for `<=`. Tests that run the line are
run on it: a few, without the suite's checks of types, and if all pass many more, with them. A
mutant that all pass has survived. As a control, the tests of every twentieth mutant are first run
without it, and must pass.
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_item import MutationSpec, TestOutcome

from ._covering import Covering
from ._mutants import sample

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ["src/jno/lora"]
FOLDERS += [f"plugins/jno-lora-{p}/src" for p in ("zoo", "bank", "conditional", "convert", "peft")]
FEW, MANY = 12, 120  # tests on a mutant
# For one run of tests. A mutant that does not end in it is killed if the tests are few: it hangs.
SECONDS = {FEW: 240, MANY: 1200}
CONTROL = 20  # how many mutants for each control


def main() -> None:
    """Run the sample and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--coverage", type=pathlib.Path, default=ROOT / ".coverage")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "mutation.json")
    options = parser.parse_args()
    covering = Covering(options.coverage, ROOT)
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[pathlib.Path] = queue.Queue()
        for number in range(options.workers):
            copies.put(copy_of_sources(pathlib.Path(folder) / str(number)))
        mutants = sample(ROOT, options.folders, options.mutants, options.seed)
        results: list[dict[str, Any]] = []

        def result_of(numbered: tuple[int, MutationSpec]) -> dict[str, Any]:
            number, mutant = numbered
            return run(mutant, copies, covering, control=number % CONTROL == 0)

        with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
            for result in pool.map(result_of, enumerate(mutants)):
                results.append(result)
                options.output.write_text(json.dumps(results, indent=1))
                done = f"{len(results)}/{len(mutants)} {result['outcome']}"
                print(f"{done}: {result['path']}:{result['line']} {result['operator']}", flush=True)
    report(results, options.folders)


def copy_of_sources(folder: pathlib.Path) -> pathlib.Path:
    """A copy of the repository's files, without compiled ones, which a worker mutates in place."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(
    mutant: MutationSpec, copies: "queue.Queue[pathlib.Path]", covering: Covering, *, control: bool
) -> dict[str, Any]:
    """Test one mutant, in a copy that no other thread uses meanwhile."""
    path = mutant.module_path.relative_to(ROOT)
    lines = range(mutant.start_pos[0], mutant.end_pos[0] + 1)
    outcome, diff = "never run", ""
    copy = copies.get()
    try:
        for most in (FEW, MANY):
            tests = covering.tests(path, lines, most, FEW)
            if not tests:
                break
            command = command_of(copy, tests, checked=most == MANY)
            if control:
                expect_to_pass(command, tests, SECONDS[most])
            outcome, diff = tested(mutant, copy, path, command, SECONDS[most])
            if outcome == "out of time" and most == FEW:
                outcome = "killed"
            if outcome != "survived":
                break
    finally:
        copies.put(copy)
    facts = {"path": str(path), "line": mutant.start_pos[0], "outcome": outcome, "diff": diff}
    return {**facts, "operator": mutant.operator_name.removeprefix("core/")}


def command_of(copy: pathlib.Path, tests: list[str], *, checked: bool) -> str:
    """A command that runs these tests on the sources of a copy, with checks of types or without."""
    sources = [copy / "src", *sorted((copy / "plugins").glob("*/src"))]
    left_out = [word for name in ("cacheprovider", "xdist", "cov") for word in ("-p", f"no:{name}")]
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", *left_out, *tests]
    script = copy / "run-tests.sh"
    script.write_text(
        f"cd {shlex.quote(str(copy))}\n"
        f"export PYTHONPATH={shlex.quote(os.pathsep.join(map(str, sources)))}\n"
        # A compiled file would stand for every source of the same size and second.
        f"export PYTHONDONTWRITEBYTECODE=1\n"
        f"export JNO_LORA_TEST_UNCHECKED={'' if checked else '1'}\n"
        f"exec {shlex.join(pytest)}\n"
    )
    return f"bash {script}"


def expect_to_pass(command: str, tests: list[str], seconds: float) -> None:
    """**Raises:** `RuntimeError` if tests fail without any mutation."""
    outcome, output = run_tests(command, seconds)
    if outcome != TestOutcome.SURVIVED:
        raise RuntimeError(f"Without a mutation, not all of {tests} pass:\n{output}")


def tested(
    mutant: MutationSpec, copy: pathlib.Path, path: pathlib.Path, command: str, seconds: float
) -> tuple[str, str]:
    """The outcome of the tests with the mutant, and its diff."""
    here = MutationSpec(
        copy / path,
        mutant.operator_name,
        mutant.occurrence,
        mutant.start_pos,
        mutant.end_pos,
        mutant.operator_args,
    )
    result = mutate_and_test([here], command, seconds)
    if result.test_outcome is None or result.test_outcome == TestOutcome.INCOMPETENT:
        raise RuntimeError(f"Cosmic Ray could not make the mutant {here}: {result.output}")
    outcome = "out of time" if result.output == "timeout" else result.test_outcome.value
    return outcome, (result.diff or "").replace(f"{copy}/", "")


def report(results: list[dict[str, Any]], folders: list[str]) -> None:
    """Print the share of mutants that were killed, overall and by folder, and the survivors."""
    for folder in (None, *folders):
        chosen = [r for r in results if folder is None or r["path"].startswith(folder)]
        killed = sum(r["outcome"] == "killed" for r in chosen)
        if chosen:
            low, high = wilson(killed, len(chosen))
            print(
                f"{folder or 'all'}: {killed} of {len(chosen)} mutants were killed, "
                f"{killed / len(chosen):.1%} (95% interval {low:.1%} to {high:.1%})"
            )
    for result in results:
        if result["outcome"] != "killed":
            print(f"\n{result['outcome']}: {result['path']}:{result['line']}\n{result['diff']}")


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share, by Wilson's score."""
    z, share = 1.96, successes / trials
    middle = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return (middle - half) / (1 + z**2 / trials), (middle + half) / (1 + z**2 / trials)


if __name__ == "__main__":
    main()
