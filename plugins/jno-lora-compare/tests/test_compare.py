"""`compare`: adapters from the same start, under the same budget, in one table."""

import csv
import io
import itertools
import logging
import math
import re
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare_cases import SETTINGS, GradientDescent, loss
from tests.core.toys import ToyConv, ToyLinear, ToyScale, same

import jno.lora
import jno_lora_compare._compare as comparing
import jno_lora_train._trainer as trainer_module
from jno.lora import About, Net, Registry, SelectionError, Shared, extract_adapters, lora_report
from jno.lora.extending import Bar, Printed
from jno_lora_compare import Comparison, ComparisonRow, compare
from jno_lora_compare._fitting import parameter_count, running_means


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))


@pytest.fixture(scope="module")
def batches():
    keys = jax.random.split(jax.random.key(1), 2)
    xs = [np.asarray(jax.random.normal(key, (6, 3))) for key in keys]
    return [(x, np.sin(x[:, :2])) for x in xs]


@pytest.fixture(scope="module")
def registry():
    """An application's own registry, as of a third party's adapters."""
    own = Registry(discover=False)
    own.register(ToyScale)
    return own


@pytest.fixture(scope="module")
def comparison(model, batches, registry) -> Comparison:
    wrappers = [ToyLinear, "ToyScale", [ToyConv, ToyLinear], ToyConv, "nobody", "full", "none"]
    return compare(model, loss, batches, wrappers, rank=2, alpha=2.0, registry=registry, **SETTINGS)


def row_of(comparison, name):
    return next(row for row in comparison if row.name == name)


def test_a_complex_number_counts_as_two_parameters():
    assert parameter_count({"w": jnp.ones((2, 3), jnp.complex64), "b": jnp.ones(3)}) == 12 + 3


def test_a_row_for_each_candidate_in_the_order_given(comparison):
    names = ["ToyLinear", "ToyScale", "ToyConv, ToyLinear", "ToyConv", "nobody", "full", "none"]
    assert [row.name for row in comparison] == names
    assert not comparison.interrupted


def test_the_parameters_that_train_are_counted(comparison):
    low_rank = 2 * (3 + 4) + 2 * (4 + 2)
    trainable = {row.name: row.trainable for row in comparison if row.error is None}
    assert trainable == {
        "ToyLinear": low_rank,
        "ToyScale": 4 + 2,
        "ToyConv, ToyLinear": low_rank,
        "full": 4 * 3 + 4 + 2 * 4 + 2,
        "none": 0,
    }


class ToyFromData(ToyLinear):
    """One that keeps the mean of its inputs."""

    needs = ("input_mean",)
    mean: jax.Array

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key)
        self.mean = statistics["input_mean"]

    @classmethod
    def matrix(cls, layer):
        return layer.weight


def test_an_adapter_that_starts_from_data_is_calibrated_on_the_first_batches(model, batches):
    many = [(x + number, y) for number in range(10) for x, y in batches]
    (row,) = compare(model, loss, many, [ToyFromData], rank=2, **SETTINGS)
    assert row.error is None
    first_eight = np.concatenate([x for x, _ in many[:8]])
    mean = row.model.layers[0].mean
    np.testing.assert_allclose(mean, first_eight.mean(axis=0), rtol=1e-5)


