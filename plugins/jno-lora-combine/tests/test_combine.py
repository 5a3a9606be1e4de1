"""Sets of adapters combined by every method, against arithmetic on their updates in NumPy."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases.models import layers, relative, trained, update, updates

from jno.lora import (
    AdapterSet,
    Net,
    SelectionError,
    extract_adapters,
    swap_adapters,
)
from jno_lora_combine import combine, combine_with_report, scale_adapters

WEIGHTS = [0.7, -1.3, 2.0]
DENSITY = 0.4
LARGE = 100  # a rank that no matrix here allows: nothing is cut


@pytest.fixture(scope="module")
def sets():
    """Of two classes and three ranks; the last one lacks the convolution and the stack."""
    model = layers()
    return [
        extract_adapters(trained(model, "lora", 1)),
        extract_adapters(trained(model, "rslora", 2, rank=1, alpha=2.0)),
        extract_adapters(trained(model, "lora-fa", 3, target="linear", alpha=1.0)),
    ]


def pairs(sets, path):
    """The weights and updates of the sets that have an adapter at `path`."""
    return [(w, update(s[path])) for w, s in zip(WEIGHTS, sets, strict=False) if path in s]


def weighted(sets, path):
    return [weight * U for weight, U in pairs(sets, path)]


def trim(matrix, round_down=False):
    """The largest entries, one by one; of a stack for each slice."""
    if matrix.ndim == 3:
        return np.stack([trim(one, round_down) for one in matrix])
    order = sorted(np.ndindex(matrix.shape), key=lambda at: -abs(matrix[at]))
    kept = np.zeros_like(matrix)
    for at in order[: (int if round_down else round)(DENSITY * matrix.size)]:
        kept[at] = matrix[at]
    return kept


def agreed(matrices, majority_sign="total", voters=None):
    """Elect a sign and take the mean of those that have it, entry by entry."""
    voters, out = matrices if voters is None else voters, np.zeros_like(matrices[0])
    for at in np.ndindex(out.shape):
        votes = [v[at] for v in voters]
        sign = 1.0 if sum(votes if majority_sign == "total" else np.sign(votes)) >= 0 else -1.0
        agreeing = [m[at] for m, v in zip(matrices, votes, strict=True) if np.sign(v) == sign]
        out[at] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def of_peft(pairs):
    """PEFT's law: trim the updates, elect signs, and take the mean of `w_i U_i`."""
    trimmed = [trim(matrix, round_down=True) for _, matrix in pairs]
    parts = [weight * U for (weight, _), U in zip(pairs, trimmed, strict=True)]
    return agreed(parts, voters=trimmed)


def by_sign(how):
    return lambda pairs: agreed([trim(weight * U) for weight, U in pairs], how)


NAIVE = {
    "linear": lambda pairs: sum(weight * U for weight, U in pairs),
    "svd": lambda pairs: sum(weight * U for weight, U in pairs),
    "magnitude_prune": lambda pairs: sum(trim(weight * U) for weight, U in pairs),
    "ties": by_sign("total"),
    "ties by frequency": by_sign("frequency"),
    "ties_svd": of_peft,
}


@pytest.mark.parametrize("name", NAIVE)
def test_a_method_does_to_the_updates_what_it_says(sets, name):
    method, _, frequency = name.partition(" by ")
    arguments = {"majority_sign": frequency} if frequency else {}
    if method != "linear":
        arguments["rank"] = LARGE
    if method not in ("linear", "svd"):
        arguments["density"] = DENSITY
    combined, report = combine_with_report(sets, WEIGHTS, method, **arguments)
    assert list(combined) == ["convolution", "linear", "stack"]
    for path, found in updates(combined).items():
        assert relative(found, NAIVE[name](pairs(sets, path))) < 3e-6
    assert report.error == 0
    ties, *others = (NAIVE[n](pairs(sets, "linear")) for n in NAIVE if n.startswith("ties"))
    assert all(relative(other, ties) > 0.1 for other in others)


def test_exact_methods_add_up_ranks_as_far_as_the_matrix_allows(sets):
    combined = combine(sets[:2], [1.0, 1.0], "cat")
    assert {combined[path].rank for path in combined} == {3}
    # Nothing is decomposed: the factors are those that came.
    A = combined["linear"].state["lora_A"]
    assert jnp.array_equal(A[:2], sets[0]["linear"].state["lora_A"])
    four = combine([sets[0]] * 4, [1.0] * 4, "cat")["linear"]
    assert four.rank == 4 and four.state["lora_A"].shape == (4, 5)
    assert relative(update(four), 4 * update(sets[0]["linear"])) < 3e-6
    # The combined set goes into a model.
    model, x = layers(), jnp.arange(5.0)
    adapted = swap_adapters(model, combine(sets, WEIGHTS))["linear"]
    expected = np.asarray(model["linear"](x)) + sum(weighted(sets, "linear")) @ np.asarray(x)
    assert np.allclose(adapted(x), expected, rtol=1e-5, atol=1e-5)
    assert type(adapted).__name__ == "LoRALinear"


