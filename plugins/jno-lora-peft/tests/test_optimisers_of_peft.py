"""`jno_lora_train.optim` against the optimisers of PEFT, on Torch in float64: `make test-peft`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from peft_cases.torch_side import linear_twin, peft, quiet, torch

from jno.lora import Net, lora_trainable_filter
from jno_lora_train.optim import lora_fa, lora_plus, scale_by_riemannian

STEPS, RANK, ALPHA = 5, 3, 6.0
X, Y = (np.random.default_rng(seed).normal(size=(8, n)) for seed, n in enumerate((6, 5)))


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    with quiet():
        model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 5)), config).double()
    torch.nn.init.normal_(parameter(model, "lora_B.default"))
    return model


def parameter(model, name):
    return model.get_parameter(f"base_model.model.0.{name}.weight")


def factors_of_peft(model, optimiser):
    for _ in range(STEPS):
        optimiser.zero_grad()
        ((model(torch.tensor(X)) - torch.tensor(Y)) ** 2).sum().backward()
        optimiser.step()
    return [parameter(model, f"lora_{k}.default").detach().numpy() for k in "AB"]


def our_factors(model, variant, make):
    linear = linear_twin(model.base_model.model[0].base_layer)
    net = Net(linear).freeze().lora(RANK, ALPHA, wrapper=variant)
    start = [jnp.asarray(parameter(model, f"lora_{k}.default").detach().numpy()) for k in "AB"]
    adapter = eqx.tree_at(lambda it: (it.lora_A, it.lora_B), net.module, start)
    params, frozen = eqx.partition(adapter, lora_trainable_filter(adapter))
    optimiser = make(adapter)
    state = optimiser.init(params)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(params):
        return jnp.sum((jax.vmap(eqx.combine(params, frozen))(jnp.asarray(X)) - Y) ** 2)

    for _ in range(STEPS):
        updates, state = optimiser.update(gradient(params), state, params)
        params = eqx.apply_updates(params, updates)
    trained = eqx.combine(params, frozen)
    return [trained.lora_A, trained.lora_B]


def riemannian(model):
    return peft.optimizers.create_riemannian_optimizer(model, torch.optim.Adam, lr=1e-2, reg=1e-2)


def plus(model):
    rates = {"lr": 1e-2, "loraplus_lr_ratio": 16, "loraplus_weight_decay": 0.1}
    return peft.optimizers.create_loraplus_optimizer(model, torch.optim.AdamW, **rates)


def fa(model):
    return peft.optimizers.create_lorafa_optimizer(model, r=RANK, lora_alpha=ALPHA, lr=1e-2)


CASES = {
    "riemannian": (
        riemannian,
        "lora",
        lambda _: optax.chain(scale_by_riemannian(1e-2), optax.adam(1e-2)),
        1e-12,
    ),
    "lora_plus": (plus, "lora", lambda _: lora_plus(optax.adamw(1e-2, weight_decay=0.1)), 1e-12),
    # PEFT's Adam adds its `eps` to another denominator.
    "lora_fa": (
        fa,
        "lora-fa",
        lambda model: optax.chain(lora_fa(model), optax.adam(1e-2, eps=1e-6)),
        1e-5,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_both_sides_train_alike(name, theirs, monkeypatch):
    their_optimiser, variant, make, tolerance = CASES[name]
    # With it, PEFT corrects gradients in bfloat16.
    monkeypatch.setattr("peft.optimizers.lorafa.is_bf16_available", lambda: False)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        with jax.numpy_rank_promotion("allow"):
            ours = our_factors(theirs, variant, make)
        before = parameter(theirs, "lora_B.default").detach().numpy().copy()
        for one, other in zip(ours, factors_of_peft(theirs, their_optimiser(theirs)), strict=True):
            np.testing.assert_allclose(one, other, atol=tolerance)
        assert np.abs(np.asarray(ours[1]) - before).max() > 1e-2
