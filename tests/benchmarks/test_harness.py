"""The benchmark harness: its statistics, its worker protocol, comparisons and tables. No peers."""

import functools
import json
import math
import random
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import _cases, _parameter_cases, _tables, compare, report
from benchmarks._comparison import Comparison, Settings
from benchmarks._ratios import Ratio, of_facts, per_round
from benchmarks._workers import RequestFailedError, Worker, WorkerLostError, variables
from benchmarks.physicsnemo import adapted
from benchmarks.sides import (
    _models,
    jax_conditional,
    jax_dispatch,
    jax_gauss_newton,
    jax_init,
    jax_slope,
    jax_spectral,
    jax_train,
)
from benchmarks.sides.jax_physicsnemo import Operator

import jno_lora_zoo
from jno.lora import lora_report

SETTINGS = Settings(
    rounds=4,
    least_rounds=3,
    warmups=1,
    round_seconds=0.0,
    measure_seconds=60.0,
    build_timeout=20,
    round_timeout=20,
)

# A worker whose times are made up: each case says how long a call takes, or that it never ends.
FAKE = """
import time
from types import SimpleNamespace
from benchmarks.worker import serve

def build(case):
    print("libraries may print")
    if case["adapter"] == "broken":
        raise ValueError("cannot be built\\nmore")
    def run(calls):
        if case["adapter"] == "hangs":
            time.sleep(60)
        if case["adapter"] == "dies":
            raise SystemExit(3)
        return case["seconds"]
    return SimpleNamespace(facts={"temp": case["seconds"] * 8}, measures={"step": run})

serve(lambda: {"versions": {}, "device": "none"}, build)
"""


def start(environment="any"):
    return Worker([sys.executable, "-c", FAKE], variables("cpu"))


def case(seconds=2.0, adapter="works", **sides):
    shared = {"name": "c", "group": "linear", "label": "C", "adapter": adapter, "seconds": seconds}
    targets = [("step", "jno", 1.0), ("temp", "jno", 0.25)]
    sides = {"ours": {"env": "ours"}, **sides}
    return {**shared, "sides": sides, "measures": ("step",), "targets": targets}


def compared(spec, start=start, settings=SETTINGS):
    return Comparison(spec, start, settings, random.Random(0)).run()


@pytest.fixture
def as_users():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_ratios_are_formed_within_rounds():
    # The machine gets ten times slower; the ratio stays, which a ratio of medians would not show.
    drifting = [{"ours": 1.0, "jno": 2.0}, {"ours": 10.0, "jno": 20.0}, {"ours": 10.0, "peft": 5.0}]
    found = per_round(drifting)
    assert found["jno"] == {"median": 0.5, "q1": 0.5, "q3": 0.5, "rounds": 2}
    assert found["peft"]["median"] == 2.0
    assert per_round([{"jno": 1.0}]) == {}
    ratio = Ratio.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (ratio.median, ratio.q1, ratio.q3, ratio.rounds) == (3.0, 2.0, 4.0, 5)
    # A fact that a side lacks is not compared.
    facts = {"ours": {"temp": 2, "flops": None}, "jno": {"temp": 8, "flops": 3}, "peft": {}}
    assert {k: list(v) for k, v in of_facts(facts).items()} == {"temp": ["jno"]}


@pytest.mark.parametrize(("adapter", "why"), [("hangs", "timed out"), ("dies", r"ended \(3\)")])
def test_a_lost_worker_is_an_error_and_no_process(adapter, why):
    worker = start()
    worker.ask(20, **{"do": "build", "as": "a", "case": {"adapter": adapter, "seconds": 1}})
    with pytest.raises(RequestFailedError, match="no such request"):
        worker.ask(20, do="nonsense")
    seconds = 0.2 if adapter == "hangs" else 20
    with pytest.raises(WorkerLostError, match=why):
        worker.ask(seconds, do="run", measure="step", calls=1, **{"as": "a"})
    assert worker.process.poll() is not None
    worker.close()


