"""Run the study, or write its page."""

import argparse
import pathlib
import tempfile
from dataclasses import replace

import jax

from ._problems import CACHE, QUICK
from ._runs import PLAN, RESULTS, run


def main(arguments: list[str] | None = None) -> None:
    """Run what the file of results lacks, or write the page from it."""
    parser = argparse.ArgumentParser(prog="python -m studies.operators", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="of problem/method")
    parser.add_argument("--quick", action="store_true", help="does it run? Results are not kept")
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
    else:  # a run that goes on compiles nothing again
        jax.config.update("jax_compilation_cache_dir", str(CACHE / "compiled"))
        run(options.results, PLAN, options.only)


if __name__ == "__main__":
    main()
