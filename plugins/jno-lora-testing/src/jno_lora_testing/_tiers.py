"""Tiers: what a user may rely on, by the checks that an adapter passes. And a badge for them."""

import json
import pathlib
from collections.abc import Iterable, Mapping

from ._checks_together import MISSING, REFUSED
from ._run import CheckResult, causes_of

# Every check belongs to one tier. A tier includes the tiers before it.
TIERS: Mapping[str, tuple[str, ...]] = {
    # Identity, merging, gradients, files.
    "works": (
        *("contract", "applies-to-total", "applies-to-not-greedy", "answers", "key-forms"),
        *("trainable-fields", "parameter-count", "reads-like-the-layer", "state-round-trip"),
        *("identity-at-init", "adapter-acts", "merge-equals-call", "law", "ranks", "alpha"),
        *("merge-restores-form", "unwrap-restores", "special-inputs", "subclass", "purity"),
        *("gradients", "merge-gradients"),
    ),
    # Stacks, transformations of JAX, dtypes, sharding.
    "solid": (
        *("jit", "vmap", "constructor-vmap-and-scan", "eval-shape", "checkpoint"),
        *("no-lapack-in-step", "no-shared-buffers", "stacked-layers", "applies-to-needs-arrays"),
        *("identity-in-half-precision", "output-dtype", "trained-in-half-precision"),
        *("adapter-dtype", "double-precision", "partition-specs", "sharding", "state-size"),
        "subclass-merge",
    ),
    # Derivatives with respect to the input, statistics, the members that other tools read, and
    # what other distributions do with the adapter.
    "complete": (
        *("input-derivatives", "input-jet", "jet-rules", "residual-gradients", "symmetries"),
        *("matrix", "low-rank-update", "low-rank-scale", "factor-sides", "rank-gate", "penalty"),
        *("poor-statistics", "calibration", "shared-arrays"),
        *("quantized-base", "bank", "conditional"),
    ),
}


def tier_of(results: Iterable[CheckResult]) -> str | None:
    """The highest tier of `TIERS` that all cases reach, or `None`.

    A tier is reached if its checks (also advice) ran, and passed or were not applicable, and the
    tiers before it are reached. A check whose distribution is not installed did not run.
    """
    results, reached = list(results), None
    for tier in TIERS:
        if why_below(tier, results):
            break
        reached = tier
    return reached


def why_below(tier: str, results: list[CheckResult]) -> str:
    """Why the results do not reach the tier, for a message. Empty if they do."""
    failed = {result.check for result in results if result.error is not None}
    causes = {r.check for r in results if r.error is not None and r not in causes_of(results)}
    if names := [name for name in TIERS[tier] if name in failed]:
        return f"{', '.join([name for name in names if name in causes] or names)} failed"
    if missing := {*TIERS[tier]} - {result.check for result in results}:
        return f"{len(missing)} of its checks did not run"
    reasons = {result.not_applicable or "" for result in results if result.check in TIERS[tier]}
    absent = ", ".join(sorted(reason for reason in reasons if reason.endswith(MISSING)))
    return f'{absent}: pip install "jno-lora-testing[complete]"' if absent else ""


def sentence(results: list[CheckResult]) -> str:
    """The tier, and why it is not the next tier."""
    reached = tier_of(results)
    below = next((tier for tier in TIERS if why_below(tier, results)), None)
    reasons = [f"not {below}: {why_below(below, results)}"] if below else []
    by_case: dict[str, set[str]] = {}
    for result in results:
        by_case.setdefault(result.case, set()).add(result.check)
    every = {name for names in TIERS.values() for name in names}
    whole = sum(checks == every for checks in by_case.values())
    reasons.append(f"all checks on {whole} of {len(by_case)} cases")
    refused = dict.fromkeys(
        result.check for result in results if (result.not_applicable or "").startswith(REFUSED)
    )
    if refused:
        reasons.append(f"refused: {', '.join(refused)}")
    return f"Tier: {reached or 'none'} ({'; '.join(reasons)})"


_COLORS = {None: "#e05d44", "works": "#dfb317", "solid": "#97ca00", "complete": "#4c1"}
_BADGE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="140" height="20" role="img" aria-label="{title}">
  <title>{title}</title>
  <rect width="70" height="20" rx="3" fill="#555"/>
  <rect x="60" width="80" height="20" rx="3" fill="{color}"/>
  <g fill="#fff" text-anchor="middle" font-family="Verdana,sans-serif" font-size="11">
    <text x="30" y="14">{label}</text>
    <text x="100" y="14">{message}</text>
  </g>
</svg>
"""


def write_badge(file: pathlib.Path, tier: str | None) -> None:
    """Write the tier as an SVG, or to a file `.json` for the endpoint of shields.io."""
    label, message, color = "jno-lora", tier or "no tier", _COLORS[tier]
    if file.suffix == ".json":
        badge = {"schemaVersion": 1, "label": label, "message": message, "color": color}
        text = json.dumps(badge)
    else:
        title = f"{label}: {message}"
        text = _BADGE.format(title=title, label=label, message=message, color=color)
    file.write_text(f"{text}\n", "utf-8")
