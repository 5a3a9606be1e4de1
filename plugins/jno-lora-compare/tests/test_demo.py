"""The demo in its short form: it runs, and its numbers agree with each other and with the zoo."""

import re

import equinox as eqx
import jax
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_digits
from tests import pairs

from jno.lora import Net, lora_report
from jno.lora._commands._cli import cli
from jno.lora.extending import takes
from jno_lora_demos import digits as digits_demo
from jno_lora_demos.digits import run_demo
from jno_lora_demos.digits._candidates import ALPHA, CANDIDATES, EVERYTHING, NOTHING
from jno_lora_demos.digits._classifier import Classifier, measure
from jno_lora_demos.digits._data import TEST, TRAINING, VALIDATION, load, split

SEED = 3
# Each structure of methods.
ADAPTERS = {*CANDIDATES} - {NOTHING, EVERYTHING} if pairs.ALL else {"lora", "dora", "pissa"}
# (out, in) of the matrices of the two convolutions and the two linear layers.
LAYERS = ((32, 9), (64, 288), (64, 1024), (10, 64))

# Name, trainable, share, before, after, source, rate, milliseconds.
ROW = re.compile(r"^ *(\S.*?) +([\d,]+) +([\d.]+) +([\d.]+) → ([\d.]+) +([\d.]+) +(\S+) +\S+ *$")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The directory of `jno-lora demo --quick`, what it printed, and the numbers of its run."""
    output, demos = tmp_path_factory.mktemp("demo") / "made" / "by it", []
    arguments = ["demo", "--quick", "--seed", str(SEED), "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        for name in {*CANDIDATES} - {NOTHING, EVERYTHING, *ADAPTERS}:
            patch.delitem(CANDIDATES, name)
        run = lambda *args, **kwargs: demos.append(run_demo(*args, **kwargs))  # noqa: E731
        patch.setattr(digits_demo, "run_demo", run)
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (demo,) = demos
    return output, result.output, demo


@pytest.fixture(scope="module")
def outcomes(ran):
    return {outcome.name: outcome for outcome in ran[-1].outcomes}


@pytest.mark.slow
def test_it_prints_its_numbers_and_the_paths_of_what_it_wrote(ran, outcomes):
    output, text, _ = ran
    plot, model = output / "demo.png", output / "merged.eqx"
    assert str(plot) in text and str(model) in text
    assert plot.read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(output.iterdir()) == [plot, model]
    lines = text.splitlines()
    paths = ("Plot:", "Merged model:")
    assert all(len(line) <= 100 for line in lines if not line.startswith(paths))
    rows = [match.groups() for match in map(ROW.match, lines) if match]
    assert [row[0] for row in rows] == list(outcomes)
    for name, *cells in rows:
        _, row, share, before, after = outcomes[name]
        scores = (before.target, after.target, after.source)
        rate = "-" if row.learning_rate is None else f"{row.learning_rate:g}"
        percents = (f"{100 * score:.1f}" for score in scores)
        assert cells == [f"{row.trainable:,}", f"{100 * share:.2f}", *percents, rate]


@pytest.mark.slow
def test_every_candidate_starts_from_the_same_model_and_all_but_one_learn(outcomes):
    assert {*outcomes} == {NOTHING, EVERYTHING, *ADAPTERS}
    nothing, everything = outcomes[NOTHING], outcomes[EVERYTHING]
    assert nothing.row.trainable == nothing.share == 0 and nothing.row.learning_rate is None
    assert nothing.before == nothing.after
    assert everything.share == 1
    assert everything.row.trainable == sum(out * (inputs + 1) for out, inputs in LAYERS)
    for name, outcome in outcomes.items():
        assert outcome.row.losses[0] == pytest.approx(nothing.row.losses[0], rel=1e-4)
        if name != NOTHING:
            assert outcome.after.validation_loss < outcome.before.validation_loss, name
    # An adapter is on every layer with weights.
    for name in ADAPTERS:
        report = lora_report(outcomes[name].row.model)
        assert [row.path for row in report] == ["edges", "shapes", "hidden", "output"]
        assert {row.wrapper.variant for row in report} == {name}
        # Some methods, such as OFT and IA3, take no alpha.
        assert all(
            row.alpha == (ALPHA if "alpha" in takes(row.wrapper) else None) for row in report
        )
        parameters = sum(row.trainable for row in report)
        assert outcomes[name].row.trainable == parameters
        assert outcomes[name].share == parameters / outcomes[EVERYTHING].row.trainable


@pytest.mark.slow
def test_the_file_is_the_merged_best_adapter_as_a_plain_model(ran, outcomes):
    _, _, demo = ran
    assert demo.best.name in ADAPTERS
    assert demo.best.after.order == max(outcomes[name].after.order for name in ADAPTERS)
    merged = demo.merged
    assert merged.agreeing == merged.total == 2 * TEST
    assert merged.difference <= 1e-5 * max(merged.scale, 1)
    skeleton = eqx.filter_eval_shape(Classifier, jax.random.key(0))
    plain = eqx.tree_deserialise_leaves(merged.path, skeleton)
    assert not Net(plain).summary().rows
    score = measure(plain, load(SEED))
    assert (score.target, score.source) == (demo.best.after.target, demo.best.after.source)


def test_no_scan_is_in_two_groups():
    labels = load_digits().target
    groups = split(labels, SEED)
    drawn = [groups[name] for name in ("training", "validation", "test")]
    assert [len(group) for group in drawn] == [TRAINING, VALIDATION, TEST]
    everything = np.concatenate([groups["pretraining"], *drawn])
    assert sorted(everything) == list(range(len(labels)))
    for group in drawn:  # each digit in proportion: about a tenth
        assert np.all(np.abs(np.bincount(labels[group]) / len(group) - 0.1) < 0.02)
