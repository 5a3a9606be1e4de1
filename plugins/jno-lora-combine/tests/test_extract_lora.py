"""LoRA from the difference of two models: what survives, what is left over, what is refused."""

import equinox as eqx
import foundax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases.models import layers, relative, trained

from jno.lora import JnoLoraWarning, SelectionError, WrapperError, apply_lora, merge_lora
from jno_lora_combine import extract_lora, to_lora

KEY = jax.random.key(0)
LITTLE = "ignore:The LoRA keeps"


def everything():
    """A layer of each kind with a LoRA, some in a stack, and a norm, which has none."""
    keys = jax.random.split(jax.random.key(3), 6)
    return layers() | {
        "embedding": eqx.nn.Embedding(9, 4, key=keys[0]),
        "recurrent": eqx.nn.GRUCell(3, 4, key=keys[1]),
        "in_norm": eqx.nn.WeightNorm(eqx.nn.Linear(5, 4, key=keys[2])),
        "attention": eqx.nn.MultiheadAttention(2, 4, key=keys[3]),
        "spectral": foundax.fno1d(1, 4, 3, n_layers=1, linear_conv=False, key=keys[4]),
        "norm": eqx.nn.LayerNorm(4),
    }


def moved(model, size=0.1, seed=0):
    """`model` with all floating arrays moved at random: full fine-tuning."""
    leaves, treedef = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        treedef,
        [
            x + jnp.asarray(size * jax.random.normal(key, x.shape), x.dtype)
            if eqx.is_inexact_array(x)
            else x
            for x, key in zip(leaves, keys, strict=True)
        ],
    )


