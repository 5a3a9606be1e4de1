"""Nets and sets in the place of a model, and classes without a rank."""

import jax
import pytest
from tests.core.test_options import OutputGain
from tests.core.toys import ToyLinear, shaken

from jno.lora import (
    Net,
    SelectionError,
    adapter_effects,
    apply_lora,
    extract_adapters,
    plot_adapters,
    shrink,
    stack_adapters,
    to_lora,
)


@pytest.mark.parametrize("function", [adapter_effects, plot_adapters, shrink, to_lora])
def test_nets_and_sets_are_refused_by_name(function, model, registry):
    net, name = Net(model).lora(1, wrapper=ToyLinear), function.__name__
    with pytest.raises(SelectionError, match=rf"^{name} takes a model.*Give net\.module$"):
        function(net)
    with pytest.raises(SelectionError, match=rf"^{name} takes a model, but was given an Adapter"):
        function(extract_adapters(net.module))


def test_adapters_without_a_rank_stack(model):
    adapted = shaken(apply_lora(model, key=jax.random.key(0), wrapper=OutputGain))
    adapters = extract_adapters(adapted)
    stacked = stack_adapters([adapters, adapters])
    assert stacked.adapters["head"].state["gain"].shape == (2, 2)
