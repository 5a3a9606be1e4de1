"""The study of large models: its weights, its methods, and its page."""

import re
from dataclasses import replace
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies import _families
from studies._families import FULL, QUICK
from studies.conditional import _runs as conditional
from studies.large import _models, _report, store
from studies.large._plans import CONDITIONAL, PLAN
from studies.operators import _runs as operators

from .test_conditional import TASK
from .test_operators import PROBLEM

TINY = replace(QUICK, samples=(16,), pool=16, steps=4, every=2)


@pytest.mark.parametrize("family", [_models.FNO, _models.TRANSFORMER], ids=lambda f: f.name)
def test_a_model_has_more_than_a_million_parameters_and_predicts_the_change_of_a_field(family):
    model = family.make(jax.random.key(1))
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    assert not any(map(jnp.iscomplexobj, arrays))
    assert sum(leaf.size for leaf in arrays) > 1e6
    fields, solutions = _families.simulate(family, 1000, 2, family.source)
    zero = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, model)
    predict = eqx.filter_jit(family.apply)
    np.testing.assert_array_equal(predict(zero, fields), fields)
    assert predict(model, fields).shape == solutions.shape


def test_weights_that_are_missing_name_the_command_that_pretrains_them(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(_families, "CACHE", tmp_path / "cache")
    family = replace(PROBLEM.family, rate=0.01, command=_models.FNO.command)
    with pytest.raises(FileNotFoundError, match=r"`python -m studies\.large\.store` pretrains"):
        _families.pretrained(family, FULL)
    assert _families.pretrained(family, TINY) is not None  # the command's `--quick` needs no file
    monkeypatch.setattr(store, "FNO", family)
    monkeypatch.setattr(store, "TRANSFORMER", family)
    monkeypatch.setattr(_families, "pretrain", mock.Mock(wraps=_families.pretrain))
    store.main()
    assert _families.pretrain.call_count == 1  # the second time, the file is there
    lines = capsys.readouterr().out.splitlines()
    errors = [float(re.search(r"an error of ([\d.]+) in the source", line)[1]) for line in lines]
    assert len(errors) == 2 and max(errors) < 0.1
    assert _families.pretrained(family, FULL) is not None


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
