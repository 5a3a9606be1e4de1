"""Run the benchmarks: every case against its peers, one process per side, rounds interleaved.

    python -m benchmarks.compare [--quick] [--only REGEX] [--resume] [--device cpu|gpu]
        [--out FOLDER]

Writes `FOLDER/DEVICE.json` after each case, and at the end tables and plots of its records (as
`python -m benchmarks.report` does). The folder is `benchmarks/results`, with the page
`docs/evidence/benchmarks.md`, or `.bench/quick` for quick runs, with the page beside the results.

With `--only`, the other cases keep their records. With `--resume`, every case with a finished
record keeps it, and does not run. The records must come from the same machine and versions.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import random
import re
import shutil
import sys
from typing import Any

from ._cases import cases
from ._comparison import QUICK, Comparison, Settings
from ._workers import ROOT, RequestFailedError, Worker, WorkerLostError, command, variables
from .report import RESULTS, page_folder, write_page


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="few short rounds, to check that all runs"
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="cases by name")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER")
    for name in ("ours", "jno", "peft"):
        parser.add_argument(f"--{name}", metavar="PYTHON", default=default_python(name))
    options = parser.parse_args()
    options.out = options.out or (ROOT / ".bench" / "quick" if options.quick else RESULTS)
    return options


def default_python(environment: str) -> str:
    """The interpreter that `make bench` installs, or this interpreter for our side."""
    python = ROOT / ".bench" / environment / "bin" / "python"
    return sys.executable if environment == "ours" and not python.exists() else str(python)


def machine(device_names: dict[str, str]) -> dict[str, Any]:
    """The facts on which the numbers depend, without facts that identify the machine's owner."""
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "devices": device_names,
    }


def processor() -> str:
    """The name of the processor's model."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        model_name = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if model_name:
            return model_name[1]
    return platform.processor() or platform.machine()


def main() -> None:
    """Greet every environment, then run the cases."""
    options = parse()
    every = cases(options.device)
    chosen = [case for case in every if re.search(options.only, case["name"])]
    if options.list or not chosen:
        print("\n".join(case["name"] for case in (chosen if options.list else every)))
        sys.exit(0 if options.list else f"--only {options.only!r} matches none of these cases.")
    settings = QUICK if options.quick else Settings()
    pythons = {name: getattr(options, name) for name in ("ours", "jno", "peft")}
    installed = {name: python for name, python in pythons.items() if shutil.which(python)}

    def start(environment: str) -> Worker | None:
        if environment not in installed:
            return None
        line = command(installed[environment], environment, options.device)
        return Worker(line, variables(options.device))

    head = {
        "device": options.device,
        "quick": options.quick,
        "settings": dataclasses.asdict(settings),
        **greet(start, installed),
    }
    path = options.out / f"{options.device}.json"
    records = earlier(path, head) if options.only or options.resume else {}
    if options.resume:
        asked = len(chosen)
        chosen = [case for case in chosen if not is_finished(records.get(case["name"]))]
        print(f"{asked - len(chosen)} of {asked} cases keep their records.", flush=True)
    order = [case["name"] for case in every]
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for number, case in enumerate(chosen, 1):
        record = Comparison(case, start, settings, rng).run()
        records[case["name"]] = record | {"date": str(datetime.date.today())}
        ordered = [records[name] for name in order if name in records]
        written = json.dumps(head | {"cases": ordered}, indent=1, ensure_ascii=False) + "\n"
        # A run may be stopped at any time, and the file must stay whole.
        partial = path.with_suffix(".partial")
        partial.write_text(written)
        partial.replace(path)
        print(f"[{number}/{len(chosen)}] {summary(record)}", flush=True)
    print(f"wrote {write_page(options.out, page_folder(options.out))}")


def greet(start: Any, installed: dict[str, str]) -> dict[str, Any]:
    """Machine and versions. An environment that does not work counts as not installed."""
    versions, devices = {}, {}
    for name in list(installed):
        worker = start(name)
        try:
            answer = worker.ask(120, do="hello")
            versions[name], devices[name] = answer["versions"], answer["device"]
        except (RequestFailedError, WorkerLostError) as error:
            if name == "ours":
                sys.exit(f"Our own worker does not start: {error}")
            print(f"{name}: left out, {error}", file=sys.stderr)
            del installed[name]
        finally:
            worker.close()
    for package in ("jax", "jaxlib", "equinox"):
        in_use = {v[package] for v in versions.values() if package in v}
        if len(in_use) > 1:
            print(f"{package} differs between the environments: {in_use}", file=sys.stderr)
    return {"machine": machine(devices), "versions": versions}


def earlier(path: pathlib.Path, head: dict[str, Any]) -> dict[str, Any]:
    """The records in the file. Exits if the file has a different `head`."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    records = before.pop("cases")
    if before != head:
        sys.exit(
            f"The results in {path} have another machine, other versions or other settings: run "
            "all cases, or write to another folder (--out)."
        )
    return {record["name"]: record for record in records}


def is_finished(record: dict[str, Any] | None) -> bool:
    """Whether there is a record that the next run would not improve.

    A side that failed, or whose process ended, may work in the next run. A side that is not
    installed or takes too long will not.
    """
    final = ("ok", "not installed", "timed out")
    return record is not None and all(
        side["status"].startswith(final) for side in record["sides"].values()
    )


def summary(record: dict[str, Any]) -> str:
    """One line for the terminal."""
    ratios = [
        f"{measure}/{peer} {ratio['median']:.2f}"
        for measure in record["measures"]
        for peer, ratio in record["ratios"].get(measure, {}).items()
    ]
    lost = [f"{n} {s['status']}" for n, s in record["sides"].items() if s["status"] != "ok"]
    return f"{record['name']}: {', '.join(ratios + lost)}"


if __name__ == "__main__":
    main()
