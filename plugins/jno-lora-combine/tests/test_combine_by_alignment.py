"""KnOTS and RegMean, against NumPy in float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tests.zoo.combining._tools import layers, relative, trained, update, updates

from jno.lora import SelectionError, combine, extract_adapters

from .test_combine import DENSITY, LARGE, WEIGHTS, agreed, trim

OFF_DIAGONAL = 0.7


@pytest.fixture(scope="module")
def sets():
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


def test_regmean_is_the_least_squares_fit_to_the_outputs(sets, statistics):
    """The merged update has the least `sum_i |(U - w_i U_i) G_i^(1/2)|^2`, by NumPy's solver."""
    arguments = {"statistics": statistics, "off_diagonal": OFF_DIAGONAL}
    found = updates(combine(sets, WEIGHTS[:2], "regmean", **arguments))
    assert list(found) == ["convolution", "linear", "stack"]
    for path, combined in found.items():
        grams = [np.asarray(s[path]["input_covariance"], np.float64) for s in statistics]
        grams = [OFF_DIAGONAL * g + (1 - OFF_DIAGONAL) * g * np.eye(g.shape[-1]) for g in grams]
        parts = [
            w * update(s[path]) if path in s else np.zeros_like(combined)
            for w, s in zip(WEIGHTS, sets, strict=False)
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


def fitted(grams, parts):
    """The update whose outputs are nearest to the parts' outputs, as one least-squares problem."""
    roots = [np.linalg.cholesky(gram).T for gram in grams]  # `|R x|^2` is the output's square
    targets = [root @ part.T for root, part in zip(roots, parts, strict=True)]
    return np.linalg.lstsq(np.concatenate(roots), np.concatenate(targets), rcond=None)[0].T


def test_regmean_of_equal_data_is_the_mean_and_may_be_cut(sets, statistics):
    arguments = {"statistics": [statistics[0]] * 2, "off_diagonal": 1.0}
    mean = combine(sets, [1.0, 1.0], "regmean", **arguments)["linear"]
    assert mean.rank == 3
    expected = (update(sets[0]["linear"]) + update(sets[1]["linear"])) / 2
    assert relative(update(mean), expected) < 1e-4
    cut = combine(sets, [1.0, 1.0], "regmean", rank=1, **arguments)["linear"]
    U, S, Vt = np.linalg.svd(expected)
    assert cut.rank == 1
    assert relative(update(cut), S[0] * np.outer(U[:, 0], Vt[0])) < 1e-4


def test_knots_trims_and_elects_among_aligned_factors(sets):
    found = updates(combine(sets, WEIGHTS[:2], "knots_ties", density=DENSITY, rank=LARGE))
    for path in ("linear", "stack"):
        both = np.stack([update(s[path]) for s in sets])
        both = both.reshape(2, -1, *both.shape[-2:])
        expected = np.stack([knots(both[:, k]) for k in range(both.shape[1])])
        assert relative(found[path], expected.reshape(found[path].shape)) < 1e-5
    ties = combine(sets, WEIGHTS[:2], "ties", density=DENSITY, rank=LARGE)
    assert relative(found["linear"], update(ties["linear"])) > 0.1


def knots(parts):
    """The paper's steps for two updates of one matrix."""
    U, S, Vt = np.linalg.svd(np.concatenate(list(parts), axis=1), full_matrices=False)
    k = min(3, len(S))  # the ranks are 2 and 1
    V = np.split(S[:k, None] * Vt[:k], 2, axis=1)
    weighted = [weight * trim(v) for weight, v in zip(WEIGHTS, V, strict=False)]
    return U[:, :k] @ agreed(weighted, "total")


def test_arguments_that_make_no_sense_are_refused(sets, statistics, unchecked):
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("'regmean' needs the inputs' `statistics` of each set", "regmean", {}),
        ("`statistics` is for regmean, not 'svd'", "svd", {"statistics": statistics}),
        ("one item for each of the 2 sets", "regmean", {"statistics": statistics[:1]}),
        ("one item for each of the 2 sets", "regmean", {"statistics": statistics[0]}),
        ("convolution, in the statistics of set 1", "regmean", {"statistics": [statistics[0], {}]}),
        ("`off_diagonal` is for regmean", "svd", {"off_diagonal": 0.5}),
        ("`off_diagonal` must be", "regmean", {"statistics": statistics, "off_diagonal": 0.0}),
        ("convolution: .* keeps no entry of", "knots_ties", {"density": 0.01}),
    ]
    for message, method, arguments in cases:
        with pytest.raises(SelectionError, match=message):
            combine(sets, [1.0, 1.0], method, **arguments)
