"""Adapters that depend on the input or on a task, against PEFT itself: `make test-peft`.

Lily is among the cases of all types.
"""

import copy
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases import torch_side as sides
from peft_cases.files import normal
from peft_cases.torch_side import peft, torch
from peft_cases.twins import twin
from transformers import PretrainedConfig

from jno.lora import Net, extract_adapters
from jno_lora_peft import load_peft, save_peft
from jno_lora_routed import XLoRA, arrow, with_invocation, with_task

IN, OUT, R, N = 6, 4, 2, 3
X = np.random.default_rng(0).normal(size=(2, 5, IN)).astype(np.float32)


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(IN, OUT)

    def forward(self, x, **kwargs):
        return self.layer(x, **kwargs)


def check(got, expected):
    np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("general", [0, 2])
def test_arrow(general):
    names = [f"task_{i}" for i in range(4)] + [f"gks_{i}" for i in range(general)]
    config = peft.LoraConfig(r=R, lora_alpha=3, target_modules=["layer"])
    model = peft.get_peft_model(Torch(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model.layer
    generator = np.random.default_rng(1)
    plain = sides.linear_twin(layer.base_layer)
    made = Net(plain).lora(rank=R, alpha=3.0)
    sets = []
    for name in names:
        A, B = (generator.normal(size=s).astype(np.float32) for s in ((R, IN), (OUT, R)))
        layer.lora_A[name].weight.data = torch.tensor(A)
        layer.lora_B[name].weight.data = torch.tensor(B)
        moved = eqx.tree_at(lambda m: (m.lora_A, m.lora_B), made.module, (A, B))
        sets.append(extract_adapters(jax.tree.map(jnp.asarray, moved)))
    routing = peft.ArrowConfig(top_k=2, router_temperature=0.5, use_gks=bool(general), rng_seed=0)
    routing.task_adapter_names, routing.gks_adapter_names = names[:4], names[4:]
    model.add_adapter(
        "arrow_router", peft.LoraConfig(r=R, target_modules=["layer"], arrow_config=routing)
    )
    model.set_adapter("arrow_router")
    # PEFT finds prototypes by 15 steps of a power iteration: give it time.
    arrow_layer = layer.lora_arrow["arrow_router"]
    iterate = arrow_layer.top_right_singular_vec_from_BA
    arrow_layer.top_right_singular_vec_from_BA = lambda A, B: iterate(A, B, iters=2000)
    routed = arrow(plain, sets[:4], top_k=2, temperature=0.5, general=sets[4:])
    check(jax.vmap(jax.vmap(routed))(jnp.asarray(X)), model.eval()(torch.tensor(X)))


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(IN, OUT)
        self.second = torch.nn.Linear(OUT, IN)


class Sequence(torch.nn.Module):
    """Two layers, with the hidden states that X-LoRA asks for."""

    def __init__(self):
        super().__init__()
        self.model = Inner()
        self.config = PretrainedConfig(use_cache=False)

    def prepare_inputs_for_generation(self):
        raise NotImplementedError

    def forward(self, inputs_embeds=None, **_):
        h = torch.tanh(self.model.first(inputs_embeds))
        return types.SimpleNamespace(hidden_states=(h,), output=self.model.second(h))


class Tokens(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self.second, axis_name="tokens")(self.hidden(x))

    def hidden(self, x):
        return jnp.tanh(jax.vmap(self.first, axis_name="tokens")(x))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"layerwise_scalings": True, "softmax_temperature": 2.0, "scaling_pass_value": 0.5},
            {"layerwise": True, "temperature": 2.0, "pass_value": 0.5},
        ),
        (
            {"top_k_lora": 2, "xlora_depth": 2, "xlora_size": 7, "global_scaling_weight": 0.5},
            {"top_k": 2, "depth": 2, "width": 7, "scale": 0.5},
        ),
        (
            {"enable_softmax": False, "top_k_lora": 2, "enable_softmax_topk": True},
            {"softmax": False, "top_k": 2, "top_k_softmax": True},
        ),
    ],
)
def test_xlora(theirs, ours, tmp_path):
    torch.manual_seed(0)
    base = Sequence()
    for index in range(N):
        config = peft.LoraConfig(r=R, lora_alpha=3, target_modules=["first", "second"])
        model = peft.get_peft_model(copy.deepcopy(base), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter)
        model.save_pretrained(tmp_path / f"{index}")
    paths = {f"{index}": str(tmp_path / f"{index}") for index in range(N)}
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=OUT, adapters=paths, xlora_dropout_p=0.0, **theirs
    )
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    expected = model(inputs_embeds=torch.tensor(X)).output

    tokens = Tokens(sides.linear_twin(base.model.first), sides.linear_twin(base.model.second))
    loaded = (load_peft(tokens, path, rename={"model/": ""}) for path in paths.values())
    sets = [extract_adapters(model) for model in loaded]
    options = {"key": jax.random.key(0), "axis": "tokens", **ours}
    xlora = XLoRA(tokens, sets, Tokens.hidden, features=OUT, **options)
    classifier = model.base_model.internal_xlora_classifier.layers
    linears = [layer for layer in classifier if isinstance(layer, torch.nn.Linear)]
    arrays = [jnp.asarray(p.detach().numpy()) for x in linears for p in (x.weight, x.bias)]
    xlora = eqx.tree_at(
        lambda x: [a for layer in x.classifier for a in (layer.weight, layer.bias)], xlora, arrays
    )
    check(jax.vmap(xlora)(jnp.asarray(X)), expected)


