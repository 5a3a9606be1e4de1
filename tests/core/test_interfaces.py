"""The view of people and tools: scopes in profiles, references."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import About, apply_lora, citation

from .toys import ToyConv, ToyLinear, ToyScale


class Renamed(ToyLinear):
    """Inherits its `__call__`."""


def test_a_profile_shows_which_adapter_computes(getkey):
    layer = eqx.nn.Linear(3, 3, key=getkey())
    one, two, three = (cls(layer, 2, 1.0, key=getkey()) for cls in (ToyLinear, Renamed, ToyScale))
    program = jax.jit(lambda x: jnp.tanh(three(two(one(x)), key=None))).lower(jnp.ones(3))
    names = set(re.findall(r'op_name="([^"]*)"', program.compile().as_text()))
    products = {name.split("/")[1] for name in names if name.endswith("dot_general")}
    assert products == {"ToyLinear", "Renamed", "ToyScale"}
    assert "jit(<lambda>)/tanh" in names


class Cited(ToyLinear):
    about = About(
        bibtex="""
        @misc{one,
          title = {One},
        }
        @misc{two,
          title = {Two},
        }
        """
    )


class CitedToo(ToyConv):
    about = About(bibtex="@misc{two,\n  title = {Two},\n}")


class OnlyPaper(ToyLinear):
    about = About(paper="2106.09685")


def test_used_methods_are_cited_once_in_the_order_of_the_model(getkey):
    linear, conv = eqx.nn.Linear(2, 2, key=getkey()), eqx.nn.Conv1d(2, 2, 1, key=getkey())
    model = {"a": linear, "b": conv, "c": linear, "d": linear, "e": linear}
    specs = [
        {"target": "[ab]", "wrapper": [Cited, CitedToo]},
        {"target": "c", "wrapper": OnlyPaper},
        {"target": "d", "wrapper": ToyLinear},
    ]
    assert citation(model) == ""
    text = citation(apply_lora(model, 1, key=getkey(), specs=specs))
    assert text == (
        "@misc{one,\n  title = {One},\n}\n\n"
        "@misc{two,\n  title = {Two},\n}\n\n"
        "% OnlyPaper: arXiv:2106.09685\n\n"
        "% ToyLinear: no reference\n"
    )
