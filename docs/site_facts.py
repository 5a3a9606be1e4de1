"""Facts about the project, from the files that state them.

`.ci/mkdocs.yml` names this file as a hook, which gives the site the version and the link to the
repository. `docs/update.py` writes the rest: the numbers of the first page and of the README, the
list of the kit's checks, and the counts in prose.
"""

import collections
import functools
import inspect
import json
import pathlib
import re
import statistics
import tomllib
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
_LEVELS = ("required", "advice")


def on_config(config: Any) -> Any:
    """Put the version into the site's name, and link the repository if pyproject.toml names one."""
    version = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "src/jno/lora/_version.py").read_text(), re.MULTILINE
    )
    assert version is not None, "src/jno/lora/_version.py should say `__version__ = ...`"
    config.site_name = f"{config.site_name} {version[1]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository")
    if address is not None:
        config.repo_url, config.repo_name = address, project["name"]
    return config


def table() -> str:
    """The table of numbers."""
    return "".join(f"| {' | '.join(row)} |\n" for row in numbers())


def sentences() -> str:
    """The numbers that help to decide, as sentences."""
    number = counts()
    jno, peft = (ratio("linear", "step", over).split("*")[2] for over in ("jno", "peft"))
    return (
        f"On a CPU, a training step of linear layers takes {jno} times as long as jNO's, and "
        f"{peft} times as long as PEFT's\n([every case](docs/evidence/benchmarks.md)). "
        f"{number['methods']} methods adapt {number['kinds']} kinds of layer. {number['types']} of "
        f"PEFT's {number['all_types']} types load, and\n[{number['passed']} of "
        f"{number['models']}](docs/models.md) models of other projects pass every check.\n"
    )


def checks() -> str:
    """The tiers of the kit's checks, and a section for each check."""
    from jno_lora_testing import TIERS

    rows = "\n".join(f"| *{tier}* | {', '.join(names)} |" for tier, names in TIERS.items())
    tiers = f"| tier | its checks |\n|---|---|\n{rows}\n"
    sections = "\n".join(f"## {level.capitalize()}\n\n{checks_of(level)}" for level in _LEVELS)
    return f"\n{tiers}\n{sections}\n"


def checks_of(level: str) -> str:
    """A section for each check of one level: its id, what it means, and what to do."""
    from jno_lora_testing import ADVICE, CHECKS
    from jno_lora_testing._conformance import REMEDIES

    names = [name for name in CHECKS if (name in ADVICE) == (level == "advice")]
    return "\n".join(
        f"### {name}\n\n{inspect.cleandoc(CHECKS[name].__doc__ or '')}\n\n"
        f"*What to do:* {REMEDIES[name]}\n"
        for name in names
    )


def counts() -> dict[str, int]:
    """How many methods, kinds of layer, types of PEFT that load, and models that pass there are."""
    from jno.lora.extending import default_registry
    from jno_lora_peft.config import REASONS
    from jno_lora_peft.types import TYPES
    from jno_lora_zoo import METHODS

    # A class joins a method and a kind of layer, and a plugin for a kind has every method.
    classes = [
        wrapper.cls for record in default_registry().records() for wrapper in record.wrappers
    ]
    of_methods = collections.Counter(cls.__bases__[0] for cls in classes)
    report, failures = (ROOT / "docs/models.md").read_text().split("\n## Failures\n")
    assert failures.startswith("\nNone."), "docs/models.md should have no failures"
    models = re.findall(r"^\| [\w-]+ \|(?: (\d+) \|| \*none\* \|){2}", report, re.M)
    return {
        "methods": len(METHODS),
        "others": len(METHODS) - 1,
        "kinds": min(of_methods[method] for method in METHODS),
        "types": len(TYPES),
        "all_types": len(TYPES) + len(REASONS),
        "passed": sum(1 for auto in models if auto),
        "models": len(models),
    }


@functools.cache
def cases() -> dict[str, list[dict[str, Any]]]:
    """The benchmarks on a CPU, by group."""
    chosen = collections.defaultdict(list)
    for case in json.loads((ROOT / "benchmarks/results/cpu.json").read_text())["cases"]:
        if case["name"] != "later/LoRA":  # a reference, which jNO has
            chosen[case["group"]].append(case)
    return chosen


def ratio(group: str, measure: str, over: str) -> str:
    """The median, the smallest and the largest ratio over the cases of a group."""
    ratios = [case["ratios"].get(measure, {}).get(over) for case in cases()[group]]
    medians = [record["median"] for record in ratios if record is not None]
    if not medians:
        return "not measured"
    return f"**{statistics.median(medians):.2f}** ({min(medians):.2f} to {max(medians):.2f})"


def numbers() -> Iterator[tuple[str, str, str]]:
    """The rows of the table: from benchmarks, the pages on models and PEFT, and the zoo."""

    def sides(group: str, measure: str) -> tuple[str, str]:
        return ratio(group, measure, "jno"), ratio(group, measure, "peft")

    yield "ours / theirs, on a CPU: median (least to most)", "jNO", "PEFT"
    yield "---", "---", "---"
    yield "time of a training step, linear layers", *sides("linear", "step")
    yield "time of a step, convolutions", *sides("conv", "step")
    lacking = ratio("later", "step", "peft")
    later = sum("peft" in case["ratios"].get("step", {}) for case in cases()["later"])
    yield f"time of a step, {later} methods that jNO lacks", "does not have them", lacking
    number = counts()
    have = f"**{number['methods']} methods x {number['kinds']} kinds of layer**"
    reads = f"{number['types']} of PEFT's {number['all_types']} types load"
    yield have, f"{len(cases()['linear'])} methods measured beside jNO's", reads
    where = f"[{number['passed']} of {number['models']}](models.md)"
    yield f"**{where} models of other projects** pass every check", "", ""