def test_a_cut_is_the_nearest_update_of_that_rank_and_its_error_is_told(sets):
    combined, report = combine_with_report(sets, WEIGHTS, "svd", rank=1)
    for row in report:
        exact, found = sum(weighted(sets, row.path)), update(combined[row.path])
        assert np.linalg.matrix_rank(found, tol=1e-4).max() == row.rank == 1
        singular = np.linalg.svd(exact, compute_uv=False)
        best = np.linalg.norm(singular[..., 1:]) / np.linalg.norm(singular)
        assert float(row.error) == pytest.approx(best, rel=1e-4)
        assert relative(found, exact) == pytest.approx(best, rel=1e-4)
    assert f"{float(report.error):.1e}" in str(report) and "convolution" in str(report)
    # Without a rank, a cut keeps the largest; a larger rank is filled up.
    assert combine(sets, WEIGHTS, "svd")["linear"].rank == 2
    wider = combine(sets[1:2], [1.0], "svd", rank=3)
    assert wider["linear"].state["lora_A"].shape == (3, 5)
    assert wider["stack"].state["lora_B"].shape == (2, 3, 3)
    assert relative(update(wider["linear"]), update(sets[1]["linear"])) < 3e-6


def test_weights_and_adapters_may_be_traced(sets):
    @jax.jit
    def run(sets, weights):
        combined, report = combine_with_report(sets, weights, "svd", rank=2)
        return scale_adapters(combined, weights[0]), report

    scaled, report = run(sets, jnp.asarray(WEIGHTS))
    expected, told = combine_with_report(sets, WEIGHTS, "svd", rank=2)
    for path in scaled:
        assert relative(update(scaled[path]), 0.7 * update(expected[path])) < 1e-5
    assert jnp.allclose(report.error, told.error, rtol=1e-4)


def test_half_precision_is_added_up_in_float32(sets):
    half = [
        jax.tree.map(lambda a: a.astype(jnp.bfloat16), one)
        for one in (sets[0], combine(sets[:1], [-1.0]))
    ]
    off = combine([*half, half[0]], [1.0, 1.0, 1.0], "svd", rank=2)["linear"]
    assert off.state["lora_A"].dtype == jnp.bfloat16
    assert relative(update(off), update(half[0]["linear"])) < 0.02


def test_a_frozen_multiplier_counts(sets):
    plain = sets[0]["stack"]
    state = {**plain.state, "multiplier": jnp.asarray([2.0, -1.0])}
    adapters = AdapterSet({"stack": dataclasses.replace(plain, state=state)})
    combined = combine([adapters], [0.5])["stack"]
    factors = np.asarray([2.0, -1.0])[:, None, None]
    assert combined.state.keys() == {"lora_A", "lora_B"}
    assert relative(update(combined), 0.5 * factors * update(plain)) < 3e-6


# --- DARE


def test_dare_keeps_entries_at_random_and_is_right_on_average(sets):
    # One layer of one set, so that every entry is known: 0 or U / density.
    one = AdapterSet({"linear": sets[0]["linear"]})
    exact = update(one["linear"])

    @jax.jit
    @jax.vmap
    def sample(key):
        state = combine([one], [1.0], "dare_linear", density=DENSITY, rank=LARGE, key=key)
        state = state["linear"].state
        return state["lora_B"] @ state["lora_A"]  # alpha is the rank, so the scale is 1

    draws = 1000
    found = np.asarray(sample(jax.random.split(jax.random.key(0), draws)), np.float64)
    scaled = found / exact * DENSITY
    assert np.allclose(scaled, np.round(scaled), atol=1e-3)
    assert {*np.unique(np.round(scaled)).tolist()} == {0.0, 1.0}
    deviation = np.abs(exact) * np.sqrt((1 / DENSITY - 1) / draws)
    assert np.all(np.abs(found.mean(axis=0) - exact) < 5 * deviation)


@pytest.mark.parametrize(("method", "merge"), [("dare_linear", sum), ("dare_ties", agreed)])
def test_dare_of_several_sets_is_the_method_on_what_was_kept(sets, method, merge):
    arguments = {"density": DENSITY, "rank": LARGE, "key": jax.random.key(4)}
    combined = combine(sets[:2], WEIGHTS[:2], method, **arguments)
    for path, found in updates(combined).items():
        masks = itertools.product([0, 1 / DENSITY], repeat=2)
        parts = weighted(sets[:2], path)
        possible = np.stack(
            [merge([np.asarray(p * m) for p, m in zip(parts, mask, strict=True)]) for mask in masks]
        )
        distance = np.abs(possible - found).min(axis=0)
        assert distance.max() < 1e-5 * np.abs(possible).max()
    flat = [update(combined[path]).ravel() for path in combined]
    assert any((np.abs(part) < 1e-6).any() for part in flat)