def test_a_comparison_holds_ratios_and_no_times():
    record = compared(
        case(jno={"env": "jno", "seconds": 4.0}, floor={"env": "ours", "seconds": 1.0})
    )
    assert record["ratios"]["step"]["jno"] == {"median": 0.5, "q1": 0.5, "q3": 0.5, "rounds": 4}
    assert record["ratios"]["step"]["floor"]["median"] == 2.0
    assert record["ratios"]["temp"]["jno"]["median"] == 0.5
    assert record["sides"] == {
        "ours": {"status": "ok", "temp": 16.0},
        "jno": {"status": "ok", "temp": 32.0},
        "floor": {"status": "ok", "temp": 8.0},
    }
    assert _tables.cell(record, "step", "jno") == "0.5 [0.5, 0.5] (≤ 1)"
    assert _tables.cell(record, "temp", "jno") == "**0.5** (≤ 0.25)"
    assert _tables.verdicts([record]) == ["C, temporary memory / jNO: 0.5, the target is 0.25."]


def test_a_side_that_hangs_fails_or_is_missing_stops_only_others_of_its_process():
    spec = case(
        jno={"env": "jno", "adapter": "hangs"},
        plain={"env": "jno"},
        peft={"env": "peft"},
        full={"env": "ours", "adapter": "broken"},
        floor={"env": "ours"},
    )
    record = compared(spec | {"timeout": 1}, lambda env: None if env == "peft" else start(env))
    statuses = {name: side["status"] for name, side in record["sides"].items()}
    assert statuses == {
        "ours": "ok",
        "jno": "timed out",
        "plain": "lost with jno",
        "peft": "not installed",
        "full": "failed: ValueError: cannot be built",
        "floor": "ok",
    }
    assert not compare.is_finished({"sides": {"plain": {"status": statuses["plain"]}}})
    assert list(record["ratios"]["step"]) == ["floor"]
    assert _tables.cell(record, "step", "jno") == "timed out"
    assert _tables.verdicts([record])[0] == "C, step / jNO: not measured (timed out)."


def test_cases_can_be_sent_and_their_targets_measured():
    cases = _cases.cases("gpu")
    assert {case["name"] for case in cases} > {case["name"] for case in _cases.cases()}
    assert len({spec["name"] for spec in cases}) == len(cases)
    for spec in cases:
        json.dumps(spec)
        assert spec["group"] in _tables.GROUPS
        assert spec.get("adapter", "svd") in {*jno_lora_zoo.adapters.__all__, "svd"}
        columns = {column for columns in _tables.GROUPS[spec["group"]].tables for column in columns}
        for measure, over, _ in spec["targets"]:
            assert measure in {*spec["measures"], "temp", "traces"}
            assert over is None or over in spec["sides"]
            assert (measure, over) in columns


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """The records that `compare` writes for these cases."""

    def run(specs, *arguments):
        monkeypatch.setattr(compare, "cases", lambda device: specs)
        monkeypatch.setattr(compare, "command", lambda *_: [sys.executable, "-c", FAKE])
        line = ["compare", "--quick", "--out", str(tmp_path), "--peft", "no-such-python"]
        monkeypatch.setattr(sys, "argv", [*line, "--ours", sys.executable, *arguments])
        compare.main()
        return json.loads((tmp_path / "cpu.json").read_text())["cases"]

    return run


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, command_line, capsys):
    ran = []

    def recorded(spec, *arguments):
        ran.append(spec["name"])
        return Comparison(spec, *arguments)

    specs = [case() | {"name": name, "targets": []} for name in ("a", "b", "c")]
    monkeypatch.setattr(compare, "Comparison", recorded)

    def names_after(*more):
        ran.clear()
        records = command_line(specs, "--jno", "no-such-python", *more)
        return ran, [record["name"] for record in records]

    assert names_after("--only", "b") == (["b"], ["b"])
    assert "[1/1] b: " in capsys.readouterr().out
    written = (tmp_path / "cpu.json").read_text()
    assert str(tmp_path) not in written and sys.executable not in written
    assert "On the CPU, all 0 targets are met." in (tmp_path / "benchmarks.md").read_text()
    # Only the full results reach the documentation.
    assert report.page_folder(report.RESULTS).name == "evidence"
    monkeypatch.setattr(compare, "write_page", lambda results, docs: docs)
    assert names_after("--resume") == (["a", "c"], ["a", "b", "c"])
    assert names_after("--resume", "--only", "a") == ([], ["a", "b", "c"])
    results = json.loads((tmp_path / "cpu.json").read_text())
    statuses = ("timed out", "not installed", "failed: no")
    for record, status in zip(results["cases"], statuses, strict=True):
        record["sides"] = {"ours": {"status": "ok"}, "jno": {"status": status}}
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    capsys.readouterr()
    assert names_after("--resume") == (["c"], ["a", "b", "c"])
    assert "2 of 3 cases keep their records." in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("cpu.*")] == ["cpu.json"]
    monkeypatch.setattr(compare, "machine", lambda devices: {"system": "another"})
    with pytest.raises(SystemExit, match="another machine"):
        names_after("--resume")


