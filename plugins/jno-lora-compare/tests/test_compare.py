"""`compare`: adapters from the same start, under the same budget, in one table."""

import csv
import itertools
import math
import types
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.core.toys import ToyConv, ToyLinear, ToyScale, same

import jno_lora_compare._compare as comparing
import jno_lora_train._trainer as trainer_module
from jno.lora import (
    About,
    MatrixAdapter,
    Net,
    Registry,
    SelectionError,
    Shared,
    lora_report,
)
from jno_lora_compare import Comparison, ComparisonRow, compare
from jno_lora_compare._fitting import parameter_count, running_means


class GradientDescent(NamedTuple):
    rate: float = 0.1

    def init(self, params):
        return jnp.zeros(())

    def update(self, gradient, state, params):
        return jax.tree.map(lambda g: -self.rate * g, gradient), state + 1


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


SETTINGS = {"steps": 20, "key": jax.random.key(2), "optimizer": GradientDescent()}


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))


@pytest.fixture(scope="module")
def batches():
    keys = jax.random.split(jax.random.key(1), 2)
    xs = [np.asarray(jax.random.normal(key, (6, 3))) for key in keys]
    return [(x, np.sin(x[:, :2])) for x in xs]


NAMES = ["ToyLinear", "ToyScale", "ToyConv, ToyLinear", "ToyConv", "nobody", "full", "none"]


@pytest.fixture(scope="module")
def comparison(model, batches) -> Comparison:
    registry = Registry(discover=False)  # an application's own
    registry.register(ToyScale)
    wrappers = [ToyLinear, "ToyScale", [ToyConv, ToyLinear], ToyConv, *NAMES[4:]]
    settings = {"rank": 2, "alpha": 2.0, "registry": registry, **SETTINGS}
    return compare(model, loss, batches, wrappers, **settings)


@pytest.fixture
def run(model, batches):
    """`compare` on the task of this module, for few steps, with some arguments changed."""

    def run(*wrappers, **changed):
        task = {"model": model, "loss": loss, "batches": batches, "wrappers": list(wrappers)}
        return compare(**{**task, **SETTINGS, "steps": 2, "rank": 2, **changed})

    return run


def row_of(comparison, name):
    return next(row for row in comparison if row.name == name)


def test_a_row_for_each_candidate_counts_its_parameters_and_costs(comparison, model):
    assert [row.name for row in comparison] == NAMES and not comparison.interrupted
    trained = [row for row in comparison if row.error is None]
    low_rank = 2 * (3 + 4) + 2 * (4 + 2)
    assert {row.name: row.trainable for row in trained} == {
        "ToyLinear": low_rank,
        "ToyScale": 4 + 2,
        "ToyConv, ToyLinear": low_rank,
        "full": 4 * 3 + 4 + 2 * 4 + 2,
        "none": 0,
    }
    assert all(row.milliseconds > 0 and row.compile_seconds > 0 for row in trained)
    # The forward pass keeps less than the gradient of everything needs.
    assert row_of(comparison, "none").temp_bytes <= row_of(comparison, "full").temp_bytes
    row = row_of(comparison, "ToyScale")
    assert {r.wrapper for r in lora_report(row.model)} == {ToyScale}
    assert same(row.model.layers[0].base, model.layers[0])
    assert not same(row.model.layers[0].gain, jnp.ones(4))
    assert same(model, eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)))  # is not changed


class ToyFromData(ToyLinear, MatrixAdapter):
    needs = ("input_mean",)
    mean: jax.Array

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key)
        self.mean = statistics["input_mean"]

    @classmethod
    def matrix(cls, layer):
        return layer.weight


def test_an_adapter_that_starts_from_data_is_calibrated_on_the_first_batches(run, batches):
    many = [(x + number, y) for number in range(10) for x, y in batches]
    (row,) = run(ToyFromData, batches=many, steps=20)
    first_eight = np.concatenate([x for x, _ in many[:8]])
    mean = row.model.layers[0].mean
    np.testing.assert_allclose(mean, first_eight.mean(axis=0), rtol=1e-5)


