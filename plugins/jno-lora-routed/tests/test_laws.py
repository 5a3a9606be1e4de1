"""The laws, against functions in float64 that are written from the papers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routed_sets import lora_sets, random

from jno.lora import Net, SelectionError, extract_adapters, resolve
from jno.lora.extending import adapted_layers
from jno_lora_routed import XLoRA, arrow, average_over, with_task

IN, OUT, R, N, TOKENS = 6, 4, 2, 3, 5
KEY = jax.random.key(0)
SCALE = 3.0 / R


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def trained(model, wrapper, **options):
    """The adapted model with random numbers in its trained arrays, and these arrays by name."""
    net = Net(model).freeze().lora(rank=R, alpha=3.0, wrapper=wrapper, options=options)
    trainable, _frozen = net.partition()
    leaves, structure = jax.tree.flatten(trainable)
    leaves = [jnp.asarray(random(*x.shape, seed=i)) for i, x in enumerate(leaves)]
    net.update(jax.tree.unflatten(structure, leaves))
    sets = extract_adapters(net.module)
    state = {} if not len(sets) else dict(sets[next(iter(sets))].state)
    return net.module, {k: np.asarray(v) for k, v in {**state, **sets.shared}.items()}


@pytest.fixture(scope="module")
def layer():
    layer = eqx.nn.Linear(IN, OUT, key=KEY, dtype=jnp.float64)
    return layer, np.asarray(layer.weight), np.asarray(layer.bias)


X = random(TOKENS, IN, seed=9)


def check(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def mapped(layer, **options):
    """The outputs of all tokens, by one program."""
    return eqx.filter_jit(lambda layer: jax.vmap(layer, **options)(X))(layer)


def routed(X, W, b, w, A, B, scales):
    """`W x + b + sum_i w_i s_i B_i A_i x` for each token."""
    return X @ W.T + b + np.einsum("te,e,eor,eri,ti->to", w, scales, B, A, X)


@pytest.mark.parametrize(
    ("variant", "top_k"), [("hydra-lora", N), ("moe-lora", N), ("moe-lora", 2)]
)
def test_experts(layer, variant, top_k):
    layer, W, b = layer
    options = {"top_k": top_k} if top_k < N else {}
    adapter, s = trained(layer, variant, experts=N, **options)
    z = X @ s["router/weight"].T
    w = softmax(np.where(z >= np.sort(z, axis=1)[:, -top_k, None], z, -np.inf))
    A = np.broadcast_to(s["lora_A"], (N, R, IN))  # HydraLoRA has one for all
    check(mapped(adapter), routed(X, W, b, w, A, s["lora_B"], np.full(N, SCALE)))


def lily(X, W, b, s, B, mean):
    h = X @ s["lora_A"].T
    w = softmax(h @ s["router/weight"].T)
    w = np.broadcast_to(w.mean(0), w.shape) if mean else w
    return X @ W.T + b + SCALE * np.einsum("te,eor,tr->to", w, B, h)


def test_lily(layer):
    layer, W, b = layer
    adapted, s = trained({"q": layer, "v": layer}, "lily", experts=N)
    (name,) = [name for name in s if name.startswith("lily")]
    adapter = resolve(adapted)["q"]
    check(mapped(adapter), lily(X, W, b, s, s[name], mean=False))
    averaged = average_over(adapter, "tokens")
    check(mapped(averaged, axis_name="tokens"), lily(X, W, b, s, s[name], mean=True))
    assert eqx.tree_equal(average_over(averaged), adapter)
    net = Net({"q": layer, "k": layer, "v": layer}).lora(wrapper="lily", target="[qk]")
    net.lora(wrapper="lily", target="v", options={"group": 1})
    names = [adapter.lora_B.name for _, adapter in adapted_layers(net.module)]
    assert names[0] == names[1] != names[2]


def poly(x, task, W, b, s, splits):
    p = 1 / (1 + np.exp(-s["router/logits"][task].reshape(splits, -1)))
    w = p / (p.sum(1, keepdims=True) + 1e-12)  # as PEFT
    A = np.concatenate(
        [sum(w[q, i] * s["lora_A"][q, i] for i in range(N)) for q in range(splits)], axis=1
    )
    B = np.concatenate(
        [sum(w[q, i] * s["lora_B"][q, i] for i in range(N)) for q in range(splits)], axis=0
    )
    return W @ x + b + SCALE * B @ A @ x


@pytest.mark.parametrize("splits", [1, 2])
def test_poly(layer, splits):
    layer, W, b = layer
    adapter, s = trained(layer, "poly", tasks=2, skills=N, splits=splits)
    tasks = jnp.asarray([0, 1, 1, 0, 1])
    mixed = jax.jit(jax.vmap(lambda t, x: with_task(adapter, t)(x)))(tasks, X)
    check(mixed, [poly(x, t, W, b, s, splits) for t, x in zip(tasks.tolist(), X, strict=True)])


def test_poly_draws_weights_with_a_key(layer):
    layer, W, b = layer
    adapter, s = trained(layer, "poly", tasks=2, skills=N, sampled=True)
    check(adapter(X[0]), poly(X[0], 0, W, b, s, 1))
    key = jax.random.key(3)
    noise = np.asarray(jax.random.logistic(key, (N,), jnp.float64))
    drawn = {**s, "router/logits": s["router/logits"] + noise}
    check(adapter(X[0], key=key), poly(X[0], 0, W, b, drawn, 1))


def test_tasks_that_do_not_exist(layer):
    adapter, _ = trained(layer[0], "poly", tasks=2, skills=N)
    for task in (-1, 2):
        with pytest.raises(SelectionError, match="has 2 tasks, so there is no task"):
            with_task(adapter, task)
        assert np.all(np.isnan(jax.jit(lambda t, a=adapter: with_task(a, t)(X[0]))(task)))
    with pytest.raises(SelectionError, match="must be an integer"):
        with_task(adapter, 0.5)
    with pytest.raises(SelectionError, match="no Poly adapters"):
        with_task(layer[0], 0)


def factors(sets, path=""):
    state = [adapters[path].state for adapters in sets]
    scales = [float(adapters[path].scale) for adapters in sets]
    return (
        np.stack([s["lora_A"] for s in state]),
        np.stack([s["lora_B"] for s in state]),
        np.asarray(scales),
    )


@pytest.mark.parametrize("general", [0, 2])
def test_arrow(layer, general):
    layer, W, b = layer
    sets = lora_sets(layer, 4 + general)
    A, B, scales = factors(sets)
    A_g, B_g = (x[4:].mean(0) if general else 0.0 for x in (A, B))
    A, B, scales = A[:4] - A_g, B[:4] - B_g, scales[:4]
    p = np.stack([np.linalg.svd(B[i] @ A[i])[2][0] for i in range(4)])
    z = np.abs(X @ p.T)
    z = np.where(z >= np.sort(z, axis=1)[:, -2, None], z / 0.5, -np.inf)
    adapter = arrow(layer, sets[:4], top_k=2, temperature=0.5, general=sets[4:])
    check(mapped(adapter), routed(X, W, b, softmax(z), A, B, scales))


class Tokens(eqx.Module):
    """A model of a sequence, which names the axis of its tokens."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(lambda x: self.second(jnp.tanh(self.first(x))), axis_name="tokens")(x)

    def hidden(self, x):
        return jax.vmap(lambda x: jnp.tanh(self.first(x)), axis_name="tokens")(x)