@pytest.mark.usefixtures("as_users")
def test_our_sides_measure_all_they_promise():
    spec = _cases.mlp("LoRA", batch=2, layers=1)
    model = {"kind": "mlp", "width": 4, "inner": 6, "layers": 2, "dtype": "bfloat16"}
    subject = jax_train.build(spec | {"rank": 2, "model": model}, "cpu")
    assert set(_cases.ALL_MEASURES) == set(subject.measures)
    assert subject.facts["trainable"] == 2 * 2 * (4 + 6) and subject.facts["traces"] == 1
    assert all(measure(1) > 0 for measure in subject.measures.values())
    for measure in jax_dispatch.build(
        {"layers": 2, "width": 3, "rank": 2}, "cpu"
    ).measures.values():
        assert measure(1) > 0
    spec = {"size": 12, "rank": 2, "spectrum": "decaying", "adapter": "PiSSALinear"}
    assert jax_init.build(spec, "cpu").facts["energy"] == pytest.approx(1, abs=1e-3)
    W = np.diag([3.0, 2.0, 1.0])
    assert jax_init.captured_energy(W, np.eye(3)[:, 1:]) == pytest.approx(5 / 13)


SMALL = {"model": {"kind": "mlp", "width": 4, "layers": 2}, "batch": 3, "rank": 2}


def of_group(cases, **more):
    """The first case of a group on a small model, as its sides get it."""
    case = next(cases) | SMALL | more
    shared = {key: value for key, value in case.items() if key != "sides"}
    return {name: {**shared, **side} for name, side in case["sides"].items()}


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("is_complex", [False, True])
def test_sides_of_a_spectral_step_train_the_same_operator(is_complex):
    spec = next(case for case in _cases.spectral() if case["complex"] == is_complex)
    model = {"kind": "fno", "channels": 3, "points": 8, "modes": 2, "layers": 1}
    spec |= {"model": model, "batch": 2, "rank": 2, "elsewhere": 1}
    subjects = {
        name: jax_spectral.build({**spec, **side}, "cpu") for name, side in spec["sides"].items()
    }
    assert set(spec["measures"]) <= set(subjects["ours"].measures) & set(subjects["full"].measures)
    layers = [(1, 3), (3, 3), (3, 128), (128, 1)]  # and the convolution beside the spectral layer
    full = 2 * 3 * 3 * 2 + sum(i * o + o for i, o in layers)
    ours = 2 * 2 * (3 + 3 + 2) + sum(map(sum, layers))
    trained = {name: subject.facts["trainable"] for name, subject in subjects.items()}
    assert trained == {"ours": ours, "full": full}