def test_a_candidate_may_bring_its_own_arguments_and_calibration(run, batches):
    far = [(x + 5, y) for x, y in batches]
    ranks = {"specs": [{"target": "layers/0", "rank": 1}, {"alpha": 8.0}], "wrapper": ToyLinear}
    rows = run(
        {"name": "mixed", **ranks},
        {"wrapper": ToyLinear, "rank": 1, "alpha": 3.0, "target": "layers/1"},
        ToyFromData,
        {"name": "near", "wrapper": ToyFromData, "statistics_from": (batches, loss)},
        ToyLinear,
        {"name": "needless", "wrapper": ToyLinear, "statistics_from": ([], loss)},
        target="layers",
        statistics_from=(iter(far), loss),
    ).rows
    names = ["mixed", "ToyLinear rank=1 alpha=3.0 target='layers/1'"]
    assert [row.name for row in rows][:2] == names
    assert "none of its adapters starts from data" in rows[-1].error
    mixed, own, _, _, plain = ([*lora_report(row.model)] for row in rows[:-1])
    assert [(row.rank, row.alpha) for row in mixed] == [(1, 1.0), (2, 8.0)]
    assert [(row.path, row.rank, row.alpha) for row in own] == [("layers/1", 1, 3.0)]
    assert [row.rank for row in plain] == [2, 2]
    mean = np.concatenate([x for x, _ in batches]).mean(axis=0)
    for row, expected in ((rows[2], mean + 5), (rows[3], mean)):
        np.testing.assert_allclose(row.model.layers[0].mean, expected, rtol=1e-4, atol=1e-5)


def ones(key, shape):
    return jnp.ones(shape)


class ToyShared(ToyLinear):
    adapter_fields = ("lora_A", "lora_B", "scales")
    scales: Shared

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.scales = Shared("toy-scales", (self.rank,), ones)

    def __call__(self, x):
        return self.base(x) + self.lora_B @ (self.scales.array * (self.lora_A @ x))


def test_adapters_that_share_an_array_are_trained_and_scored(run, batches):
    made = run(ToyShared, score=lambda model: -loss(model, batches[0]), steps=4)
    (row,) = made
    assert f"{row.score:.4g}" in str(made)
    assert row.error is None and row.trainable == 2 * (3 + 4) + 2 * (4 + 2) + 2
    assert row.losses[2] < row.losses[0]  # of the same batch
    assert not np.array_equal(row.model.layers[0].scales.value, np.ones(2))


def test_every_candidate_starts_from_the_model_as_it_is_and_learns(comparison, model, batches):
    start = float(loss(model, batches[0]))
    untrained = row_of(comparison, "none")
    mean = np.mean([float(loss(model, batch)) for batch in batches])
    assert untrained.final_loss == untrained.best_loss == pytest.approx(mean, rel=1e-5)
    for row in comparison:
        if row.error is None:
            assert len(row.losses) == 20 and row.losses[0] == pytest.approx(start, rel=1e-5)
            assert row is untrained or row.best_loss < untrained.final_loss


def test_the_steps_are_those_of_the_optimiser(comparison, model, batches):
    """Against the same training, written by hand."""
    trained, losses = model, []
    for _, batch in zip(range(20), itertools.cycle(batches), strict=False):
        value, gradient = eqx.filter_value_and_grad(loss)(trained, batch)
        trained = eqx.apply_updates(trained, jax.tree.map(lambda g: -0.1 * g, gradient))
        losses.append(float(value))
    row = row_of(comparison, "full")
    assert row.losses == pytest.approx(losses, rel=1e-4)
    for actual, expected in zip(row.model.layers, trained.layers, strict=True):
        assert np.allclose(actual.weight, expected.weight, atol=1e-5)


