"""The demo in its short form: it runs, and its numbers agree with each other and with the zoo."""

import math
import re
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest
from click.testing import CliRunner
from compare_cases import names_commands_that_exist
from sklearn.datasets import load_digits

from jno.lora import Net, WrapperError, lora_report
from jno.lora._commands._cli import cli
from jno_lora_compare import Comparison, ComparisonRow
from jno_lora_demos.digits import _candidates, run_demo
from jno_lora_demos.digits._candidates import (
    ADAPTERS,
    ALPHA,
    CANDIDATES,
    EVERYTHING,
    NOTHING,
    RANK,
)
from jno_lora_demos.digits._classifier import Classifier, measure
from jno_lora_demos.digits._data import TEST, TRAINING, VALIDATION, load, split

SEED = 3
# (out, in) of the matrices of the two convolutions and the two linear layers.
LAYERS = ((32, 9), (64, 288), (64, 1024), (10, 64))

ROW = re.compile(
    r"^ *(?P<name>\S.*?) +(?P<trainable>[\d,]+) +(?P<share>[\d.]+) +(?P<before>[\d.]+) → "
    r"(?P<after>[\d.]+) +(?P<source>[\d.]+) +(?P<rate>\S+) +(?P<milliseconds>\S+) *$"
)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The directory that `jno-lora demo --quick` wrote to, and what it printed."""
    output = tmp_path_factory.mktemp("demo") / "made" / "by it"
    arguments = ["demo", "--quick", "--seed", str(SEED), "--output", str(output)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return output, result.output


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A second run with the same seed, as numbers."""
    return run_demo(tmp_path_factory.mktemp("again"), seed=SEED, quick=True)


@pytest.fixture(scope="module")
def outcomes(demo):
    return {outcome.name: outcome for outcome in demo.outcomes}


def test_it_prints_the_paths_of_what_it_wrote(printed):
    output, text = printed
    plot, model = output / "demo.png", output / "merged.eqx"
    assert str(plot) in text and str(model) in text
    assert plot.read_bytes().startswith(b"\x89PNG\r\n")
    assert model.stat().st_size > 0
    assert sorted(output.iterdir()) == [plot, model]
    names_commands_that_exist(text)


def test_its_table_has_every_row_and_fits(printed):
    lines = printed[1].splitlines()
    names = [match["name"] for match in map(ROW.match, lines) if match]
    assert names == list(CANDIDATES)
    paths = ("Plot:", "Merged model:")
    assert all(len(line) <= 100 for line in lines if not line.startswith(paths))


def test_a_second_run_gives_the_same_numbers(printed, outcomes):
    for match in filter(None, map(ROW.match, printed[1].splitlines())):
        outcome = outcomes[match["name"]]
        assert match["trainable"] == f"{outcome.row.trainable:,}"
        assert match["share"] == f"{100 * outcome.share:.2f}"
        assert match["before"] == f"{100 * outcome.before.target:.1f}"
        assert match["after"] == f"{100 * outcome.after.target:.1f}"
        assert match["source"] == f"{100 * outcome.after.source:.1f}"
        rate = outcome.row.learning_rate
        assert match["rate"] == ("-" if rate is None else f"{rate:g}")


def test_no_adaptation_changes_nothing(outcomes):
    outcome = outcomes[NOTHING]
    assert outcome.row.trainable == outcome.share == 0
    assert outcome.before == outcome.after
    assert outcome.row.learning_rate is None


def test_full_fine_tuning_trains_everything(outcomes):
    outcome = outcomes[EVERYTHING]
    assert outcome.share == 1
    assert outcome.row.trainable == sum(out * (inputs + 1) for out, inputs in LAYERS)


def test_every_candidate_starts_from_the_same_model(outcomes):
    start = outcomes[NOTHING].row.losses[0]
    for outcome in outcomes.values():
        assert outcome.row.losses[0] == pytest.approx(start, rel=1e-4)


def test_training_helps_and_takes_time(outcomes):
    for name in (EVERYTHING, *ADAPTERS):
        outcome = outcomes[name]
        assert outcome.after.validation_loss < outcome.before.validation_loss, name
        assert outcome.row.milliseconds > 0