def test_dares_dropped_entries_depend_on_the_key_and_the_path_alone(sets):
    def dare(key, *some):
        return combine(some, [1.0] * len(some), "dare_linear", density=DENSITY, rank=LARGE, key=key)

    one, two = jax.random.key(1), jax.random.key(2)
    alone = dare(one, AdapterSet({"linear": sets[0]["linear"]}))
    assert relative(update(dare(one, sets[0])["linear"]), update(alone["linear"])) < 1e-5
    assert relative(update(dare(two, sets[0])["linear"]), update(alone["linear"])) > 0.1


# --- KnOTS and RegMean, against NumPy in float64

OFF_DIAGONAL = 0.7


@pytest.fixture(scope="module")
def two():
    """Two sets. The second set lacks the convolution's adapter."""
    model = layers()
    parts = trained(model, "lora", 1), trained(model, "rslora", 2, target="linear|stack", rank=1)
    return [extract_adapters(part) for part in parts]


@pytest.fixture(scope="module")
def statistics():
    """The covariances of random inputs, of both sets at each layer."""
    random = np.random.default_rng(0)

    def covariance(*shape):
        mixing = np.eye(shape[-1]) + 0.3 * random.normal(size=shape[-1:] * 2)
        rows = random.normal(size=(*shape[:-1], 20, shape[-1])) @ mixing
        return {"input_covariance": jnp.asarray(rows.swapaxes(-1, -2) @ rows / 20, jnp.float32)}

    widths = {"convolution": (6,), "linear": (5,), "stack": (2, 4)}
    return [{path: covariance(*shape) for path, shape in widths.items()} for _ in range(2)]


def test_regmean_is_the_least_squares_fit_to_the_outputs(two, statistics):
    """The merged update has the least `sum_i |(U - w_i U_i) G_i^(1/2)|^2`, by NumPy's solver."""
    arguments = {"statistics": statistics, "off_diagonal": OFF_DIAGONAL}
    found = updates(combine(two, WEIGHTS[:2], "regmean", **arguments))
    assert list(found) == ["convolution", "linear", "stack"]
    for path, combined in found.items():
        grams = [np.asarray(s[path]["input_covariance"], np.float64) for s in statistics]
        grams = [OFF_DIAGONAL * g + (1 - OFF_DIAGONAL) * g * np.eye(g.shape[-1]) for g in grams]
        parts = [
            w * update(s[path]) if path in s else np.zeros_like(combined)
            for w, s in zip(WEIGHTS, two, strict=False)
        ]
        expected = np.stack(
            [
                fitted([g.reshape(-1, *g.shape[-2:])[k] for g in grams], slices)
                for k, slices in enumerate(
                    zip(*[p.reshape(-1, *p.shape[-2:]) for p in parts], strict=True)
                )
            ]
        )
        assert relative(combined, expected.reshape(combined.shape)) < 1e-4
    assert combine(two, WEIGHTS[:2], "regmean", rank=1, **arguments)["linear"].rank == 1


def fitted(grams, parts):
    """The update whose outputs are nearest to the parts' outputs, as one least-squares problem."""
    roots = [np.linalg.cholesky(gram).T for gram in grams]  # `|R x|^2` is the output's square
    targets = [root @ part.T for root, part in zip(roots, parts, strict=True)]
    return np.linalg.lstsq(np.concatenate(roots), np.concatenate(targets), rcond=None)[0].T


def test_knots_trims_and_elects_among_aligned_factors(two):
    found = updates(combine(two, WEIGHTS[:2], "knots_ties", density=DENSITY, rank=LARGE))
    for path in ("linear", "stack"):
        both = np.stack([update(s[path]) for s in two])
        both = both.reshape(2, -1, *both.shape[-2:])
        expected = np.stack([knots(both[:, k]) for k in range(both.shape[1])])
        assert relative(found[path], expected.reshape(found[path].shape)) < 1e-5
    ties = combine(two, WEIGHTS[:2], "ties", density=DENSITY, rank=LARGE)
    assert relative(found["linear"], update(ties["linear"])) > 0.1


def knots(parts):
    """The paper's steps for two updates of one matrix."""
    U, S, Vt = np.linalg.svd(np.concatenate(list(parts), axis=1), full_matrices=False)
    k = min(3, len(S))  # the ranks are 2 and 1
    V = np.split(S[:k, None] * Vt[:k], 2, axis=1)
    weighted = [weight * trim(v) for weight, v in zip(WEIGHTS, V, strict=False)]
    return U[:, :k] @ agreed(weighted, "total")