def test_a_candidate_may_bring_its_own_arguments_and_calibration(model, batches):
    far = [(x + 5, y) for x, y in batches]
    ranks = {"specs": [{"target": "layers/0", "rank": 1}, {"alpha": 8.0}], "wrapper": ToyLinear}
    rows = compare(
        model,
        loss,
        batches,
        [
            {"name": "mixed", **ranks},
            {"wrapper": ToyLinear, "rank": 1, "alpha": 3.0, "target": "layers/1"},
            ToyFromData,
            {"name": "near", "wrapper": ToyFromData, "calibrate": (batches, loss)},
            ToyLinear,
        ],
        rank=2,
        target="layers",
        calibrate=(iter(far), loss),
        **SETTINGS,
    )
    names = ["mixed", "ToyLinear rank=1 alpha=3.0 target='layers/1'"]
    assert [row.name for row in rows][:2] == names
    assert all(row.error is None for row in rows)
    mixed, own, _, _, plain = ([*lora_report(row.model)] for row in rows)
    _, _, far_row, near_row, _ = rows
    assert [(row.rank, row.alpha) for row in mixed] == [(1, 1.0), (2, 8.0)]
    assert [(row.path, row.rank, row.alpha) for row in own] == [("layers/1", 1, 3.0)]
    assert [row.rank for row in plain] == [2, 2]
    mean = np.concatenate([x for x, _ in batches]).mean(axis=0)
    for row, expected in ((far_row, mean + 5), (near_row, mean)):
        np.testing.assert_allclose(row.model.layers[0].mean, expected, rtol=1e-4, atol=1e-5)


def ones(key, shape):
    return jnp.ones(shape)


class ToyShared(ToyLinear):
    """One whose layers share a vector of scales."""

    adapter_fields = ("lora_A", "lora_B", "scales")
    scales: Shared

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.scales = Shared("toy-scales", (self.rank,), ones)

    def __call__(self, x):
        return self.base(x) + self.lora_B @ (self.scales.array * (self.lora_A @ x))


def test_adapters_that_share_an_array_are_trained_and_scored(model, batches):
    score = lambda model: -loss(model, batches[0])  # noqa: E731
    made = compare(model, loss, batches, [ToyShared], rank=2, score=score, **SETTINGS)
    (row,) = made
    assert f"{row.score:.4g}" in str(made)
    assert row.error is None and row.trainable == 2 * (3 + 4) + 2 * (4 + 2) + 2
    assert row.losses[2] < row.losses[0]  # of the same batch
    assert not np.array_equal(row.model.layers[0].scales.value, np.ones(2))


def test_every_candidate_starts_from_the_model_as_it_is(comparison, model, batches):
    start = float(loss(model, batches[0]))
    for row in comparison:
        if row.error is None:
            assert len(row.losses) == 20
            assert row.losses[0] == pytest.approx(start, rel=1e-5)


def test_training_helps_more_than_not_training(comparison, batches, model):
    untrained = row_of(comparison, "none")
    mean = np.mean([float(loss(model, batch)) for batch in batches])
    assert untrained.final_loss == untrained.best_loss == pytest.approx(mean, rel=1e-5)
    for name in ("ToyLinear", "ToyScale", "full"):
        assert row_of(comparison, name).best_loss < untrained.final_loss


def test_the_error_on_what_the_model_knew_is_shown_before_and_after(model, batches, tmp_path):
    earlier = [(x[:4] - 3, y[:4]) for x, y in batches]
    wrappers = ["none", ToyConv, ToyLinear, "full"]
    made = compare(model, loss, batches, wrappers, keep=earlier, **SETTINGS)
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


def test_the_error_on_what_the_model_knew_may_be_another_than_the_loss(model, batches):
    worst = lambda model, batch: jnp.max(jnp.abs(jax.vmap(model)(batch)))  # noqa: E731
    inputs = [x for x, _ in batches]
    made = compare(model, loss, batches, ["none"], keep=(inputs, worst), **SETTINGS)
    expected = np.mean([float(worst(model, x)) for x in inputs])
    assert made.kept_error == pytest.approx(expected, rel=1e-5)
    assert "kept after" in str(made)


@pytest.mark.parametrize("keep", [[], 3, iter([1])])
def test_without_earlier_data_there_is_nothing_to_keep(model, batches, keep, unchecked):
    with pytest.raises(SelectionError, match="`keep` must be a list of batches"):
        compare(model, loss, batches, ["none"], keep=keep, **SETTINGS)


