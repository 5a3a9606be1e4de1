"""Facts about the project, from the files that state them.

`.ci/mkdocs.yml` names this file as a hook, which gives the site the version and the link to the
repository. `docs/update.py` writes the rest: the numbers of the first page and of the README, the
list of the kit's checks, and the counts in prose.
"""

import collections
import functools
import json
import pathlib
import re
import statistics
import tomllib
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]

# What the user of an adapter meets if it fails a check of the kit.
FAILURES = {
    # works
    "contract": "A required member is missing, or `adapter_fields` names no field: `net.lora` "
    "raises.",
    "applies-to-total": "`applies_to` doesn't claim its own layer, raises for an object of a "
    "model, or claims something that is no layer.",
    "applies-to-not-greedy": "The adapter takes layers or containers of other kinds from the "
    "adapters that fit them.",
    "answers": "`why_not`, `stack_ndim`, `is_stateful` or `alpha` returns a wrong value: plans "
    "raise, or the layers of a stack share one adapter.",
    "key-forms": "Two adapters from one key differ, the key is stored as a leaf, or every layer "
    "starts with the same random numbers.",
    "trainable-fields": "A field of `adapter_fields` can't train, or a static field holds an "
    "array, which JAX can't trace.",
    "parameter-count": "The number of trained parameters isn't the case's `parameters`.",
    "reads-like-the-layer": "A model that reads `layer.weight` gets other values than the merged "
    "layer's.",
    "state-round-trip": "An adapter loaded from a file computes or trains differently from the "
    "saved one.",
    "identity-at-init": "Adding the adapter changes the model's outputs before any training.",
    "adapter-acts": "Training has no effect on the outputs.",
    "merge-equals-call": "The merged model's outputs differ from the trained model's.",
    "law": "The merged layer isn't the paper's, although call and merge may agree.",
    "ranks": "Rank 1, rank 3, or a rank above the layer's size crashes or computes wrong values.",
    "alpha": "`alpha=0` or a fractional alpha crashes, breaks the law, or has no effect.",
    "merge-restores-form": "Merging changes the layer's class, structure, shapes or dtypes; or "
    "`merge` of an adapter that can't be merged doesn't raise.",
    "unwrap-restores": "`net.unwrap()` doesn't return the original layer.",
    "special-inputs": "Call and merge differ for zeros, for large or negative inputs, or for the "
    "indices 0 and -1.",
    "subclass": "Around a subclass with its own `__call__`, a fresh adapter changes the outputs.",
    "purity": "The constructor, the call or `merge` modifies its arguments, has side effects, or "
    "isn't deterministic, so compiled programs are wrong.",
    "gradients": "All gradients are zero, so nothing trains; or one stays zero, or isn't finite.",
    "merge-gradients": "A loss that merges first trains differently from a loss that calls the "
    "adapter.",
    # solid
    "jit": "The constructor or the call fails under `jit`, or gives other values there.",
    "vmap": "A batch under `vmap` gets other outputs than a loop.",
    "constructor-vmap-and-scan": "`vmap` can't build a stack of adapters, or `lax.scan` over it "
    "gives other values.",
    "eval-shape": "A template from `eqx.filter_eval_shape` has other shapes or another structure "
    "than the adapter.",
    "checkpoint": "Rematerialisation changes the gradients.",
    "no-lapack-in-step": "The step calls an SVD, QR, inverse or solve; several of them can "
    "deadlock on a CPU with few cores.",
    "no-shared-buffers": "Donating the adapter to a compiled step fails.",
    "stacked-layers": "A slice of a stacked layer is adapted or merged wrongly.",
    "applies-to-needs-arrays": "`applies_to` raises for a layer without arrays, or claims it.",
    "identity-in-half-precision": "On a half-precision layer, a fresh adapter changes the outputs "
    "by more than rounding.",
    "output-dtype": "The output has another dtype than the layer's, which promotes or breaks the "
    "layers behind it.",
    "trained-in-half-precision": "On a half-precision layer, the trained adapter or the merged "
    "layer is off by more than rounding.",
    "adapter-dtype": "The trained arrays are in half precision, where small updates vanish.",
    "double-precision": "With x64, some part computes in float32; or a symmetry that the layer "
    "has in float64 is lost.",
    "partition-specs": "`partition_specs` names something that is no field, or an axis that the "
    "array or the mesh lacks.",
    "sharding": "On a mesh, arrays are on other devices than the layer, outputs differ, or the "
    "merged layer loses its sharding. (Needs several devices.)",
    "state-size": "A file holds more than a hundred times as many frozen numbers as the layer.",
    "subclass-merge": "Around a subclass with its own `__call__`, call and merge differ: it "
    "scales a merged weight, but not an added update.",
    # complete
    "input-derivatives": "Derivatives by the input, up to third order, differ from the merged "
    "layer's: losses on an equation are wrong.",
    "input-jet": "`jax.experimental.jet` computes other Taylor terms than for the merged layer.",
    "jet-rules": "`jax.experimental.jet` lacks a rule for an operation and raises.",
    "residual-gradients": "A loss on the Laplacian has other gradients than through `merge()`.",
    "symmetries": "The trained adapter or the merged layer breaks a symmetry of the layer.",
    "matrix": "`matrix` isn't what the update is added to: `to_lora` is wrong.",
    "low-rank-form": "`low_rank_form` isn't the change that `merge` makes: `to_lora`, `save_peft` "
    "and banks are wrong.",
    "low-rank-scale": "`low_rank_scale` isn't the scale of the update: `combine`, "
    "`scale_adapters` and `save_peft` are wrong.",
    "factor-sides": "Optimisers that treat `A` and `B` differently pair the wrong arrays.",
    "rank-gate": "A direction that is switched off still acts, or switching it recompiles.",
    "penalty": "The penalty isn't one finite number, moves frozen arrays, or moves nothing.",
    "poor-statistics": "A layer that saw only zeros, or one vector, starts with NaN or changes "
    "the outputs.",
    "calibration": "`collect_statistics` collects wrong shapes, or values that depend on the "
    "batching.",
    "shared-arrays": "Layers that should share an array don't, its gradient isn't the sum over "
    "them, or their merged layers differ.",
    "quantized-base": "The adapter's outputs on quantised weights differ from those on the "
    "dequantised ones.",
    "bank": "In a bank, the adapter gives other outputs than alone.",
    "conditional": "As a function of a parameter, the adapter's calls, merges, derivatives or "
    "files are wrong.",
}


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
    """A table for each tier of the kit's checks."""
    from jno_lora_testing import TIERS

    return "\n" + "\n".join(f"### {tier.capitalize()}\n\n{checks_of(tier)}" for tier in TIERS)


def checks_of(tier: str) -> str:
    """The checks of a tier: the id of each, what its failure means, and the remedy of the kit."""
    from jno_lora_testing import ADVICE, CHECKS, TIERS
    from jno_lora_testing._conformance import REMEDIES

    assert CHECKS.keys() == FAILURES.keys(), CHECKS.keys() ^ FAILURES.keys()
    rows = ["| check | if it fails | what to do |", "|---|---|---|"]
    for name in TIERS[tier]:
        shown = f"`{name}` *(advice)*" if name in ADVICE else f"`{name}`"
        remedy = REMEDIES[name]
        rows.append(f"| {shown} | {FAILURES[name]} | {remedy[0].upper()}{remedy[1:]} |")
    return "\n".join(rows) + "\n"


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
