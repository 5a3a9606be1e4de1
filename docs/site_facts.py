"""Fill in facts about the project from the files that state them.

`mkdocs.yml` names this file as a hook, which gives the site the version and the link to the
repository. The table of numbers on the first page, the README's numbers and the list of the kit's
checks are written by

    python docs/site_facts.py
"""

import collections
import inspect
import json
import pathlib
import re
import statistics
import tomllib
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
NUMBERED = ("README.md", "docs/index.md")
CHECKS_PAGE = "docs/checks.md"
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


def with_numbers(page: str) -> str:
    """The text of a page of `NUMBERED`, with the current numbers: in the README, as sentences."""
    rows = [*numbers()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return _with("numbers", f"{_sentences(table) if page == 'README.md' else table}\n", page)


def _sentences(table: str) -> str:
    """The numbers of the table that help to decide."""
    found = re.search(
        r"step, linear layers \| \*\*([\d.]+)\*\*.*?\| \*\*([\d.]+)\*\*.*"
        r"\*\*(\d+) methods x (\d+) kinds.*\| (\d+ of PEFT's \d+ types) load.*\[(\d+ of \d+)\]",
        table,
        re.DOTALL,
    )
    assert found is not None, f"the table of numbers has another form:\n{table}"
    jno, peft, methods, kinds, types, models = found.groups()
    return (
        f"On a CPU, a training step of linear layers takes {jno} times as long as jNO's, and "
        f"{peft} times as long as PEFT's\n([every case](docs/evidence/benchmarks.md)). {methods} "
        f"methods adapt {kinds} kinds of layer. {types} load, and [{models}](docs/models.md)\n"
        "models of other projects pass every check."
    )


def with_checks() -> str:
    """The text of the page of the kit's checks, with the current list."""
    from jno_lora_testing import TIERS

    rows = "\n".join(f"| *{tier}* | {', '.join(names)} |" for tier, names in TIERS.items())
    tiers = f"| tier | its checks |\n|---|---|\n{rows}\n"
    sections = "\n".join(f"## {level.capitalize()}\n\n{checks(level)}" for level in _LEVELS)
    return _with("checks", f"\n{tiers}\n{sections}\n", CHECKS_PAGE)


def _with(name: str, content: str, page: str) -> str:
    """The text of a page, with other content between its two comments of that name."""
    text, count = re.subn(
        rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)",
        lambda _: content,
        (ROOT / page).read_text(),
        flags=re.DOTALL,
    )
    assert count == 1, f"{page} should have the comments `{name}` once"
    return text


def checks(level: str) -> str:
    """A section for each check of one level: its id, what it means, and what to do."""
    from jno_lora_testing import ADVICE, CHECKS
    from jno_lora_testing._conformance import REMEDIES

    names = [name for name in CHECKS if (name in ADVICE) == (level == "advice")]
    return "\n".join(
        f"### {name}\n\n{inspect.cleandoc(CHECKS[name].__doc__ or '')}\n\n"
        f"*What to do:* {REMEDIES[name]}\n"
        for name in names
    )


def numbers() -> Iterator[tuple[str, str, str]]:
    """The rows of the table: from benchmarks, the pages on models and PEFT, and the zoo."""
    from jno.lora.extending import default_registry
    from jno_lora_zoo import METHODS

    cases = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())["cases"]
    chosen = collections.defaultdict(list)
    for case in cases:
        if case["name"] != "later/LoRA":  # a reference, which jNO has
            chosen[case["group"]].append(case)

    def ratio(group: str, measure: str, over: str) -> str:
        """The median, the smallest and the largest ratio over the cases of a group."""
        ratios = [case["ratios"].get(measure, {}).get(over) for case in chosen[group]]
        medians = [record["median"] for record in ratios if record is not None]
        if not medians:
            return "not measured"
        least, most = min(medians), max(medians)
        return f"**{statistics.median(medians):.2f}** ({least:.2f} to {most:.2f})"

    def sides(group: str, measure: str) -> tuple[str, str]:
        return ratio(group, measure, "jno"), ratio(group, measure, "peft")

    yield "ours / theirs, on a CPU: median (least to most)", "jNO", "PEFT"
    yield "---", "---", "---"
    yield "time of a training step, linear layers", *sides("linear", "step")
    yield "time of a step, convolutions", *sides("conv", "step")
    lacking = ratio("later", "step", "peft")
    later = sum("peft" in case["ratios"].get("step", {}) for case in chosen["later"])
    yield f"time of a step, {later} methods that jNO lacks", "does not have them", lacking

    # A class joins a method and a kind of layer, and a plugin for a kind has every method.
    classes = [
        wrapper.cls for record in default_registry().records() for wrapper in record.wrappers
    ]
    of_methods = collections.Counter(cls.__bases__[0] for cls in classes)
    kinds = min(of_methods[method] for method in METHODS)
    table_of_types = (ROOT / "docs/peft-types.md").read_text()
    types = re.findall(r"^\| `\w+` \| (yes|no) \|", table_of_types, re.M)
    have = f"**{len(METHODS)} methods x {kinds} kinds of layer**"
    theirs = len(chosen["linear"])
    reads = f"{types.count('yes')} of PEFT's {len(types)} types load"
    yield have, f"{theirs} methods measured beside jNO's", reads

    report = (ROOT / "docs/models.md").read_text()
    table, failures = report.partition("\n## Failures\n")[::2]
    assert failures.startswith("\nNone."), "docs/models.md should have no failures"
    rows = re.findall(r"^\| [\w-]+ \|(?: (\d+) \|| \*none\* \|){2}", table, re.M)
    passed = sum(1 for auto in rows if auto)
    where = f"[{passed} of {len(rows)}](models.md)"
    yield f"**{where} models of other projects** pass every check", "", ""


if __name__ == "__main__":
    for page in NUMBERED:
        (ROOT / page).write_text(with_numbers(page))
    (ROOT / CHECKS_PAGE).write_text(with_checks())
