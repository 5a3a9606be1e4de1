"""The study of large models: its stored weights, its methods, and its page."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies import _families, _weights
from studies._families import FULL, QUICK
from studies.conditional import _runs as conditional
from studies.large import _models, _report
from studies.large._plans import CONDITIONAL, PLAN
from studies.operators import _runs as operators

from .test_conditional import TASK
from .test_operators import PROBLEM

TINY = replace(QUICK, samples=(16,), pool=16, steps=4, every=2)


@pytest.mark.parametrize("family", [_models.FNO, _models.TRANSFORMER], ids=lambda f: f.name)
def test_the_repository_stores_the_models_of_more_than_a_million_parameters(family):
    model = family.make(jax.random.key(1))
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    assert not any(map(jnp.iscomplexobj, arrays))
    file = _weights.FOLDER / f"{_families._recipe(family, FULL, model)}.npz"
    assert file.stat().st_size < 5e6
    with np.load(file) as parts:
        assert parts["low"].size == sum(leaf.size for leaf in arrays) > 1e6


def test_the_stored_weights_solve_the_source_setting():
    model = _families.pretrained(_models.FNO, FULL)
    fields, solutions = _families.simulate(_models.FNO, 1000, 4, _models.FNO.source)
    predicted = eqx.filter_jit(_models.FNO.apply)(model, fields)
    assert jnp.mean(_families.relative_errors(predicted, solutions)) < 0.04


def test_the_page_tells_what_the_records_say(tmp_path, monkeypatch):
    monkeypatch.setattr(_families, "CACHE", tmp_path / "cache")
    effort = replace(TINY, seeds=2)
    plan = replace(PLAN, problems=(PROBLEM,), methods=PLAN.methods[:2], effort=effort)
    plain = [method for method in CONDITIONAL.main if method.modulation is None]
    values = replace(CONDITIONAL, tasks=(TASK,), main=plain, effort=replace(TINY, batch=4))
    results, by_value = tmp_path / "large.jsonl", tmp_path / "large-conditional.jsonl"
    operators.run(results, plan)
    conditional.run(by_value, values)
    (tmp_path / "large-study.md").write_text((_report.DOCS / "large-study.md").read_text())
    page = _report.write_page(results, tmp_path, plan, by_value, values).read_text()
    cell = operators.Done(operators.read(results)).chosen("linear", "full", 16, 0)
    assert f"| `full` | 100 % | {cell['test']:.3f} |" in page
    assert "### Linear, every viscosity" in page and "full at the value | 16 at the value" in page
    assert "The means over 2 seeds:\n\n| method | trained | 16 | seconds |" in page
    full_alone = replace(plan, methods=PLAN.methods[:1])
    page = _report.write_page(results, tmp_path, full_alone, by_value, values).read_text()
    assert "No adapter was run with every number" in page and "The means over" not in page
