"""Values and gradients in double precision, against NumPy: the law, and loops for the layer.

The other tests compare in float32, or with JAX's own layers. Here nothing is shared with what is
tested but the adapter's arrays (of VeRA also the two matrices that it draws), so that the bounds
can be those of double precision, and every single derivative is compared with a central difference:
in the adapter's arrays and in the input, of the layer's way to compute its output and of the merged
layer's.
"""

import jax
import numpy as np
import pytest
from tests.pairs import ALL
from zoo_cases import ALL_METHODS, cast_floats, dealt, on_cases, pairs
from zoo_cases.layers import NAMES
from zoo_cases.maps import output
from zoo_cases.oracle import Oracle

# The layers on which a wrong law shows. Each method has one of the first five, which have at least
# as many outputs as inputs, and one of the last five, which have fewer. Every layer, some of which
# have a single row or do more than their matrix, has DoRA, which uses the most of a layer.
TELLING = (
    *(("Linear", "no_bias"), ("Conv", "groups"), ("ConvTranspose", "grouped")),
    *(("Conv", "groups_straddled"), ("Recurrent", "lstm")),
    *(("Linear", "plain"), ("Linear", "rank_above_sizes"), ("Conv", "strided")),
    *(("InNorm", "whole_linear"), ("Embedding", "batch")),
)


def is_possible(adapter, base):
    """Norms of rows take IA3 out again. C3A divides by the number of inputs, but not of a table."""
    if base.name.startswith("rows"):
        return adapter.method not in ("IA3", "IA3Out")
    return (adapter.method, adapter.kind) != ("C3A", "Embedding")


TOLD = (pair for kind, name in TELLING for pair in pairs(*ALL_METHODS, **{kind: (name,)}))
CASES = [
    *pairs(*(ALL_METHODS if ALL else ("DoRA",)), **NAMES),
    # These read a column of the update without the update.
    *pairs("LoKr", "OFTIn", "HRA", "DEFT", "IA3In", Embedding=("batch",)),
    *dealt(filter(lambda pair: is_possible(*pair), TOLD), layers=2),
]


@pytest.mark.slow
@on_cases(pair for pair in CASES if is_possible(*pair))
def test_values_and_every_derivative_are_those_of_numpy(adapter, base):
    arguments = jax.tree.map(np.asarray, base.arguments())
    arguments = cast_floats(arguments, np.float64)
    Oracle(
        adapter.method, adapter.cls, base.layer, base.rank, arguments, output, call=base.call
    ).check()
