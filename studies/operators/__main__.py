"""Run the study, or write its page."""

import argparse
import pathlib
import tempfile
from dataclasses import replace

import jax

from .._families import CACHE, QUICK
from ._runs import PLAN, RESULTS, run


def main(arguments: list[str] | None = None) -> None:
    """Run the runs that the file of results lacks, or write the page from the file."""
    parser = argparse.ArgumentParser(prog="python -m studies.operators", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="select problem/method")
    parser.add_argument(
        "--quick", action="store_true", help="check that it runs; discard the results"
    )
    parser.add_argument(
        "--report", action="store_true", help="write docs/operators.md, run nothing"
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.report:
        from ._report import write_page

        print(f"wrote {write_page(options.results)}")
    elif options.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(pathlib.Path(folder) / "quick.jsonl", replace(PLAN, effort=QUICK), options.only)
    else:  # the cache on disk saves compiling again after an interruption
        jax.config.update("jax_compilation_cache_dir", str(CACHE / "compiled"))
        run(options.results, PLAN, options.only)


if __name__ == "__main__":
    main()