def test_the_error_on_what_the_model_knew_is_shown_before_and_after(run, model, batches, tmp_path):
    earlier = [(x[:4] - 3, y[:4]) for x, y in batches]
    made = run("none", ToyConv, ToyScale, "full", keep=earlier)
    before = np.mean([float(loss(model, batch)) for batch in earlier])
    none, failed, _, full = made.rows
    assert made.kept_error == none.kept_error == pytest.approx(before, rel=1e-5)
    after = np.mean([float(loss(full.model, batch)) for batch in earlier])
    assert full.kept_error == pytest.approx(after, rel=1e-5) and after != before
    assert failed.error is not None and failed.kept_error is None
    (line,) = (line.split() for line in str(made).splitlines() if line.split()[:1] == ["full"])
    assert line[2:4] == [f"{before:.4g}", f"{full.kept_error:.4g}"]
    made.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        assert float([*csv.DictReader(file)][3]["kept_error"]) == full.kept_error
    # By another error than the loss.
    worst = lambda model, batch: jnp.max(jnp.abs(jax.vmap(model)(batch[0])))  # noqa: E731
    expected = np.mean([float(worst(model, batch)) for batch in earlier])
    assert run("none", keep=(earlier, worst)).kept_error == pytest.approx(expected, rel=1e-5)


def test_candidates_that_fail_are_rows_with_their_errors_which_the_table_and_the_file_show(
    comparison, tmp_path
):
    for name, error in (("ToyConv", "SelectionError: the call (every"), ("nobody", "Unknown")):
        row = row_of(comparison, name)
        assert row.error.startswith(error) and row == ComparisonRow(name, error=row.error)
    text = str(comparison)
    assert text.startswith("7 candidates, 20 steps each")
    (line,) = (line.split() for line in text.splitlines() if "ToyConv, ToyLinear" in line)
    assert line[2] == "26"
    assert text.index("nobody: ") > text.index("full")
    comparison.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NAMES
    assert float(rows[0]["final_loss"]) == comparison.rows[0].final_loss
    assert rows[3]["final_loss"] == "" and rows[3]["error"] == comparison.rows[3].error


def test_losses_are_averaged_over_a_tenth_of_the_steps_and_complex_numbers_count_twice():
    assert parameter_count({"w": jnp.ones((2, 3), jnp.complex64), "b": jnp.ones(3)}) == 12 + 3
    assert running_means([3.0, 1.0, 2.0], 1) == [3.0, 1.0, 2.0]
    assert running_means([4.0, 2.0, 0.0, 4.0], 2) == [3.0, 1.0, 2.0]


def test_a_diverged_loss_is_never_the_best(run):
    (row,) = run("full", optimizer=GradientDescent(1e6), steps=20)
    assert not math.isfinite(row.final_loss)
    assert row.best_loss == pytest.approx(np.mean(row.losses[:2]), rel=1e-5)


@pytest.mark.parametrize("part", ["start", "compile", "fit"])
def test_interrupting_keeps_what_is_finished(run, comparison, model, monkeypatch, part):
    cls, name = (comparing, "adapt") if part == "start" else (trainer_module.Trainer, part)
    calls, original = itertools.count(), getattr(cls, name)

    def interrupted(*args, **kwargs):
        if next(calls) == 1:  # at the second candidate
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(cls, name, interrupted)
    made = run("full", "none", ToyScale, steps=20)
    assert [row.name for row in made] == ["full"] and made.interrupted
    assert made.rows[0].losses == row_of(comparison, "full").losses
    assert "Interrupted" in str(made) and repr(made).endswith(", interrupted)")
    assert same(model, eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)))  # is not changed


def test_an_iterator_without_end_is_read_once_and_shared(run, batches):
    taken = []

    def stream():
        for batch in itertools.cycle(batches):
            taken.append(batch)
            yield batch

    first, second = run(ToyLinear, {"name": "again", "wrapper": ToyLinear}, batches=stream())
    assert len(taken) == 2 and first.losses == second.losses