def test_the_error_on_what_the_model_knew_must_be_a_number(model, batches):
    error = lambda model, batch: jax.vmap(model)(batch[0])  # noqa: E731
    with pytest.raises(
        SelectionError, match=r"`error\(model, batch\)` must return one real number"
    ):
        compare(model, loss, batches, ["none"], keep=(batches, error), **SETTINGS)


def test_the_steps_are_those_of_the_optimiser(comparison, model, batches):
    """Against the same training, written by hand."""
    trained, losses = model, []
    for _, batch in zip(range(20), itertools.cycle(batches), strict=False):
        value, gradient = eqx.filter_value_and_grad(loss)(trained, batch)
        trained = eqx.apply_updates(
            trained, jax.tree.map(lambda g: -0.1 * g, eqx.filter(gradient, eqx.is_array))
        )
        losses.append(float(value))
    row = row_of(comparison, "full")
    assert row.losses == pytest.approx(losses, rel=1e-4)
    for one, other in zip(jax.tree.leaves(row.model), jax.tree.leaves(trained), strict=True):
        if eqx.is_array(one):
            assert np.allclose(one, other, atol=1e-5)


def test_the_trained_model_is_there_with_its_adapters(comparison, model):
    row = row_of(comparison, "ToyScale")
    assert {r.wrapper for r in lora_report(row.model)} == {ToyScale}
    assert same(row.model.layers[0].base, model.layers[0])
    assert not same(row.model.layers[0].gain, jnp.ones(4))


def test_the_cost_of_a_step_is_measured(comparison):
    for row in comparison:
        if row.error is None:
            assert row.milliseconds > 0 and row.compile_seconds > 0
    # The forward pass keeps less than the gradient of everything needs.
    assert row_of(comparison, "none").temp_bytes <= row_of(comparison, "full").temp_bytes


def test_a_candidate_that_fails_is_a_row_with_its_error(comparison):
    unused, unknown = row_of(comparison, "ToyConv"), row_of(comparison, "nobody")
    assert unused.error.startswith("SelectionError: the call (every layer, wrapper ToyConv)")
    assert "nobody" in unknown.error
    for row in (unused, unknown):
        assert row == ComparisonRow(row.name, error=row.error)


def test_the_model_is_not_changed(comparison, model):
    assert same(model, eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)))


def test_it_prints_as_a_table_with_the_errors_below(comparison):
    text = str(comparison)
    assert text.startswith("7 candidates, 20 steps each")
    (line,) = (line.split() for line in text.splitlines() if "ToyConv, ToyLinear" in line)
    assert line[2] == "26"
    assert text.index("nobody: ") > text.index("full")
    assert isinstance(comparison, Printed) and "<table" in comparison._repr_html_()
    assert repr(comparison).startswith("Comparison(20 steps of ToyLinear, ToyScale, ")
    assert len(repr(comparison.rows[0])) < 300


def test_a_file_has_a_line_for_each_candidate(comparison, tmp_path):
    comparison.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row.name for row in comparison]
    assert float(rows[0]["final_loss"]) == comparison.rows[0].final_loss
    assert rows[3]["final_loss"] == "" and rows[3]["error"] == comparison.rows[3].error


def test_losses_are_averaged_over_a_tenth_of_the_steps():
    assert running_means([3.0, 1.0, 2.0], 1) == [3.0, 1.0, 2.0]
    assert running_means([4.0, 2.0, 0.0, 4.0], 2) == [3.0, 1.0, 2.0]


def test_a_diverged_loss_is_never_the_best(model, batches):
    settings = {**SETTINGS, "optimizer": GradientDescent(1e6)}
    (row,) = compare(model, loss, batches, ["full"], **settings)
    assert not math.isfinite(row.final_loss)
    assert row.best_loss == pytest.approx(np.mean(row.losses[:2]), rel=1e-5)


# --- interruption


class Interrupting(ToyScale):
    def __init__(self, base, rank, alpha, *, key):
        raise KeyboardInterrupt