def test_statistics_that_make_no_sense_are_refused(two, statistics, unchecked):
    cases = [
        ("'regmean' needs the inputs' `statistics` of each set", "regmean", {}),
        ("`statistics` is for regmean, not 'svd'", "svd", {"statistics": statistics}),
        ("one item for each of the 2 sets", "regmean", {"statistics": statistics[:1]}),
        ("one item for each of the 2 sets", "regmean", {"statistics": statistics[0]}),
        ("convolution, in the statistics of set 1", "regmean", {"statistics": [statistics[0], {}]}),
        ("`off_diagonal` is for regmean", "svd", {"off_diagonal": 0.5}),
        ("`off_diagonal` must be", "regmean", {"statistics": statistics, "off_diagonal": 0.0}),
        ("convolution: .* keeps no entry of", "knots_ties", {"density": 0.01}),
        ("stack: .*0.03 keeps no entry of .* 12 entries", "ties", {"density": 0.03}),
    ]
    for message, method, arguments in cases:
        with pytest.raises(SelectionError, match=message):
            combine(two, [1.0, 1.0], method, **arguments)


# --- scaling


def test_scaling_multiplies_every_update_and_nothing_else(sets):
    for one in sets[:2]:
        scaled = scale_adapters(one, -2.0)
        assert jax.tree.structure(scaled) == jax.tree.structure(one)
        for path in one:
            assert np.array_equal(update(scaled[path]), -2 * update(one[path]))
    # No half precision rounds the factor.
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), sets[0])
    B = half["linear"].state["lora_B"]
    expected = (B.astype(jnp.float32) * 1.003).astype(jnp.bfloat16)
    assert not jnp.array_equal(expected, B)
    assert jnp.array_equal(scale_adapters(half, 1.003)["linear"].state["lora_B"], expected)


# --- errors


def test_layers_of_other_forms_are_listed():
    keys = jax.random.split(jax.random.key(1), 2)
    models = [
        {"a": eqx.nn.Linear(3, 2, key=keys[0]), "b": eqx.nn.Linear(2, 2, key=keys[0])},
        {"a": eqx.nn.Linear(3, 4, key=keys[1]), "b": eqx.nn.Linear(2, 2, False, key=keys[1])},
    ]
    sets = [extract_adapters(trained(model, "lora", 1, rank=1)) for model in models]
    with pytest.raises(SelectionError) as error:
        combine(sets, [1.0, 1.0])
    forms = [f"Linear(weight float32[{n}, 3], bias float32[{n}])" for n in (2, 4)]
    told = f"a: set 0 has a LoRALinear, set 1 a LoRALinear: they are for {forms[0]} and {forms[1]}"
    assert told in str(error.value) and "b: set 0 has" in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda sets: combine(sets[0], [1.0]), r"give a list: \[adapters\]"),
        (lambda sets: scale_adapters(sets, 0.5), "takes an AdapterSet, but got a list"),
        (lambda sets: swap_adapters(layers(), layers()), "an AdapterSet, but are of type dict"),
        (lambda _: Net(layers()).add_adapter("one", layers()), "but are of type dict"),
    ],
)
def test_an_object_that_is_not_a_list_of_sets_is_named_by_its_type(call, message, sets, unchecked):
    with pytest.raises(SelectionError, match=message):
        call(sets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [1.0]}, "a list of 2 numbers, one for each set"),
        ({"method": "tie"}, "no method 'tie'; did you mean 'ties'"),
        ({"method": "ties"}, "'ties' needs a `density`"),
        ({"density": 0.5}, "`density` is for ties, .*, not 'linear'"),
        ({"majority_sign": "votes"}, "must be 'total' or 'frequency', but is 'votes'"),
        ({"method": "ties", "density": 0.0}, r"number in \(0, 1\], but is 0.0"),
        ({"method": "dare_ties", "density": 0.5}, "needs a `key`"),
        ({"method": "svd", "key": jax.random.key(0)}, "`key` is for dare_linear, .*, not 'svd'"),
        ({"method": "cat", "rank": 2}, "`rank` is for svd, .*, not 'cat'"),
        ({"weights": 0.5}, "a list of 2 numbers, one for each set, but is 0.5"),
        ({"weights": [1.0, "1"]}, r"`weights\[1\]` must be one real number, but is '1'"),
        ({"method": "dare_ties", "density": 0.5, "key": 3}, "must be one random key"),
        ({"method": "svd", "rank": 2.5}, "an integer of at least 1, but is 2.5"),
    ],
)
def test_arguments_that_make_no_sense(sets, arguments, message, unchecked):
    arguments = {"sets": sets[:2], "weights": [1.0, 1.0], **arguments}
    with pytest.raises(SelectionError, match=message):
        combine(**arguments)
