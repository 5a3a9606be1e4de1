"""The function that builds adapters in a solve of jNO, without jNO."""

import equinox as eqx
import jax
import pytest

from jno.lora import DoRALinear, Registry, SelectionError
from jno_lora_jno._functions import apply_lora


def mlp():
    return eqx.nn.MLP(3, 3, 4, 1, key=jax.random.key(0))


def test_adapters_that_train_a_shared_array_are_refused_because_the_loss_of_jno_resolves_none():
    square = eqx.nn.MLP(3, 3, 3, 1, key=jax.random.key(0))
    with pytest.raises(SelectionError, match=r"share '.*'.* `jno.lora.resolve`"):
        apply_lora(square, 2, key=jax.random.key(0), wrappers="tied-lora")
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(
        jax.random.split(jax.random.key(0), 2)
    )
    for model in (stack, mlp()):  # frozen
        apply_lora(model, 2, key=jax.random.key(0), wrappers="vera-shared")


def test_a_solve_makes_no_advice_that_nobody_reads(monkeypatch):
    def loaded(*_):
        raise AssertionError

    monkeypatch.setattr(Registry, "loaded", loaded)
    model = {"mlp": mlp(), "table": eqx.nn.Embedding(4, 3, key=jax.random.key(1))}
    adapted = apply_lora(model, 2, key=jax.random.key(0), wrappers=DoRALinear)
    assert type(adapted["mlp"].layers[0]) is DoRALinear
    assert type(adapted["table"]) is eqx.nn.Embedding


def test_adapters_of_the_model_train_on_and_the_other_layers_get_new_adapters():
    key = jax.random.key(0)
    some = apply_lora(mlp(), 1, key=key, wrappers=DoRALinear, target="layers/0")
    assert apply_lora(some, 2, key=key, wrappers="lora", target="layers/0") is some
    both = apply_lora(some, 2, key=key, wrappers="lora")
    assert eqx.tree_equal(both.layers[0], some.layers[0])
    assert (both.layers[0].rank, both.layers[1].rank) == (1, 2)
