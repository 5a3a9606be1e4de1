"""The study of error bars, in a short form."""

import re
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies._families import QUICK
from studies.uncertainty import _report, fits, source
from studies.uncertainty._distances import DISTANCES, distances
from studies.uncertainty._runs import KEY, RESULTS, Plan, run, with_all
from studies.uncertainty._spreads import PRIORS, laplace, outputs, swag
from studies.uncertainty._ways import ADAPTERS, PRETRAINED

from jno.lora import Net, lora_trainable_filter
from jno_lora_uncertainty import Ensemble, folds

from .conftest import killed, once


@pytest.fixture
def quick():
    return Plan(replace(QUICK, samples=(8,)))


def test_the_study_runs_goes_on_and_is_reported(tmp_path, quick):
    file = tmp_path / "results.jsonl"
    chosen = f"burgers-values/{ADAPTERS}"
    run(file, quick, chosen)
    records = once(file, KEY)
    assert [record["problem"] for record in records] == ["burgers-values"]
    assert all(0 <= record["coverage"] <= 1 for record in records)
    killed(file)
    run(file, quick, chosen)
    again = [{**record, "seconds": 0} for record in once(file, KEY)]
    assert again == [{**record, "seconds": 0} for record in records]
    (tmp_path / "uncertainty.md").write_text((_report.DOCS / "uncertainty.md").read_text())
    page = _report.write_page(file, tmp_path).read_text()
    assert f"| burgers-values | {ADAPTERS} | 8 |" in page


def test_fits_of_a_parameter_are_measured():
    lines = fits.table(seeds=1, steps=2).splitlines()
    assert len(lines) == 2 + sum(len(problem.queries) for problem in fits.PROBLEMS.values())
    assert lines[0] in (_report.DOCS / "uncertainty.md").read_text()
    for line in lines[2:]:
        shares = [float(x) for x in re.findall(r"(\d+) %", line)]
        assert len(shares) >= 3 and all(0 <= share <= 100 for share in shares)


@pytest.fixture(scope="module")
def small():
    """Three members with LoRA on a linear layer, and inputs."""

    def make(key):
        net = Net(eqx.nn.Linear(3, 8, key=jax.random.key(0)), key=key)
        return net.freeze().lora(rank=1)

    ensemble = Ensemble(make, 3, key=jax.random.key(1))
    trainable, _ = ensemble.partition()
    moved = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), trainable
    )
    return ensemble.update(moved), jax.random.normal(jax.random.key(3), (4, 3))


def test_laplace_gives_the_variance_of_the_gauss_newton_posterior(small):
    ensemble, xs = small
    seen = jnp.broadcast_to(xs, (3, *xs.shape))
    mean, variances = laplace(lora_trainable_filter)(ensemble, None, seen, xs, None)
    assert mean.shape == (3, 4, 8) and variances.shape == (len(PRIORS), 3, 4, 8)
    layer = ensemble.member(1)
    assert jnp.allclose(mean[1], jax.vmap(layer)(xs), atol=1e-5)

    def call(A, B, x):
        return eqx.tree_at(lambda a: (a.lora_A, a.lora_B), layer, (A, B))(x)

    jacobians = jax.vmap(jax.jacobian(call, (0, 1)), (None, None, 0))(
        layer.lora_A, layer.lora_B, xs
    )
    J = np.concatenate([np.asarray(part).reshape(4, 8, -1) for part in jacobians], -1)
    known = J[:, ::4].reshape(-1, J.shape[-1])
    prior = PRIORS[2] * np.trace(known @ known.T) / len(known)
    posterior = np.linalg.inv(known.T @ known / prior + np.eye(J.shape[-1]))
    expected = np.einsum("nip,pq,niq->ni", J, posterior, J)
    np.testing.assert_allclose(variances[2, 1], expected, rtol=2e-3, atol=1e-5)


