"""Write `docs/evidence/benchmarks.md` and its plots from the results of `benchmarks.compare`.

python -m benchmarks.report [--results FOLDER] [--docs FOLDER]
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

from ._plots import plot
from ._tables import GROUPS, SIDES, number, table, verdicts
from ._workers import ROOT

# The sides over which the first table gives the time of a step.
COMPARED = ("jno", "peft", "full", "floor")
RESULTS = ROOT / "benchmarks" / "results"

HEAD = """\
# Benchmarks

Our adapters beside jNO's, PEFT's, full fine-tuning and training the biases alone. **A ratio below
1 means that ours takes less.** Below the results are [how they were
measured](#how-it-is-measured) and [the targets that were missed](#missed-targets).
"""

LEGEND = """\
**jNO** is `jax-neural-operators`, whose adapters have the same names and laws. **PEFT** is `peft`
on PyTorch, run eagerly. **Floor** trains only the biases of the plain model, which costs the
forward pass and the gradients of the layers' inputs. **Full fine-tuning** trains everything. A cell
shows the median with the quartiles in brackets, then the target, which was set in advance. **Bold**
marks a missed target.
"""

WHERE_THE_REST_GOES = """\
The [cost model](cost-model.md#where-the-rest-of-a-step-goes) explains where the rest of a step
goes, and which changes helped.
"""

METHOD = """\
## How it is measured

The tables show ratios instead of times, because times differ between machines, and from minute to
minute on one machine.

* For each row, each side runs in a fresh process; jNO and PEFT have separate environments, and all
  other sides share ours. The sides of a row have the same shapes and the same loss. A step is a
  step of Adam, unless the text of its table differs. The steps of JAX are compiled, with donated
  state, and take flat lists of arrays, so flattening modules is not counted. PEFT's steps are
  eager, with Torch's fused Adam, so Torch's overhead for each operation is counted. It weighs most
  in [smaller batches](#smaller-batches).
* In each round, every side runs once, in random order, for about the same time. Ratios are formed
  within a round, and warm-up rounds are discarded. Memory and flops are XLA's figures for the
  compiled step, without the memory inside a fusion; *compile* includes tracing.
* Threads sleep while they wait (`OMP_WAIT_POLICY=PASSIVE`, `KMP_BLOCKTIME=0`), so that an idle side
  does not slow down the running side. OpenBLAS has one thread (`OPENBLAS_NUM_THREADS=1`).
* PEFT's methods differ in three cases. Its LoRA-FA is LoRA with `lora_A` frozen. Its LoKr has the
  same two dense factors as ours. Its OFT is the default, which rotates inputs and approximates the
  inverse by five terms of a series; ours is exact.
* Ratios to PEFT depend on the machine. In version 0.1, with an Intel Xeon and a build of PyTorch
  for CPUs, the median of our step over PEFT's was 0.64.
* A target is what a one-page version of the method measured, or a goal that seemed worth reaching.
* All models that train have real arrays, so no gradient is
  [conjugated](../training.md#complex-arrays).
* *save* and *load* handle the adapters alone (`save_adapters`, `load_adapters`). Full fine-tuning
  saves the whole model, with Equinox's functions.

```sh
make bench                              # everything, on the CPU: 50 minutes on two cores
make bench BENCH="--quick --only mlp"   # some of it: does it run?
make bench BENCH=--resume               # continues a run that was stopped
make bench BENCH="--only '^(conditional|slope|gauss-newton)/' --out .bench/parameter"
make bench DEVICE=gpu                   # the same on a CUDA GPU, and layers of a large model
```

On a GPU, the calls of a turn are queued, and the clock stops when the last call has finished
(`jax.block_until_ready`, `torch.cuda.synchronize`). Float32 products may use TF32 on every
side, which is JAX's default there.
"""

NO_GPU = "The GPU code was reviewed, but has not been run yet.\n"


def main() -> None:
    """Write the page of all devices' results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--docs", type=pathlib.Path, metavar="FOLDER")
    options = parser.parse_args()
    print(f"wrote {write_page(options.results, options.docs or page_folder(options.results))}")


def page_folder(results: pathlib.Path) -> pathlib.Path:
    """The folder for the page of results: the documentation, or the folder of the results."""
    return ROOT / "docs" / "evidence" if results.resolve() == RESULTS else results


def write_page(results: pathlib.Path, docs: pathlib.Path) -> pathlib.Path:
    """Write `benchmarks.md` and `images/` of all devices' results, and return the page's path."""
    devices = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    sections = [HEAD, *map(overview, devices), LEGEND]
    sections += [section(device, docs) for device in devices]
    sections.append(METHOD)
    if not (results / "gpu.json").exists():
        sections.append(NO_GPU)
    sections += ["## Missed targets\n", WHERE_THE_REST_GOES, *map(misses, devices)]
    page = docs / "benchmarks.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(sections).rstrip() + "\n")
    return page


def overview(results: dict[str, Any]) -> str:
    """The table of one device: our steps over each side's steps."""
    steps = [r["ratios"].get("step", {}) for r in results["cases"] if r["group"] == "linear"]
    rows = []
    for side in COMPARED:
        medians = sorted(ratios[side]["median"] for ratios in steps if side in ratios)
        if medians:
            numbers = (statistics.median(medians), medians[0], medians[-1])
            rows.append(f"| {SIDES[side]} | {' | '.join(map(number, numbers))} |")
    if not rows:
        return ""
    head = (
        f"| our step on the {results['device'].upper()}, over the step of | median | least | most |"
    )
    text = "Over the methods of the zoo, on linear layers:\n"
    return "\n".join([text, head, "|---" * 4 + "|", *rows, ""])


def section(results: dict[str, Any], docs: pathlib.Path) -> str:
    """One device: machine, versions, tables and plots."""
    device = results["device"]
    lines = [f"## On the {device.upper()}", "", describe(results), ""]
    for name, group in GROUPS.items():
        records = [record for record in results["cases"] if record["group"] == name]
        if not records:
            continue
        lines += [f"### {group.title}", "", group.text, ""]
        for columns in group.tables:
            text = table(records, columns)
            lines += [text, ""] if text else []
        lines += [f"\\* {note}\n" for note in sorted({r["note"] for r in records if "note" in r})]
        image = f"images/benchmarks-{device}-{name}.svg"
        if plot(records, group, docs / image):
            lines += [f"![{group.title}]({image})", ""]
    return "\n".join(lines)


def misses(results: dict[str, Any]) -> str:
    """One device: the targets that were missed or could not be checked."""
    device, records = results["device"].upper(), results["cases"]
    number_of_targets = sum(len(record["targets"]) for record in records)
    missed = verdicts(records)
    if not missed:
        return f"On the {device}, all {number_of_targets} targets are met.\n"
    share = f"{len(missed)} of {number_of_targets} targets"
    head = f"On the {device}, {share} were missed or could not be checked:\n"
    return "\n".join([head, *(f"* {sentence}" for sentence in missed), ""])


def describe(results: dict[str, Any]) -> str:
    """Machine, versions and settings in a few lines."""
    machine, settings = results["machine"], results["settings"]
    dates = sorted({record["date"] for record in results["cases"]})
    devices = ", ".join(sorted(set(machine["devices"].values()) - {"cpu"}))
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"
        + (f"; {devices}" if devices else "")
        + f"; {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}.",
    ]
    for side, versions in results["versions"].items():
        packages = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"{side}: {packages}.")
    lines.append(f"At most {settings['rounds']} rounds, at least {settings['least_rounds']}.")
    if results["quick"]:
        lines.append("**A quick run, to see that everything works: draw no conclusions.**")
    return "  \n".join(lines)


if __name__ == "__main__":
    main()