@pytest.mark.parametrize(
    ("options", "weigh"),
    [
        ({"layerwise": True, "temperature": 2.0}, lambda z: softmax(z / 2)),
        ({"top_k": 2, "depth": 2, "width": 7, "scale": 0.5}, lambda z: 0.5 * largest(softmax(z))),
        (
            {"softmax": False, "top_k": 2, "top_k_softmax": True, "pass_value": 0.3},
            lambda z: softmax(np.where(largest(z) != 0, z, -np.inf)),
        ),
    ],
)
def test_xlora(options, weigh):
    keys = jax.random.split(KEY, 2)
    model = Tokens(
        eqx.nn.Linear(IN, OUT, key=keys[0], dtype=jnp.float64),
        eqx.nn.Linear(OUT, IN, key=keys[1], dtype=jnp.float64),
    )
    sets = lora_sets(model, N)
    xlora = XLoRA(model, sets, Tokens.hidden, features=OUT, key=KEY, axis="tokens", **options)
    xlora = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, xlora)

    def layer(name, x, w):
        linear = getattr(model, name)
        return routed(x, *map(np.asarray, (linear.weight, linear.bias)), w, *factors(sets, name))

    given = np.full((TOKENS, N), options.get("pass_value", 0.0))
    if "top_k_softmax" in options:  # of equal values, the first two count
        given = np.where(np.arange(N) < 2, 0.5, 0.0) * np.ones((TOKENS, 1))
    h = np.tanh(layer("first", X, given))
    for linear in xlora.classifier[:-1]:
        h = np.maximum(h @ np.asarray(linear.weight).T + np.asarray(linear.bias), 0)
    last = xlora.classifier[-1]
    z = (h @ np.asarray(last.weight).T + np.asarray(last.bias)).reshape(TOKENS, -1, N)
    w = weigh(np.broadcast_to(z, (TOKENS, 2, N)))
    check(
        eqx.filter_jit(xlora)(jnp.asarray(X)),
        layer("second", np.tanh(layer("first", X, w[:, 0])), w[:, 1]),
    )


def largest(w, k=2):
    return np.where(w >= np.sort(w, axis=-1)[..., -k, None], w, 0)