# --- arguments


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wrappers": []}, "at least one candidate"),
        ({"wrappers": ["full", ["lora", None]]}, "`wrappers` holds"),
        ({"wrappers": ["full", {"wraper": "lora"}]}, "did you mean 'wrapper'"),
        ({"wrappers": ["full", {"rank": 2}]}, "names no adapter"),
        (
            {"wrappers": [{"wrapper": ToyFromData, "statistics": {}}]},
            "'statistics'.*statistics_from",
        ),
        ({"wrappers": ["full", {"name": "full", "wrapper": ToyLinear}]}, "Two .* are called 'full"),
        ({"steps": 0}, "`steps` must be an integer of at least 1, but is 0"),
        ({"statistics_from": (1,)}, r"a pair `\(batches, loss\)`"),
        # None of the adapters fits.
        ({"wrappers": [ToyLinear, "full"], "target": "laiers"}, "selects no layer"),
        ({"wrappers": ["nobody", "none"]}, "No adapter or variant is called 'nobody'"),
        ({"wrappers": [ToyLinear], "rank": [2, 4]}, "rank"),
        ({"key": 0}, "must be one random key"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_data_are_read(
    run, batches, changed, message, unchecked
):
    supply = iter(batches)
    with pytest.raises(SelectionError, match=message):
        run(**{"wrappers": ["full"], "batches": supply, **changed})
    assert len(list(supply)) == len(batches)


X = np.ones((6, 3), np.float32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batches": []}, "holds no batch"),
        ({"batches": [(X, X), (X[:2], X)]}, r"batch 1 differs from.*\[2, 3\].*\[6, 3\]"),
        ({"batches": [(X, X), [X, X]]}, "same containers.*batch 1 differs"),
        ({"loss": lambda model, batch: jax.vmap(model)(batch[0])}, "one real number.*2"),
        ({"keep": iter([1])}, "`keep` must be a list of batches"),
        ({"keep": ([X], lambda model, batch: batch)}, r"`error\(model, batch\)` must return one"),
    ],
)
def test_data_and_losses_that_make_no_sense_are_refused(run, changed, message, unchecked):
    with pytest.raises(SelectionError, match=f"(?s){message}"):
        run("full", **changed)


def test_a_model_with_adapters_or_a_net_is_refused(run, model):
    net = Net(model).lora(1, wrapper=ToyScale)
    with pytest.raises(SelectionError, match=r"(?s)carries adapters already:.*merge_lora"):
        run("full", model=net.module)
    with pytest.raises(SelectionError, match=r"^compare takes a model.*Give net\.module$"):
        run("full", model=net)


def test_an_error_in_the_loss_is_the_users_and_says_where(run):
    def broken(model, batch):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug") as caught:
        run("full", loss=broken)
    assert "before any adapter" in "".join(caught.value.__notes__)


def variant(base, name, family):
    return type(name.title(), (base,), {"variant": name, "about": About(family=family)})


def test_all_stands_for_every_variant_that_takes_a_layer(run):
    registry = Registry(discover=False)
    registry.register(variant(ToyLinear, "first", "turns"))
    registry.register(variant(ToyLinear, "second", "adds"))
    registry.register(variant(ToyConv, "elsewhere", "adds"))
    registry.register(variant(ToyScale, "named", "adds"))
    found = run("none", "named", "all", registry=registry, steps=1)
    # By family, without the variant that was named already and without that of other layers.
    assert [row.name for row in found] == ["none", "named", "second", "first"]
    assert [row.error for row in found] == [None] * 4
    assert [row.name for row in run(wrappers="full", steps=1)] == ["full"]


# --- several learning rates: each candidate at its best, as the loss or a score says

RATES = (1e-3, 1e-1, 1e3)  # too small, good, and too large


@pytest.fixture(scope="module")
def linear():
    return eqx.nn.Linear(3, 2, key=jax.random.key(0))


@pytest.fixture(scope="module")
def squares():
    x = jax.random.normal(jax.random.key(1), (8, 3))
    return [(x, x[:, :2] ** 2)]


def compared(model, batches, wrappers=("lora", "full", "none"), **changed):
    settings = {"steps": 10, "key": jax.random.key(2), "rank": 1, "learning_rate": RATES}
    return compare(model, loss, batches, wrappers, **settings | changed)