@pytest.mark.usefixtures("as_users")
def test_all_ways_give_one_derivative():
    sides = of_group(_parameter_cases.slopes(), values="each")
    assert {side["way"] for side in sides.values()} == set(jax_slope.WAYS)
    model, z = _models.model_of(sides["ours"]), jax_conditional.values_of(sides["ours"])
    conditional = jax_conditional.conditional_of(sides["ours"], model)
    loss = jax_slope.loss_of(conditional, *_models.data_of(sides["ours"], model))
    results = {
        name: jax.jit(functools.partial(jax_slope.WAYS[side["way"]], loss))(z)
        for name, side in sides.items()
    }
    value, slope = results["ours"]
    assert jnp.all(jnp.abs(slope) > 1e-4)
    assert jnp.allclose(results["no derivative"], value)
    assert jnp.allclose(results["reverse"][1], slope, rtol=1e-4)
    assert jnp.allclose(results["difference"][1], slope, rtol=0.02, atol=1e-4)


@pytest.mark.usefixtures("as_users")
def test_sides_of_conditionals_and_of_second_order_run():
    sides = of_group(_parameter_cases.conditional_steps(), degree=2, values="each")
    subjects = {name: jax_conditional.build(sides[name], "cpu") for name in ("ours", "plain")}
    # `B` of both layers moves by two directions in the place of one array.
    trained = {name: subject.facts["trainable"] for name, subject in subjects.items()}
    assert trained == {"ours": 2 * (8 + 2 * 8), "plain": 2 * (8 + 8)}
    *_, case = _parameter_cases.gauss_newton()
    case = case | {"equation": "helmholtz", "points": 10, "steps": 2}
    newton = jax_gauss_newton.build(case | case["sides"]["ours"], "cpu")
    assert newton.facts["steps"] == 2 and 0 < newton.facts["accepted"] <= 2
    for subject in (subjects["plain"], newton):
        assert subject.measures["step"](1) > 0
    spec = next(spec for spec in _cases.laplacians() if spec["name"] == "laplacian/LoRA")
    x, _ = _models.data_of(spec | {"batch": 3}, _models.model_of(spec))
    found = _models.compared_of(spec, lambda x: jnp.sum(x**3, keepdims=True), x)
    assert jnp.allclose(found, 6 * jnp.sum(x, axis=1, keepdims=True), rtol=1e-5)


# --- the task beside PhysicsNeMo: the same function of the same weights


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def physicsnemo(state, field):
    """The forward pass of PhysicsNeMo's `FNO`, from its state."""

    def dense(name, h):
        weight = state[f"{name}.weight"]
        return weight.reshape(weight.shape[:2]) @ h + state[f"{name}.bias"][:, None]

    h = np.stack([field, np.linspace(0, 1, len(field))])
    lift = "spec_encoder.lift_network"
    h = dense(f"{lift}.2.conv", gelu(dense(f"{lift}.0.conv", h)))
    for index in range(2):
        weights = state[f"spec_encoder.spconv_layers.{index}.weights1"]
        modes = weights.shape[2]
        spectrum = np.zeros((len(h), len(field) // 2 + 1), complex)
        product = np.einsum("ix,iox->ox", np.fft.rfft(h)[:, :modes], weights @ [1, 1j])
        spectrum[:, :modes] = product
        h = dense(f"spec_encoder.conv_layers.{index}", h) + np.fft.irfft(spectrum, len(field))
        h = gelu(h) if index == 0 else h
    for index in range(2):
        h = dense(f"decoder_net.layers.{index}.linear", h)
        h = h / (1 + np.exp(-h))
    return dense("decoder_net.final_layer.linear", h)[0]


@pytest.mark.usefixtures("as_users")
def test_the_operator_is_physicsnemos_function_of_its_state():
    operator = Operator(jax.random.key(0), width=4, modes=3, layers=2)
    field = np.sin(np.arange(8, dtype=np.float32))
    np.testing.assert_allclose(operator(field), physicsnemo(operator.state(), field), atol=1e-6)
    rows = {row.path: row for row in lora_report(adapted(operator, 0, "lora 1, cp 4").module).rows}
    assert len(rows) == 9 and rows["decoder/0"].rank == 1