def assert_close(found, expected, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if eqx.is_inexact_array(x):
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


@pytest.mark.parametrize("wrapper", ["lora", "dora"])
def test_an_update_of_low_rank_is_found_exactly(wrapper):
    base = layers()
    tuned = merge_lora(trained(base, wrapper, 1, rank=1))
    options = {"rank": 1} if wrapper == "lora" else {"energy": 1.0}
    model, report = extract_lora(base, tuned, **options)
    assert [row.path for row in report] == ["convolution", "linear", "stack"]
    assert report.error < 1e-5 and all(row.energy > 1 - 1e-6 for row in report)
    assert_close(merge_lora(model), tuned)
    assert all(model[name].base.weight is layer.weight for name, layer in base.items())


@pytest.mark.slow
def test_every_kind_of_layer_is_adapted_and_the_leftovers_are_kept_or_dropped():
    base = everything()
    tuned = moved(base)
    with pytest.raises(SelectionError) as refused:
        extract_lora(base, tuned, energy=1.0)
    model, report = extract_lora(base, tuned, energy=1.0, leftovers="keep")
    for name in ("linear/bias", "norm/weight", "recurrent/bias", "in_norm/g", "stack/bias"):
        assert name in report.leftovers and f"- {name}" in str(refused.value)
        assert name in str(report)
    assert {row.former.__name__ for row in report} >= {"GRUCell", "WeightNorm", "SpectralConv1d"}
    assert report.error < 1e-5
    assert_close(merge_lora(model), tuned, 1e-5)
    dropped, again = extract_lora(base, tuned, energy=1.0, leftovers="drop")
    assert again.leftovers == report.leftovers
    assert dropped["norm"].weight is base["norm"].weight
    assert dropped["linear"].base.bias is base["linear"].bias
    assert_close(merge_lora(dropped)["linear"].weight, tuned["linear"].weight)


@pytest.mark.filterwarnings(LITTLE)
def test_the_error_is_the_tail_of_the_singular_values():
    base = layers()
    tuned = moved(base)
    model, report = extract_lora(base, tuned, rank=2, leftovers="keep")
    of_energy = extract_lora(base, tuned, energy=0.8, leftovers="keep")[1]
    for row, cut in zip(report, of_energy, strict=True):
        old, new, found = (
            np.asarray(m[row.path].weight, np.float64) for m in (base, tuned, merge_lora(model))
        )
        shape = (3, -1) if row.path == "convolution" else old.shape
        sizes = np.linalg.svd((new - old).reshape(shape), compute_uv=False)
        tail = np.linalg.norm(sizes[..., 2:]) / np.linalg.norm(sizes)
        assert row.rank == 2 and float(row.error) == pytest.approx(tail, rel=1e-4)
        assert float(row.energy) == pytest.approx(1 - tail**2, rel=1e-4)
        assert relative(found - old, new - old) == pytest.approx(tail, rel=1e-4)
        kept = np.cumsum(sizes**2, axis=-1) / np.sum(sizes**2, axis=-1, keepdims=True)
        assert cut.rank == np.max(1 + np.argmax(kept >= 0.8, axis=-1))
        assert cut.energy >= 0.8


def test_a_warning_and_the_report_say_how_much_of_the_change_is_kept():
    base = {name: eqx.nn.Linear(8, 8, key=KEY) for name in ("large", "small", "same")}
    tuned = base | {"large": moved(base["large"], 1.0), "small": moved(base["small"], 0.01)}
    changes = {n: np.asarray(tuned[n].weight - base[n].weight, np.float64) for n in tuned}
    squares = {n: np.linalg.svd(x, compute_uv=False) ** 2 for n, x in changes.items()}
    total = sum(map(np.sum, squares.values()))
    with pytest.warns(JnoLoraWarning, match=r"keeps .*the least, .*Below 90%") as told:
        _, report = extract_lora(base, tuned, rank=2, leftovers="drop")
    kept = sum(x[:2].sum() for x in squares.values()) / total
    least = min(squares["large"], squares["small"], key=lambda x: x[:2].sum() / x.sum())
    assert report.kept == pytest.approx(kept, rel=1e-4)
    for text in (str(told[0].message), str(report)):
        assert f"{kept:.1%}" in text and f"{least[:2].sum() / least.sum():.1%}, at" in text
    assert told[0].filename == __file__
    _, report = extract_lora(base, tuned, energy=0.95, leftovers="drop")  # no warning
    assert "Below" not in str(report) and f"{report.kept:.1%}" in str(report)
    # A change that is only large in one layer is kept if that layer's is.
    of_low_rank = base["large"].weight + jnp.outer(jnp.arange(8.0), jnp.ones(8))
    tuned["large"] = eqx.tree_at(lambda x: x.weight, base["large"], of_low_rank)
    assert extract_lora(base, tuned, rank=2, leftovers="drop")[1].kept > 0.99
    assert extract_lora(base, base, rank=1)[1].kept is None
    assert to_lora(trained(base, "dora", 1), rank=2)[1].kept is None


@pytest.mark.parametrize("precision", [jnp.bfloat16, jnp.float32])
def test_half_precision_is_compared_in_float32(precision):
    base = {"linear": layers(jnp.bfloat16)["linear"]}
    wide = jax.tree.map(lambda x: x.astype(precision), base)
    tuned = moved(wide, size=1e-3)  # less than bfloat16 resolves
    model, _ = extract_lora(base, tuned, energy=1.0, leftovers="drop")
    assert model["linear"].lora_A.dtype == jnp.float32
    A, B, *_ = model["linear"].low_rank_form()
    exact = np.asarray(tuned["linear"].weight, np.float32) - np.asarray(
        base["linear"].weight, np.float32
    )
    assert np.abs(exact).max() > 0 and relative(B @ A, exact) < 1e-4
    assert merge_lora(model)["linear"].weight.dtype == jnp.bfloat16


@pytest.mark.filterwarnings(LITTLE)
def test_layers_that_are_equal_get_no_adapter():
    base = layers()
    model, report = extract_lora(base, jax.tree.map(jnp.copy, base), rank=1)
    assert eqx.tree_equal(model, base) and report.rows == () and report.leftovers == ()
    tuned = base | {"linear": moved(base["linear"])}
    model, report = extract_lora(base, tuned, rank=9, leftovers="keep")
    assert [(row.path, row.rank) for row in report] == [("linear", 4)]
    assert eqx.tree_equal(model["stack"], base["stack"])
    single, report = extract_lora(base["linear"], tuned["linear"], rank=1, leftovers="drop")
    assert type(single).__name__ == "LoRALinear" and [row.path for row in report] == [""]


@pytest.mark.parametrize(
    ("tuned", "facts"),
    [
        ({"linear": eqx.nn.Linear(5, 3, key=KEY)}, r"'linear/(weight|bias)', \(4.* in `base`, \(3"),
        ({"linear": eqx.nn.Linear(5, 4, use_bias=False, key=KEY)}, "'linear/bias'.*nothing"),
        ({"convolution": eqx.nn.Conv1d(2, 3, 3, stride=2, key=KEY)}, "'convolution', Conv1d"),
        ({"more": jnp.ones(2)}, "'more', nothing in `base`"),
        ({"gain": 2.0}, "'gain', 1.0 in `base`, 2.0"),
    ],
)
def test_another_structure_is_told_with_its_path(tuned, facts):
    with pytest.raises(SelectionError, match=facts):
        extract_lora(layers() | {"gain": 1.0}, layers() | {"gain": 1.0} | tuned, rank=1)


def test_what_makes_no_sense_is_refused(unchecked):
    base = layers()
    for options in ({}, {"rank": 1, "energy": 0.5}, {"energy": 2.0}, {"rank": 0}):
        with pytest.raises(SelectionError, match=r"rank|energy"):
            extract_lora(base, base, **options)
    with pytest.raises(SelectionError, match="'kept'"):
        extract_lora(base, base, rank=1, leftovers="kept")
    adapted = apply_lora(base, 1, key=KEY)
    with pytest.raises(SelectionError, match=r"`tuned` has an adapter at .convolution"):
        extract_lora(base, adapted, rank=1)
    with pytest.raises(SelectionError, match="`base`: this is a template"):
        extract_lora(eqx.filter_eval_shape(lambda: base), base, rank=1)
    bad = eqx.tree_at(lambda m: m["linear"].weight, base, jnp.full((4, 5), jnp.nan))
    with pytest.raises(WrapperError, match=r"'linear'.*NaN"):
        extract_lora(base, bad, rank=1)
