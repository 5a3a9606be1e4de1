"""Every adapter of the zoo keeps every promise, as the kit checks it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.pairs import ALL, methods_on, pairwise
from zoo_cases import (
    ALL_METHODS,
    METHODS,
    OF_THE_KIND,
    OPTIONS,
    SAME_BUT,
    WHOLE_KIT,
    check_kind,
    kind_only,
    parameter_count,
)

import jno_lora_zoo
from jno.lora.testing import (
    WrapperCase,
    cyclic_shift,
    parametrize_with_checks,
    standard_cases,
)

RANK = 3
SIZE = 4  # of the standard case of a square layer


def linear(key):
    return eqx.nn.Linear(7, 5, key=key)


def grouped_conv(key, padding_mode="ZEROS"):
    settings = {"stride": (2, 1), "padding": "SAME", "dilation": (1, 2), "groups": 2}
    return eqx.nn.Conv2d(4, 8, (3, 2), **settings, padding_mode=padding_mode, key=key)


def periodic_grouped_conv(key):
    return grouped_conv(key, "CIRCULAR")


def conv(key):
    return eqx.nn.Conv1d(3, 5, 3, padding=1, padding_mode="CIRCULAR", use_bias=False, key=key)


LINEAR = "Linear", linear, (7,), (5, 7)
GROUPED = "Conv", grouped_conv, (4, 6, 5), (8, 12)
CIRCULAR = "Conv", conv, (3, 8), (5, 9)
PERIODIC_GROUPED = "Conv", periodic_grouped_conv, (4, 6, 5), (8, 12)
# The stride of the first axis of points is 2.
SHIFTS = {
    conv: (cyclic_shift(-1),),
    periodic_grouped_conv: (
        cyclic_shift(-2, steps=(2, 1), name="cyclic shift of rows"),
        cyclic_shift(-1, name="cyclic shift of columns"),
    ),
}
# Where a second layer of a kind differs: it pads in another way, and has no bias.
OF_THE_LAYER = (
    *OF_THE_KIND,
    *("merge-restores-form", "reads-like-the-layer", "special-inputs"),
    *("jit", "vmap", "output-dtype"),
)


def case(method, kind, base, shape, matrix, checks=("*",)):
    return WrapperCase(
        getattr(jno_lora_zoo, method + kind),
        base=base,
        inputs=lambda key: (jax.random.normal(key, shape),),
        rank=RANK,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, RANK, *matrix),
        name=f"{method}-{base.__name__}",
        checks=checks,
        symmetries=SHIFTS.get(base, ()),
    )


def further_linear_cases(method):
    """Layers of other shapes, for the checks that compare values."""
    _, *further = standard_cases(
        getattr(jno_lora_zoo, f"{method}Linear"),
        ["Linear"],
        parameters=lambda layer, rank: parameter_count(method, rank, *layer.weight.shape),
    )
    cases = [dataclasses.replace(case, options=OPTIONS.get(method, {})) for case in further]
    return [circulant_case(method, case) if "square" in str(case) else case for case in cases]


def circulant(key):
    """A square linear layer that keeps cyclic shifts: its matrix is circulant."""
    layer = eqx.nn.Linear(SIZE, SIZE, key=key)
    row = np.asarray(layer.weight)[0]
    matrix = jnp.asarray(np.stack([np.roll(row, i) for i in range(SIZE)]))
    bias = jnp.full(SIZE, 0.5, matrix.dtype)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (matrix, bias))


def circulant_case(method, square):
    """The standard case of a square layer, with a matrix whose symmetry the methods break.

    C3A with a single block is itself circulant.
    """
    rank = SIZE if method == "C3A" else square.rank
    return dataclasses.replace(
        square,
        base=circulant,
        rank=rank,
        parameters=parameter_count(method, rank, SIZE, SIZE),
        checks=(*square.checks, "symmetries"),
        symmetries=(cyclic_shift(0),),
        breaks=() if method == "C3A" else ("cyclic shift",),
    )


CASES = [
    *(case(method, *LINEAR) for method in ALL_METHODS if ALL or method not in SAME_BUT),
    *(case(method, *GROUPED) for method in WHOLE_KIT),
    *(case(method, *CIRCULAR, OF_THE_LAYER) for method in methods_on("Conv", METHODS)),
]
FURTHER = {
    (method, str(case).split("-")[-1]): case
    for method in ALL_METHODS
    for case in further_linear_cases(method)
}


@parametrize_with_checks([*CASES, *(FURTHER[pair] for pair in pairwise(FURTHER))])
def test_conformance(check):
    check()


# These methods use the same operations of a convolution. With circular padding, the checks include
# the shifts: with those of `CIRCULAR`, every method of the zoo keeps them.
@pytest.mark.parametrize("method", kind_only("Conv"))
def test_other_methods_on_convolutions(method):
    check_kind(case(method, *PERIODIC_GROUPED))


@pytest.mark.parametrize("method", SAME_BUT)
def test_nothing_but_one_member_is_different(method):
    check_kind(case(method, *LINEAR))
    sibling, member = SAME_BUT[method]
    different, alike = (getattr(jno_lora_zoo, name) for name in (method, sibling))
    assert different.__bases__ == alike.__bases__
    written = {name for name in vars(different) if not name.startswith(("__", "_abc_"))}
    # `takes_weights` follows from the members.
    assert written - {"takes_weights"} == {*("variant", "about", "method"), member}