def test_the_counts_are_those_of_the_methods(outcomes):
    blocks = [(math.ceil(out / RANK), math.ceil(inputs / RANK)) for out, inputs in LAYERS]
    low_rank = sum(RANK * (out + inputs) for out, inputs in LAYERS)
    outputs = sum(out for out, _ in LAYERS)
    expected = {
        "lora": low_rank,
        "rslora": low_rank,
        "pissa": low_rank,
        "milora": low_rank,
        "dora": low_rank + outputs,
        "lora-fa": RANK * outputs,
        "lora-xs": RANK**2 * len(LAYERS),
        "vera": outputs + RANK * len(LAYERS),
        "ia3": outputs,
        "lokr": sum(RANK**2 + p * q for p, q in blocks),
        "oft": sum(p * RANK**2 for p, _ in blocks),
    }
    assert {name: outcomes[name].row.trainable for name in ADAPTERS} == expected
    for name in ADAPTERS:
        assert outcomes[name].share == expected[name] / outcomes[EVERYTHING].row.trainable


def test_every_adapter_is_on_every_layer_with_weights(outcomes):
    for name in ADAPTERS:
        report = lora_report(outcomes[name].row.model)
        assert [row.path for row in report] == ["edges", "shapes", "hidden", "output"]
        assert {row.wrapper.variant for row in report} == {name}
        assert {row.distribution for row in report} == {"jno-lora-zoo"}
        assert {row.alpha for row in report} == {ALPHA}


def test_the_best_is_the_adapter_that_validates_best(demo, outcomes):
    assert demo.best.name in ADAPTERS
    assert demo.best.after.order == max(outcomes[name].after.order for name in ADAPTERS)


def test_merged_and_adapted_agree(demo):
    merged = demo.merged
    assert merged.agreeing == merged.total == 2 * TEST
    assert merged.difference <= 1e-5 * max(merged.scale, 1)


def test_the_file_is_a_plain_model_with_the_accuracy_of_the_adapted_one(demo):
    skeleton = eqx.filter_eval_shape(Classifier, jax.random.key(0))
    plain = eqx.tree_deserialise_leaves(demo.merged.path, skeleton)
    assert not Net(plain).summary().rows
    score = measure(plain, load(SEED))
    assert (score.target, score.source) == (demo.best.after.target, demo.best.after.source)


@pytest.mark.parametrize(
    ("comparison", "error", "message"),
    [
        (SimpleNamespace(interrupted=True), KeyboardInterrupt, None),
        (
            Comparison((ComparisonRow("dora", error="ValueError: no"),), 1),
            WrapperError,
            "The demo cannot train dora: ValueError: no",
        ),
    ],
)
def test_it_stops_without_all_candidates(monkeypatch, unchecked, comparison, error, message):
    monkeypatch.setattr(_candidates, "compare", lambda *_, **__: comparison)
    monkeypatch.setattr(_candidates, "batches_of", lambda *_, **__: [])
    digits = SimpleNamespace(training=None)
    with pytest.raises(error, match=message):
        _candidates.adapt(None, digits, rates=(1e-3,), epochs=1, seed=0)


def test_no_scan_is_in_two_groups():
    labels = load_digits().target
    groups = split(labels, SEED)
    drawn = [groups[name] for name in ("training", "validation", "test")]
    assert [len(group) for group in drawn] == [TRAINING, VALIDATION, TEST]
    everything = np.concatenate([groups["pretraining"], *drawn])
    assert sorted(everything) == list(range(len(labels)))
    for group in drawn:  # each digit in proportion: about a tenth
        assert np.all(np.abs(np.bincount(labels[group]) / len(group) - 0.1) < 0.02)


def test_the_domains_show_the_same_test_scans_and_differ():
    digits = load(SEED)
    assert np.array_equal(digits.test_source.labels, digits.test_target.labels)
    moved = np.abs(np.asarray(digits.test_source.images - digits.test_target.images))
    assert moved.mean() > 0.1
    for scans in (digits.test_source, digits.test_target, digits.training):
        assert scans.images.min() >= 0 and scans.images.max() <= 1


def test_the_seed_decides_the_data():
    one, same, other = load(0), load(0), load(1)
    assert np.array_equal(one.test_target.images, same.test_target.images)
    assert not np.array_equal(one.test_target.images, other.test_target.images)
