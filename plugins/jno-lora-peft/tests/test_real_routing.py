"""Routed adapters give PEFT's numbers, by PEFT's own layers (`make test-peft`)."""

import copy
import importlib.util
import os
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import Net, extract_adapters
from jno_lora_routed import Lily, Poly, XLoRA, arrow, average_over, with_task

if importlib.util.find_spec("peft") is None:
    message = "needs torch and peft, which `make test-peft` installs"
    if os.environ.get("JNO_LORA_TEST_PEFT"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

import torch
from peft import ArrowConfig, LilyConfig, LoraConfig, PolyConfig, XLoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import PretrainedConfig

IN, OUT, R, N = 6, 4, 2, 3
X = np.random.default_rng(0).normal(size=(2, 5, IN)).astype(np.float32)


class Torch(torch.nn.Module):
    """A model of one layer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(IN, OUT)

    def forward(self, x, **kwargs):
        return self.layer(x, **kwargs)


def with_random_numbers(model):
    """The model of PEFT with random numbers in its adapters, and these, by name."""
    torch.manual_seed(0)
    arrays = {}
    for name, parameter in model.named_parameters():
        if "base_layer" not in name:
            parameter.data = torch.randn_like(parameter)
            arrays[name.split("layer.")[-1].replace(".default", "")] = parameter.data.numpy()
    return model.eval(), arrays


def plain(model):
    layer = eqx.nn.Linear(IN, OUT, key=jax.random.key(0))
    base = model.base_model.model.layer.base_layer
    arrays = [jnp.asarray(x.detach().numpy()) for x in (base.weight, base.bias)]
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, arrays)


def check(got, expected):
    np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-5)


def test_lily():
    config = LilyConfig(r=R, num_B=N, scaling=1.5, target_modules=["layer"])
    model, s = with_random_numbers(get_peft_model(Torch(), config))
    state = {
        "lora_A": jnp.asarray(s["lily_A.weight"]),
        "router/weight": jnp.asarray(s["lily_router.weight"]),
        "sizes": jnp.zeros((1, N), jnp.int8),
    }
    adapter = Lily.from_state(plain(model), state, R, 1.5 * R)
    B = jnp.asarray(s["lily_B.weight"].reshape(N, R, OUT).transpose(0, 2, 1))
    adapter = eqx.tree_at(lambda a: a.lora_B.value, adapter, B, is_leaf=lambda x: x is None)
    adapter = average_over(adapter, "batch", "tokens")
    tokens = jax.vmap(adapter, axis_name="tokens")
    check(jax.vmap(tokens, axis_name="batch")(jnp.asarray(X)), model(torch.tensor(X)))


@pytest.mark.parametrize("splits", [1, 2])
def test_poly(splits):
    config = PolyConfig(r=R, n_tasks=3, n_skills=N, n_splits=splits, target_modules=["layer"])
    model, s = with_random_numbers(get_peft_model(Torch(), config))
    state = {
        "lora_A": jnp.asarray(s["poly_lora_A"].swapaxes(-1, -2)),
        "lora_B": jnp.asarray(s["poly_lora_B"].swapaxes(-1, -2)),
        "router/logits": jnp.asarray(s["poly_router.module_logits"]),
        "settings/task": jnp.zeros((), jnp.int32),
    }
    adapter = Poly.from_state(plain(model), state, R, 1.0)
    tasks = np.asarray([2, 0])
    got = jax.vmap(lambda t, x: jax.vmap(with_task(adapter, t))(x))(jnp.asarray(tasks), X)
    check(got, model(torch.tensor(X), task_ids=torch.tensor(tasks)))


@pytest.mark.parametrize("general", [0, 2])
def test_arrow(general):
    names = [f"task_{i}" for i in range(4)] + [f"gks_{i}" for i in range(general)]
    config = LoraConfig(r=R, lora_alpha=3, target_modules=["layer"])
    model = get_peft_model(Torch(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model.layer
    generator = np.random.default_rng(1)
    made = Net(plain(model)).lora(rank=R, alpha=3.0)
    sets = []
    for name in names:
        A, B = (generator.normal(size=s).astype(np.float32) for s in ((R, IN), (OUT, R)))
        layer.lora_A[name].weight.data = torch.tensor(A)
        layer.lora_B[name].weight.data = torch.tensor(B)
        moved = eqx.tree_at(lambda m: (m.lora_A, m.lora_B), made.module, (A, B))
        sets.append(extract_adapters(jax.tree.map(jnp.asarray, moved)))
    routing = ArrowConfig(top_k=2, router_temperature=0.5, use_gks=bool(general), rng_seed=0)
    routing.task_adapter_names, routing.gks_adapter_names = names[:4], names[4:]
    model.add_adapter(
        "arrow_router", LoraConfig(r=R, target_modules=["layer"], arrow_config=routing)
    )
    model.set_adapter("arrow_router")
    # PEFT finds prototypes by 15 steps of a power iteration: give it time.
    arrow_layer = layer.lora_arrow["arrow_router"]
    iterate = arrow_layer.top_right_singular_vec_from_BA
    arrow_layer.top_right_singular_vec_from_BA = lambda A, B: iterate(A, B, iters=2000)
    routed = arrow(plain(model), sets[:4], top_k=2, temperature=0.5, general=sets[4:])
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
    """The same model here."""

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
        config = LoraConfig(r=R, lora_alpha=3, target_modules=["first", "second"])
        model = get_peft_model(copy.deepcopy(base), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter)
        model.save_pretrained(tmp_path / f"{index}")
    paths = {f"{index}": str(tmp_path / f"{index}") for index in range(N)}
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=OUT, adapters=paths, xlora_dropout_p=0.0, **theirs
    )
    model = get_peft_model(copy.deepcopy(base), config).eval()
    expected = model(inputs_embeds=torch.tensor(X)).output

    layers = {}
    for name in ("first", "second"):
        layer = getattr(base.model, name)
        arrays = [jnp.asarray(x.detach().numpy()) for x in (layer.weight, layer.bias)]
        made = eqx.nn.Linear(layer.in_features, layer.out_features, key=jax.random.key(0))
        layers[name] = eqx.tree_at(lambda m: (m.weight, m.bias), made, arrays)
    tokens = Tokens(**layers)
    made = Net(tokens).lora(rank=R, alpha=3.0).module
    sets = []
    for path in paths.values():
        tensors = load_file(f"{path}/adapter_model.safetensors")
        factors = [
            jnp.asarray(tensors[f"base_model.model.model.{layer}.{factor}.weight"])
            for layer in ("first", "second")
            for factor in ("lora_A", "lora_B")
        ]
        loaded = eqx.tree_at(
            lambda m: [x for a in (m.first, m.second) for x in (a.lora_A, a.lora_B)], made, factors
        )
        sets.append(extract_adapters(loaded))
    key = jax.random.key(0)
    xlora = XLoRA(tokens, sets, Tokens.hidden, features=OUT, key=key, axis="tokens", **ours)
    classifier = model.base_model.internal_xlora_classifier.layers
    linears = [layer for layer in classifier if isinstance(layer, torch.nn.Linear)]
    arrays = [jnp.asarray(p.detach().numpy()) for x in linears for p in (x.weight, x.bias)]
    xlora = eqx.tree_at(
        lambda x: [a for layer in x.classifier for a in (layer.weight, layer.bias)], xlora, arrays
    )
    check(jax.vmap(xlora)(jnp.asarray(X)), expected)