def test_interrupting_keeps_what_is_finished(model, batches):
    settings = {**SETTINGS, "steps": 1, "rank": 2}
    made = compare(model, loss, batches, ["none", Interrupting, "full"], **settings)
    assert [row.name for row in made] == ["none"]
    assert made.interrupted
    assert "Interrupted" in str(made) and repr(made).endswith(", interrupted)")


# --- arguments


def test_an_iterator_without_end_is_read_once_and_shared(model, batches):
    taken = []

    def stream():
        for batch in itertools.cycle(batches):
            taken.append(batch)
            yield batch

    again = {"name": "again", "wrapper": ToyLinear}
    settings = {**SETTINGS, "steps": 3, "rank": 2}
    made = compare(model, loss, stream(), [ToyLinear, again], **settings)
    assert len(taken) == 3
    assert made.rows[0].losses == made.rows[1].losses


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wrappers": []}, "at least one candidate"),
        ({"wrappers": [[]]}, r"`wrappers` holds \[\]"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1, but is 0"),
        ({"steps": 2.5}, "`steps` must be a whole number of at least 1, but is 2.5"),
        ({"batches": []}, "holds no batch"),
        ({"loss": lambda model, batch: jax.vmap(model)(batch[0])}, "one real number.*2"),
        ({"loss": lambda model, batch: None}, "one real number, but returns None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_training(
    model, batches, changed, message, unchecked
):
    task = {"model": model, "loss": loss, "batches": batches, "wrappers": ["full"], **SETTINGS}
    with pytest.raises(SelectionError, match=f"(?s){message}"):
        compare(**{**task, **changed})


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"wraper": "lora"}, "did you mean 'wrapper'"),
        ({"rank": 2}, "names no adapter"),
        ({"wrapper": "full"}, "'full'"),
        ({"wrapper": ToyFromData, "statistics": {}}, "'statistics'.*calibrate"),
        ({"wrapper": ToyFromData, "calibrate": 3}, r"a pair `\(batches, loss\)`"),
        ({"name": "full", "wrapper": ToyLinear}, "Two candidates are called 'full'"),
    ],
)
def test_a_dict_with_unknown_keys_is_refused_as_a_candidate(model, batches, candidate, message):
    with pytest.raises(SelectionError, match=message):
        compare(model, loss, batches, ["full", candidate], **SETTINGS)
    with pytest.raises(SelectionError, match=r"a pair `\(batches, loss\)`"):
        compare(model, loss, batches, ["full"], calibrate=(1,), **SETTINGS)


def test_a_candidate_that_does_not_start_from_data_needs_no_calibrate(model, batches):
    candidate = {"wrapper": ToyLinear, "calibrate": ([], loss)}
    (row,) = compare(model, loss, batches, [candidate], **SETTINGS)
    assert "none of its adapters starts from data" in row.error


@pytest.mark.parametrize("candidate", [None, 3, eqx.nn.Linear, ["lora", None]])
def test_a_candidate_must_name_an_adapter(model, batches, candidate, unchecked):
    with pytest.raises(SelectionError, match="`wrappers` holds"):
        compare(model, loss, batches, ["full", candidate], **SETTINGS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "laiers"}, "selects no layer"),
        ({"wrappers": ["nobody", "none"]}, "No adapter or variant is called 'nobody'"),
        ({"rank": [2, 4]}, "rank"),
        ({"key": 0}, "must be one random key"),
    ],
)
def test_a_comparison_without_a_fitting_candidate_fails_at_once(
    model, batches, changed, message, unchecked
):
    supply = iter(batches)
    task = {"model": model, "loss": loss, "batches": supply, **SETTINGS}
    with pytest.raises(SelectionError, match=message):
        compare(**{**task, "wrappers": [ToyLinear, "full"], **changed})
    assert len(list(supply)) == len(batches)


