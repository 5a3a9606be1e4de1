"""Every variant on every model: the laws of an adapter, on models that nobody here wrote.

The default and `"auto"` are checked in full. For the other variants, what takes no further
compilation is checked: see `_checks.CHECKS` and `_checks.FURTHER_CHECKS`.
"""

import functools
import json
import re

import jax
import pytest

from jno.lora import Net, SelectionError, plan_lora

from ._checks import ALPHA, CHECKS, FURTHER_CHECKS, RANK, adapt, problems
from ._model import Model
from ._trial import Trial, relative
from .zoo_of_models import every_model

VARIANTS = (
    *("default", "auto", "lora", "rslora", "lora-fa", "dora", "pissa", "milora", "lora-xs"),
    *("vera", "ia3", "lokr", "oft"),
)
_IN_FULL = ("default", "auto")


@functools.lru_cache(maxsize=1)
def trial_of(model: Model) -> Trial:
    # The cases of one model follow each other; what was compiled for another is of no use.
    jax.clear_caches()
    return Trial(model)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "model",
    # `--dist loadgroup` leaves a model to one worker, which then compiles it once.
    [pytest.param(m, id=m.name, marks=pytest.mark.xdist_group(m.name)) for m in every_model()],
)
def test_matrix(model, variant, record_property):
    wrappers = None if variant == "default" else variant
    cell = {"model": model.name, "note": model.note, "variant": variant}
    record_property("cell", json.dumps(cell))  # for the report, should the rest fail
    trial = trial_of(model)
    plan = plan_lora(trial.model, RANK, ALPHA, wrapper=wrappers)
    if plan.problem is not None:
        with pytest.raises(SelectionError) as error:
            Net(trial.model).lora(RANK, ALPHA, wrapper=wrappers)
        refusal = str(error.value)
        # It says of each layer why not: "path: Layer (reason)".
        cell["refused"] = sorted(set(re.findall(r": (\w+ \(.*\))$", refusal, re.MULTILINE)))
        record_property("cell", json.dumps(cell))
        assert not model.adaptable or (variant == "default" and model.layers == 0), refusal
        assert cell["refused"], f"no layer is refused with a reason:\n{refusal}"
        return
    wrapped = plan.wrapped
    cell["layers"] = len(wrapped)
    cell["left out"] = sorted((r.layer, r.explanation) for r in plan if r.status != "wrapped")
    found = []
    if variant == "default" and len(wrapped) != model.layers:
        found.append(f"{len(wrapped)} layers are wrapped, expected {model.layers}")
    if len(wrapped) < max(model.layers, 1):
        found.append(f"fewer layers ({len(wrapped)}) are wrapped than by default")
    case = adapt(trial, wrappers)
    checks = CHECKS | FURTHER_CHECKS if variant in _IN_FULL else CHECKS
    found += problems(checks, trial, case)
    cell["problems"] = found
    cell["tolerance"] = relative(case.tolerance, case.merged_outputs)
    record_property("cell", json.dumps(cell))
    if found:
        pytest.fail("\n".join(found), pytrace=False)