TASKS = [0, 2, 0, 2]
INVOKED = np.asarray(
    [[7, 3, 7, 3, 1, 7], [7, 3, 3, 7, 1, 3], [1, 7, 7, 7, 3, 7], [0, 1, 2, 4, 7, 3]]
)
BATCHES = {"wide": normal(4, 6, 8), "deep": normal(4, 6, 6, seed=1)}


def assert_near(ours, theirs):
    for name in BATCHES:
        ours_, theirs_ = np.asarray(ours[name]), theirs[name]
        np.testing.assert_allclose(ours_, theirs_, atol=1e-5 * np.abs(theirs_).max(), rtol=0)


def ours_of(model, kind):
    def outputs(how, x):
        is_task = kind == "poly"
        chosen = with_task(model, how) if is_task else with_invocation(model, how, axis="tokens")
        return {name: jax.vmap(chosen[name], axis_name="tokens")(x[name]) for name in BATCHES}

    how = jnp.asarray(TASKS) if kind == "poly" else jnp.asarray(INVOKED)
    return jax.jit(jax.vmap(outputs))(how, jax.tree.map(jnp.asarray, BATCHES))


@pytest.mark.parametrize("kind", sides.ROUTED)
def test_files_compute_the_same_here_and_are_written_back(kind, tmp_path):
    plain = twin(sides.weights(sides.model()))
    theirs = sides.trained(sides.ROUTED[kind])
    expected = sides.routed_outputs(theirs, kind, BATCHES, TASKS, INVOKED)
    theirs.save_pretrained(tmp_path)
    ours = load_peft(plain, tmp_path, tied=False)
    assert_near(ours_of(ours, kind), expected)
    if kind == "alora":
        base = {
            name: jax.vmap(jax.vmap(plain[name]))(jnp.asarray(x)) for name, x in BATCHES.items()
        }
        start = [2, 0, 3, 4]  # of the last [7, 3] in each row
        for name, y in ours_of(ours, kind).items():
            for row, first in enumerate(start):
                assert np.array_equal(y[row, :first], base[name][row, :first])
                assert not np.allclose(y[row, first:], base[name][row, first:], atol=1e-3)
    save_peft(ours, tmp_path / "again", tied=False)
    again = sides.loaded(tmp_path / "again")
    assert_near(expected, sides.routed_outputs(again, kind, BATCHES, TASKS, INVOKED))