def test_a_model_with_adapters_is_refused(model, batches):
    adapted = Net(model).lora(1, wrapper=ToyScale).module
    with pytest.raises(SelectionError, match=r"(?s)carries adapters already:.*merge_lora"):
        compare(adapted, loss, batches, ["full"], **SETTINGS)


@pytest.mark.parametrize(
    "changed", [{"learning_rate": -1.0}, {"steps": 0}, {"wrappers": [[]]}, {"model": None}]
)
def test_an_iterator_is_not_touched_before_the_other_arguments_are_checked(model, batches, changed):
    supply = iter(batches)
    adapted = Net(model).lora(1, wrapper=ToyScale).module
    task = {"model": model, "loss": loss, "batches": supply, "wrappers": ["full"], **SETTINGS}
    task |= {"model": adapted} if "model" in changed else changed
    task.pop("optimizer", None)
    with pytest.raises(SelectionError):
        compare(**task)
    assert len(list(supply)) == len(batches)


def test_a_last_batch_that_is_smaller_is_named(model, batches):
    rest = jax.tree.map(lambda x: x[:2], batches[0])
    with pytest.raises(SelectionError, match=r"(?s)batch 2 differs from.*\[2, 3\].*\[6, 3\]"):
        compare(model, loss, [*batches, rest], ["full"], **SETTINGS)
    lists = [batches[0], list(batches[1])]
    with pytest.raises(
        SelectionError,
        match=r"(?s)same containers.*batch 1 differs",
    ):
        compare(model, loss, lists, ["full"], **SETTINGS)


def test_an_error_in_the_loss_is_the_users_and_says_where(model, batches):
    def broken(model, batch):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug") as caught:
        compare(model, broken, batches, ["full"], **SETTINGS)
    assert "before any adapter" in "".join(caught.value.__notes__)


def test_one_name_need_not_be_in_a_list(model, batches):
    assert [row.name for row in compare(model, loss, batches, "full", **SETTINGS)] == ["full"]


class First(ToyLinear):
    variant, about = "first", About(family="turns")


class Second(ToyLinear):
    variant, about = "second", About(family="adds")


class Elsewhere(ToyConv):
    variant, about = "elsewhere", About(family="adds")


class Named(ToyScale):
    variant, about = "named", About(family="adds")


def test_all_stands_for_every_variant_that_takes_a_layer(model, batches):
    registry = Registry(discover=False)
    for cls in (First, Second, Elsewhere, Named):
        registry.register(cls)
    settings = {**SETTINGS, "steps": 1, "rank": 2}
    found = compare(model, loss, batches, ["none", "named", "all"], registry=registry, **settings)
    # By family, without the variant that was named already and without that of other layers.
    assert [row.name for row in found] == ["none", "named", "second", "first"]
    assert [row.error for row in found] == [None] * 4


def test_half_precision_stays_half(model, batches):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, model)

    def half_loss(model, batch):
        x, y = (jnp.asarray(a, jnp.bfloat16) for a in batch)
        return jnp.mean((jax.vmap(model)(x) - y).astype(jnp.float32) ** 2)

    (row,) = compare(half, half_loss, batches, ["full"], **{**SETTINGS, "steps": 2})
    assert row.error is None
    assert row.model.layers[0].weight.dtype == jnp.bfloat16


def test_logs_are_under_the_name_of_the_library(model, batches, caplog):
    with caplog.at_level(logging.DEBUG, logger="jno.lora"):
        compare(model, loss, batches, [ToyLinear, ToyConv], **{**SETTINGS, "steps": 1})
    own = [record for record in caplog.records if record.name.startswith("jno.lora")]
    names = {record.name for record in own if record.levelno >= logging.INFO}
    assert names == {"jno.lora.compare"}
    assert any(record.exc_info for record in own)  # the traceback of what failed
    assert not logging.getLogger("jno.lora").handlers


