"""The command line that all studies have."""

import argparse
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from ._families import CACHE

_SUMMARY = "Run the runs that the file of results lacks, or write the page from the file."


def command(
    name: str,
    selects: str,
    arguments: list[str] | None,
    *,
    run: Callable[[pathlib.Path, Any, str], None],
    plans: tuple[Any, Any],
    results: pathlib.Path,
    write_page: Callable[[pathlib.Path], pathlib.Path],
) -> None:
    """Run the runs that the file of results lacks, or write the page from the file.

    **Arguments:** `selects`: what the regex of `--only` is searched in. `run(file, plan, only)`;
    `plans`: the whole study, and a plan for `--quick`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m studies.{name}", description=_SUMMARY)
    parser.add_argument("--only", default="", metavar="REGEX", help=f"select {selects}")
    parser.add_argument(
        "--quick", action="store_true", help="check that it runs; discard the results"
    )
    parser.add_argument("--report", action="store_true", help="write the page, run nothing")
    parser.add_argument("--results", type=pathlib.Path, default=results, metavar="FILE")
    options = parser.parse_args(arguments)
    whole, quick = plans
    if options.report:
        print(f"wrote {write_page(options.results)}")
    elif options.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(pathlib.Path(folder) / "quick.jsonl", quick, options.only)
    else:  # the cache on disk saves compiling again after an interruption
        jax.config.update("jax_compilation_cache_dir", str(CACHE / "compiled"))
        run(options.results, whole, options.only)