@pytest.fixture(scope="module")
def at_rates(linear, squares):
    return compared(linear, squares)


def test_each_is_trained_at_its_best_rate(at_rates, linear, squares):
    assert "at the best of the rates 0.001, 0.1, 1000" in str(at_rates)
    for row in at_rates.rows[:2]:
        alone = [compared(linear, squares, row.name, learning_rate=rate).rows[0] for rate in RATES]
        best = min(alone, key=lambda one: one.final_loss)
        assert row.learning_rate == best.learning_rate == 1e-1
        assert row.losses == pytest.approx(best.losses, rel=1e-6)
    nothing = at_rates.rows[-1]
    assert (nothing.name, nothing.learning_rate) == ("none", None)
    assert len(set(nothing.losses)) == 1 and len(nothing.losses) == 10


def test_a_score_decides_instead_of_the_loss(linear, squares):
    def moved_least(trained):
        """Without a merge: an adapter that trained at a small rate hardly changes the output."""
        x, _ = squares[0]
        return -jnp.max(jnp.abs(jax.vmap(trained)(x) - jax.vmap(linear)(x)))

    rows = {row.name: row for row in compared(linear, squares, score=moved_least)}
    assert rows["lora"].learning_rate == rows["full"].learning_rate == 1e-3
    assert rows["none"].score == 0.0
    for row in rows.values():
        assert row.score == float(moved_least(row.model))


def test_later_numbers_of_a_score_decide_between_equal_ones(linear, squares):
    def tied(trained):
        return 0.5, -loss(trained, squares[0])

    comparison = compared(linear, squares, score=tied)
    assert [row.learning_rate for row in comparison] == [1e-1, 1e-1, None]
    assert [row.score for row in comparison] == [0.5] * 3
    assert " score " in str(comparison)


def test_no_number_is_worse_than_any(linear, squares):
    def score(trained):
        # Of the model at the largest rate, which is far from everything.
        value = loss(trained, squares[0])
        return jnp.where(value < 1e3, -1e6, jnp.nan)

    comparison = compared(linear, squares, score=score, learning_rate=(1e3, 1e-3))
    assert " rate " in str(comparison)
    rows = comparison.rows
    assert rows[1].learning_rate == 1e-3 and not math.isnan(rows[1].score)


def test_half_precision_trains_as_well(linear, squares):
    half, batch = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (linear, squares))
    rates = np.logspace(-2, -1, 2)
    full, nothing = compared(half, batch, ["full", "none"], learning_rate=rates)
    assert full.final_loss < 0.9 * nothing.final_loss
    assert full.model.weight.dtype == jnp.bfloat16


def test_an_optimiser_has_a_rate_of_its_own(linear, squares):
    with pytest.raises(SelectionError, match="leave out `learning_rate` or"):
        compared(linear, squares, optimizer=optax.sgd(1e-2))


@pytest.mark.parametrize(
    "rates",
    [(), 0.0, (1e-3, -1.0), float("nan"), "large"],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_a_rate_that_cannot_train_is_refused(linear, squares, rates):
    with pytest.raises(SelectionError, match="must be a positive number, or several"):
        compared(linear, squares, learning_rate=rates)


# --- compilation and times


def test_a_weakly_typed_parameter_does_not_have_later_steps_compiled(run):
    model = {"layer": eqx.nn.Linear(2, 2, key=jax.random.key(0)), "shift": jnp.asarray(2.0)}
    traced = itertools.count()

    def loss(model, x):
        next(traced)
        return jnp.mean((jax.vmap(model["layer"])(x) - model["shift"]) ** 2)

    run("full", model=model, loss=loss, batches=[jnp.ones((3, 2))], steps=3)
    assert next(traced) == 2  # the check of the loss, and the step


def test_the_clock_times_steps_and_compilation(run, monkeypatch):
    ticks = itertools.count(100.0, 0.25)
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(trainer_module, "time", clock)
    rows = run("none", "full", steps=3).rows
    assert [(row.milliseconds, row.compile_seconds) for row in rows] == [(250.0, 0.25)] * 2
