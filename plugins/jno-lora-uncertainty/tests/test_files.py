"""An ensemble in a file: every bit comes back, and a misfit is told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from click.testing import CliRunner

from jno.lora import (
    CheckpointError,
    JnoLoraWarning,
    Net,
    load_adapters,
    merge_lora,
    read_metadata,
)
from jno.lora._commands import cli
from jno_lora_conditional import Conditional, Powers
from jno_lora_uncertainty import (
    Ensemble,
    _files,
    calibrate,
    calibrate_classes,
    load_ensemble,
    predict,
    probabilities,
    save_ensemble,
)
from jno_lora_zoo import collect_statistics

MODEL = eqx.nn.MLP(2, 2, 4, 1, jnp.tanh, key=jax.random.key(0))
KEY = jax.random.key(6)
X = jax.random.normal(jax.random.key(2), (9, 2))


def net_of(wrapper="lora", rank=2, alpha=None, model=MODEL):
    return lambda key: Net(model, key=key).freeze().lora(rank, alpha, wrapper=wrapper)


MAKERS = {
    "lora": net_of(),
    "vera-shared": net_of("vera-shared"),
    "tied-lora": net_of("tied-lora"),
    "pissa": net_of("pissa"),
    "conditional": lambda key: Conditional(net_of("dora")(key), Powers(0.1), film=True),
}


def trained(make, members=3):
    ensemble = Ensemble(make, members, key=jax.random.key(4))
    apart = lambda x: x + 0.1 * jnp.sin(jnp.arange(1, x.size + 1, dtype=x.dtype)).reshape(x.shape)  # noqa: E731
    return ensemble.update(jax.tree.map(apart, ensemble.partition()[0]))


def _distinct(calibrated):
    return len(set(map(id, jax.tree.leaves(calibrated.ensemble.constants))))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:All 3 members start alike")  # PiSSA
@pytest.mark.parametrize("name", MAKERS)
def test_every_bit_comes_back_around_another_start(name, tmp_path):
    ensemble, file = trained(MAKERS[name]), tmp_path / "e.safetensors"
    x = (jnp.full(9, 0.3), X) if name == "conditional" else X
    calibrated = calibrate(ensemble, x, jnp.sin(X), None)
    save_ensemble(calibrated, file, metadata={"nu": 0.05})
    again = load_ensemble(file, Ensemble(MAKERS[name], 3, key=jax.random.key(5)))
    assert eqx.tree_equal(again, calibrated)
    assert _distinct(again) == _distinct(calibrated)
    first = jax.tree.map(lambda x: x[0], x)
    assert eqx.tree_equal(predict(again, first), predict(calibrated, first))
    assert read_metadata(file) == {"nu": 0.05}
    save_ensemble(ensemble, file)
    assert eqx.tree_equal(
        load_ensemble(file, Ensemble(MAKERS[name], 3, key=jax.random.key(6))), ensemble
    )


def test_a_temperature_is_saved_too(tmp_path):
    file = tmp_path / "e.safetensors"
    ensemble = trained(net_of())
    logits = ensemble.each(lambda model: jax.vmap(model)(X)).mean(axis=0)
    labels = (jnp.argmax(logits, axis=-1) + jnp.arange(9) // 7) % 2  # two are wrong
    calibrated = calibrate_classes(ensemble, X, labels, None)
    save_ensemble(calibrated, file)
    again = load_ensemble(file, Ensemble(net_of(), 3, key=jax.random.key(5)))
    assert jnp.array_equal(probabilities(again, X[0]), probabilities(calibrated, X[0]))


def test_a_file_of_a_later_version_says_what_to_upgrade(tmp_path, monkeypatch):
    file = tmp_path / "e.safetensors"
    with monkeypatch.context() as later:
        later.setattr(_files, "_FORMAT", 2)
        save_ensemble(trained(net_of()), file)
    with pytest.raises(CheckpointError, match=r"format 2.*pip install -U jno-lora-uncertainty"):
        load_ensemble(file, Ensemble(net_of(), 3, key=jax.random.key(5)))


def test_the_file_names_its_plugin_and_what_does_not_fit(tmp_path):
    file = tmp_path / "e.safetensors"
    save_ensemble(trained(net_of()), file)
    shown = CliRunner().invoke(cli, ["inspect", str(file)]).output
    assert "jno-lora-uncertainty" in shown and "an ensemble of adapters" in shown
    with pytest.raises(CheckpointError, match="load_ensemble"):
        load_adapters(MODEL, file)
    key = jax.random.key(5)
    for other, fact in (
        (Ensemble(net_of(), 2, key=key), r"float32\[2, 2, 2\], the file has float32\[3, 2, 2\]"),
        (Ensemble(net_of("vera"), 3, key=key), "no such array"),
        (Ensemble(net_of(alpha=8), 3, key=key), "another method, rank, alpha or option"),
    ):
        with pytest.raises(CheckpointError, match=fact):
            load_ensemble(file, other)
    moved = jax.tree.map(lambda x: x + 1 if eqx.is_array(x) else x, MODEL)
    with pytest.warns(JnoLoraWarning, match="layers/0"):
        load_ensemble(file, Ensemble(net_of(model=moved), 3, key=key))


BATCHES = [jax.random.normal(KEY, (16, 2)) * scale[None] for scale in jnp.array([[1, 1], [1, 7.0]])]


def with_corda(number, model=MODEL):
    total = lambda model, x: jnp.sum(jax.vmap(model)(x))  # noqa: E731
    statistics = collect_statistics(model, [BATCHES[number]], total, wrapper="corda")
    return lambda key: (
        Net(model, key=key).freeze().lora(2, 2, wrapper="corda", statistics=statistics)
    )


def with_multiplier(value):
    return lambda key: (
        Net(MODEL, key=key).freeze().lora(2, 2, options={"multiplier": value, "dropout": 0.1})
    )


@pytest.mark.filterwarnings("ignore:All 2 members start alike")
@pytest.mark.parametrize(
    ("saved", "other", "members"),
    [
        (with_corda(0), with_corda(1), 2),
        (with_multiplier(0.5), with_multiplier(2.0), 2),
        (
            lambda key: Conditional(with_multiplier(0.5)(key), Powers(0.1)),
            lambda key: Conditional(with_multiplier(2.0)(key), Powers(0.1)),
            2,
        ),
        (net_of("vera"), net_of("vera"), 1),
        (net_of("vera-shared"), net_of("vera-shared"), 1),
        (net_of("lora-fa"), net_of("lora-fa"), 1),
    ],
    ids=["corda", "multiplier", "conditional", "vera", "vera-shared", "lora-fa"],
)
def test_frozen_arrays_are_those_of_the_file(saved, other, members, tmp_path):
    file = tmp_path / "e.safetensors"
    ensemble = trained(saved, members)
    save_ensemble(ensemble, file)
    again = load_ensemble(file, Ensemble(other, members, key=jax.random.key(5)))
    assert jax.tree.structure(again) == jax.tree.structure(ensemble)
    for leaf, expected in zip(*map(jax.tree.leaves, (again, ensemble)), strict=True):
        if eqx.is_array(leaf):  # CorDA's layer is computed again
            assert jnp.allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    assert _distinct_shared(again) == _distinct_shared(ensemble)


def _distinct_shared(ensemble):
    return len({id(leaf) for leaf in jax.tree.leaves(ensemble.shared) if eqx.is_array(leaf)})


@pytest.mark.filterwarnings("ignore:All 3 members start alike")
def test_a_base_that_an_adapter_changed_is_compared_too(tmp_path):
    file = tmp_path / "e.safetensors"
    ensemble = trained(net_of("pissa"))
    save_ensemble(ensemble, file)
    moved = jax.tree.map(lambda x: 1.1 * x if eqx.is_array(x) else x, MODEL)
    with pytest.warns(JnoLoraWarning, match=r"another base(.|\n)*layers/0(.|\n)*layers/1"):
        again = load_ensemble(file, Ensemble(net_of("pissa", model=moved), 3, key=KEY))
    # What the members learned, on the other base.
    for number in range(3):
        learned = [
            layer.weight - base.weight
            for ensemble, model in ((ensemble, MODEL), (again, moved))
            for layer, base in zip(merge_lora(ensemble.member(number)).layers, model.layers)  # noqa: B905
        ]
        for one, two in zip(learned[:2], learned[2:], strict=True):
            assert jnp.allclose(one, two, atol=1e-6) and jnp.max(jnp.abs(one)) > 0.01


def test_conditionals_with_another_basis_do_not_fit(tmp_path):
    file = tmp_path / "e.safetensors"
    make = lambda source: lambda key: Conditional(net_of()(key), Powers(source))  # noqa: E731
    save_ensemble(trained(make(0.1)), file)
    with pytest.raises(CheckpointError, match=r"basis: expected .*source=0\.2.*source=0\.1"):
        load_ensemble(file, Ensemble(make(0.2), 3, key=KEY))
    save_ensemble(trained(net_of()), file)
    with pytest.raises(CheckpointError, match=r"the basis: expected .*the file has None"):
        load_ensemble(file, Ensemble(make(0.2), 3, key=KEY))