def test_a_line_for_each_finished_candidate_where_no_bar_is_seen(model, batches, capsys):
    settings = {**SETTINGS, "steps": 1}
    made = compare(model, loss, batches, [ToyLinear, ToyConv], **settings)
    out, err = capsys.readouterr()
    trained, failed = err.splitlines()
    loss_of_row = f"final loss {made.rows[0].final_loss:.4g}"
    assert re.fullmatch(rf"ToyLinear: {re.escape(loss_of_row)}, \d+\.\d s", trained)
    assert made.rows[1].error.splitlines()[0] in failed and failed.startswith("ToyConv: ")
    assert not out
    compare(model, loss, batches, ["none"], score=lambda _: (0.01234, 5), **settings)
    assert capsys.readouterr().err.startswith("none: score 0.01234, ")


def test_a_terminal_shows_the_bar_alone(model, batches, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    compare(model, loss, batches, ["none"], **{**SETTINGS, "steps": 1})
    assert "final loss" not in sys.stderr.getvalue()


def test_a_weakly_typed_parameter_does_not_have_later_steps_compiled():
    model = {"layer": eqx.nn.Linear(2, 2, key=jax.random.key(0)), "shift": jnp.asarray(2.0)}
    traced = itertools.count()

    def loss(model, x):
        next(traced)
        return jnp.mean((jax.vmap(model["layer"])(x) - model["shift"]) ** 2)

    compare(model, loss, [jnp.ones((3, 2))], "full", **{**SETTINGS, "steps": 3})
    assert next(traced) == 2  # the check of the loss, and the step


def test_the_bar_counts_every_step_of_every_candidate(model, batches, monkeypatch):
    bars = []

    class Counting(Bar):
        def __init__(self, total):
            super().__init__(total)
            self.total, self.done = total, 0
            bars.append(self)

        def advance(self):
            self.done += 1

    monkeypatch.setattr(comparing, "Bar", Counting)
    compare(model, loss, batches, ["none", "full"], **{**SETTINGS, "steps": 3})
    (bar,) = bars
    assert bar.total == bar.done == 2 * 3


def test_a_step_takes_as_long_as_the_clock_says(model, batches, monkeypatch):
    ticks = itertools.count(100.0, 0.25)
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(trainer_module, "time", clock)
    (row,) = compare(model, loss, batches, ["none"], **SETTINGS).rows
    assert (row.milliseconds, row.compile_seconds) == (250.0, 0.25)


class Complex(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return self.weight * x


def test_complex_arrays_descend():
    xs = jnp.asarray([[1.0 + 1.0j, 2.0 - 1.0j]], jnp.complex64)
    goal = Complex(jnp.asarray([1.0 + 2.0j, -0.5 + 1.0j], jnp.complex64))

    def distance(model, x):
        return jnp.sum(jnp.abs(jax.vmap(model)(x) - jax.vmap(goal)(x)) ** 2)

    start = Complex(jnp.zeros(2, jnp.complex64))
    (row,) = compare(start, distance, [xs], ["full"], **{**SETTINGS, "steps": 100}).rows
    assert row.error is None
    assert row.losses[-1] < 1e-4 * row.losses[0]


def test_a_net_and_a_set_are_refused_by_name(model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    settings = {"steps": 1, "key": jax.random.key(0)}
    with pytest.raises(SelectionError, match=r"^compare takes a model.*compare\(net\.module, "):
        compare(net, loss, [], ["none"], **settings)
    with pytest.raises(SelectionError, match=r"^compare takes a model, but was given an Ad"):
        compare(extract_adapters(net.module), loss, [], ["none"], **settings)


def test_it_is_found_in_the_core():
    assert jno.lora.compare is compare
    assert (jno.lora.Comparison, jno.lora.ComparisonRow) == (Comparison, ComparisonRow)
    assert jno.lora.types.Comparison is Comparison
    assert {"compare", "Comparison"} <= set(dir(jno.lora))