def test_samples_of_swag_have_the_mean_and_the_variance_of_the_snapshots(small):
    ensemble, xs = small
    trainable, _ = ensemble.partition()
    steps = jax.random.normal(jax.random.key(4), (10,))
    snapshots = jax.tree.map(lambda x: x + 1e-3 * steps.reshape(-1, *[1] * x.ndim), trainable)
    mean, variances = swag(ensemble, snapshots, None, xs, jax.random.key(5))
    middle = jax.tree.map(lambda x: x.mean(0), snapshots)
    np.testing.assert_allclose(mean, outputs(ensemble.update(middle), xs), atol=5e-3)
    assert jnp.all(variances > 0) and jnp.max(variances) < 1e-3


def test_the_folds_of_a_single_model_end_with_a_member_that_sees_everything():
    parts = with_all(folds(7, 3, key=jax.random.key(0)))
    assert parts.held_out.sum(1).tolist() == [3, 2, 2, 0]
    for left_out, rows in zip(parts.held_out, parts.rows, strict=True):
        assert set(rows.tolist()) == set(np.flatnonzero(~left_out).tolist())


def test_distances_tell_rough_inputs_from_usual_inputs(small):
    ensemble, xs = small
    sets = {"": (xs, jnp.zeros((4, 8))), "rough": (30 * xs, jnp.zeros((4, 8)))}
    of_members = {name: outputs(ensemble, x) for name, (x, _) in sets.items()}
    found = {name: (of.mean(0), of.std(0), of.std(0)) for name, of in of_members.items()}
    told = distances(ensemble, xs, sets, found)
    assert {f"rough_{name}_auroc" for name in DISTANCES} < told.keys()
    assert all(told[f"rough_{name}_auroc"] > 0.8 for name in DISTANCES)
    mean, std, _ = found["rough"]
    assert told["rough_coverage"] == np.mean(np.abs(mean) <= 1.6449 * std)


def test_verdicts_are_denials_with_their_numbers():
    def record(way, coverage, crps):
        names = dict.fromkeys(KEY, 0) | {"problem": "burgers", "way": way, "samples": 8}
        scored = {"coverage": coverage, "crps": crps, "constant_crps": 2.0, "held_out_crps": 1.0}
        return names | scored

    records = [record(ADAPTERS, 0.91, 1.2), record(PRETRAINED, 0.9, 1.0)]
    worse = {**records[0], "rate": 1, "coverage": 0.0, "held_out_crps": 2.0}
    lines = _report.verdict_lines(_report.at_best_rates([worse, *records]))
    assert lines[0].endswith("met (0.91)")
    assert "not run yet" in lines[1]
    assert "**denied** in 1 of 1 cells (1.2)" in lines[2]
    assert lines[-1].endswith("met (0.6)")


def test_the_page_shows_the_stored_results(tmp_path):
    page = _report.DOCS / "uncertainty.md"
    (tmp_path / "uncertainty.md").write_text(page.read_text())
    # If not: `python -m studies.uncertainty --report`.
    assert _report.write_page(RESULTS, tmp_path).read_text() == page.read_text()


def test_the_study_at_the_source_runs_goes_on_and_is_reported(tmp_path):
    file, quick = tmp_path / "results.jsonl", source.Plan(16, 4, 8, 8, 2, 1)
    with pytest.raises(SystemExit, match="selects no"):
        source.run(file, quick, "nothing")
    source.run(file, quick, "KdV equation/film|heat equation/plain")
    source.run(file, quick, "KdV equation/film")
    records = once(file, source.KEY)
    assert [record["problem"] for record in records] == ["heat equation", "KdV equation"]
    for record in records:
        # At the source, the intervals are lines without data of it.
        assert record["before"][0] < record["after"][0] and len(record["after"]) == 9
    page = (_report.DOCS / "uncertainty.md").read_text()
    (tmp_path / "uncertainty.md").write_text(page)
    # If not: `python -m studies.uncertainty.source --report`.
    assert source.write_page(source.RESULTS, tmp_path).read_text() == page
