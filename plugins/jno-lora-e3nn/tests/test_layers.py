"""The forms of the layers: indexed, mixed, stacked, radial; and layers that are refused."""

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from zoo_cases import perturb

from jno.lora import Net, WrapperError, extract_adapters, lora_trainable_filter, merge_lora
from jno_lora_arrays import declare, plain, through
from jno_lora_combine import shrink, sum_adapters, to_lora
from jno_lora_conditional import Conditional, Powers, at, merge
from jno_lora_conditional.testing import trained_at_random
from jno_lora_e3nn import (
    E3nnLayer,
    E3nnPerSpeciesLayer,
    LoRAE3nn,
    LoRAE3nnPerSpecies,
    PiSSAE3nn,
    adapters,
)
from jno_lora_e3nn.layers import paths
from jno_lora_zoo import AdaLoRAController, linear_layer

KEY = jax.random.key(0)
INPUTS, OUTPUTS = "4x0e + 3x1o", "2x0e + 5x1o + 3x0e"
FORMS = {
    "vanilla": {},
    "indexed": {"linear_type": "indexed", "num_indexed_weights": 3},
    "mixed": {"linear_type": "mixed", "weights_dim": 2},
}


X = e3nn.normal(INPUTS, KEY, (6,))


def linear(form, **options):
    settings = {"irreps_in": INPUTS, "irreps_out": OUTPUTS, "key": KEY, **FORMS[form], **options}
    return e3nn.equinox.Linear(**settings)


def applied(layer, form, x):
    first = {"indexed": (jnp.arange(6) % 3,), "mixed": (jax.random.normal(KEY, (6, 2)),)}
    with jax.numpy_dtype_promotion("standard"):
        return layer(*first.get(form, ()), x).array


def with_matrices(cls, layer, matrices):
    linears = {name: linear_layer(W) for name, W in matrices.items()}
    return cls.with_linear_layers(layer, linears)


@pytest.mark.parametrize(("path", "gradient"), [("element", "path"), ("path", "element")])
def test_a_matrix_is_the_linear_map_of_its_path(path, gradient):
    layer = linear("vanilla", path_normalization=path, gradient_normalization=gradient)
    y = layer(X)
    matrices = E3nnLayer.matrices(layer)
    shapes = {name: W.shape for name, W in matrices.items()}
    assert shapes == {"0e_0": (2, 4), "1o_1": (5, 3), "0e_2": (3, 4)}
    for name, chunk in (("0e_0", 0), ("1o_1", 1)):
        expected = jnp.einsum("oi,nim->nom", matrices[name], X.chunks[chunk])
        np.testing.assert_allclose(y.chunks[chunk], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [E3nnLayer, E3nnPerSpeciesLayer])
@pytest.mark.parametrize("form", FORMS)
def test_matrices_can_be_put_back(cls, form):
    layer = linear(form)
    if not cls.fits(layer):
        assert cls is E3nnPerSpeciesLayer and "not indexed" in cls.why_not(layer)
        return
    new = {name: 2 * W + 1 for name, W in cls.matrices(layer).items()}
    for name, W in cls.matrices(with_matrices(cls, layer, new)).items():
        np.testing.assert_allclose(W, new[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("cls", "form"),
    [
        (LoRAE3nn, "indexed"),
        (PiSSAE3nn, "indexed"),
        (LoRAE3nnPerSpecies, "indexed"),
        (LoRAE3nn, "mixed"),
    ],
)
def test_forms_start_as_the_layer_act_and_merge(cls, form):
    layer = linear(form)
    adapter = cls(layer, 2, 2.0, key=KEY)
    before, moved = applied(layer, form, X), perturb(adapter)
    if cls is not PiSSAE3nn:  # an untrained adapter merges to the very layer
        assert eqx.tree_equal(adapter.merge()._weights, layer._weights)
    np.testing.assert_allclose(applied(adapter, form, X), before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(applied(adapter.unwrap(), form, X), before, rtol=1e-5, atol=1e-5)
    changed = applied(moved, form, X)
    assert not np.allclose(changed, before, atol=1e-2)
    restored = cls.from_state(layer, moved.state(), moved.rank, moved.alpha)
    np.testing.assert_allclose(applied(restored.merge(), form, X), changed, rtol=1e-4, atol=1e-4)


def test_species_share_an_adapter_or_have_one_each():
    layer = linear("indexed")
    shared, each = (cls(layer, 2, 2.0, key=KEY) for cls in (LoRAE3nn, LoRAE3nnPerSpecies))
    assert shared.lora_A["0e_0"].shape == (2, 4)
    assert each.lora_A["0e_0"].shape == (3, 2, 4)
    before, after = layer._weights, perturb(shared).merge()._weights
    for name, w in before.items():
        changes = after[name] - w
        np.testing.assert_allclose(changes, jnp.broadcast_to(changes[:1], w.shape), atol=1e-5)
    assert not np.allclose(*np.diff(each.lora_A["0e_0"], axis=0))


def test_methods_layers_and_states_that_do_not_fit_are_refused_with_the_reason():
    statistics = {"input_covariance": jnp.eye(7), "input_mean": jnp.zeros(7)}
    for cls in (adapters.VBLoRAE3nnPerSpecies, adapters.EVAE3nnPerSpecies):
        given = {"statistics": statistics} if cls.needs else {}
        with pytest.raises(ValueError, match="Choose another method"):
            cls(linear("indexed"), 2, 2.0, key=KEY, **given)
    layer = linear("vanilla", linear_type="mixed_per_channel", channel_in=2, weights_dim=2)
    assert not LoRAE3nn.applies_to(layer)
    assert "mixed_per_channel" in LoRAE3nn.why_not(layer)
    assert LoRAE3nn.why_not(eqx.nn.Linear(2, 2, key=KEY)) is None
    adapter = LoRAE3nn(linear("vanilla"), 2, 2.0, key=KEY)
    other = e3nn.equinox.Linear(irreps_in="4x0e", irreps_out="2x0e", key=KEY)
    with pytest.raises(WrapperError, match=r"1o_1.* but this Linear has 0e_0"):
        LoRAE3nn.from_state(other, adapter.state(), 2, 2.0)


def test_declared_parameters_of_functional_layers():
    """The parameters of e3nn's Haiku and Flax modules: a dict with arrays `w[i,o] ...`."""
    layer, x = linear("vanilla"), e3nn.normal(INPUTS, KEY)
    params = {"linear": dict(layer._weights)}

    def apply(params, x):
        weights = params["linear"]
        names = [path.weight for path in paths(layer)]
        return layer._linear([weights[name] for name in names], e3nn.IrrepsArray(INPUTS, x)).array

    net = Net(declare(params, {r"w\[": "io"})).lora(rank=2, alpha=2)
    moved = perturb(net.module)
    y = through(apply)(moved, x.array)
    assert not np.allclose(y, layer(x).array, atol=1e-2)
    np.testing.assert_allclose(y, apply(plain(moved), x.array), rtol=1e-4, atol=1e-5)
    R = e3nn.rand_matrix(KEY)
    turned = through(apply)(moved, x.transform_by_matrix(R).array)
    expected = e3nn.IrrepsArray(layer._linear.irreps_out, y).transform_by_matrix(R).array
    np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_an_adapter_as_a_function_of_a_parameter():
    layer = linear("vanilla")
    net = Net(layer).freeze().lora(rank=2, options={"bias": "train"})
    conditional = trained_at_random(Conditional(net, Powers(source=0.5)))
    np.testing.assert_array_equal(merge(conditional, 0.5)(X).array, layer(X).array)
    values = jnp.asarray([0.1, 0.9])
    mapped = jax.vmap(lambda z: at(conditional, z)(X).array)(values)
    for z, y in zip(values, mapped, strict=True):
        np.testing.assert_allclose(y, merge(conditional, z)(X).array, rtol=1e-4, atol=1e-4)


def test_a_subclass_with_the_name_of_the_class_is_called_itself():
    class Linear(e3nn.equinox.Linear):
        def __call__(self, x):
            y = super().__call__(x)
            return e3nn.IrrepsArray(y.irreps, 2 * y.array)

    layer, x = Linear(irreps_in=INPUTS, irreps_out=OUTPUTS, key=KEY), e3nn.normal(INPUTS, KEY)
    adapter = LoRAE3nn(layer, 2, 2.0, key=KEY)
    np.testing.assert_allclose(adapter(x).array, layer(x).array, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_by_a_matrix_follows_from_the_gradient_by_the_layer(form):
    layer = linear(form)
    matrices = E3nnLayer.matrices(layer)

    def loss(matrices):
        return jnp.sum(jnp.sin(applied(with_matrices(E3nnLayer, layer, matrices), form, X)))

    expected = jax.grad(loss)(matrices)
    gradient = eqx.filter_grad(lambda layer: jnp.sum(jnp.sin(applied(layer, form, X))))(layer)
    factors = E3nnLayer.gradient_factors(layer)
    for name, G in E3nnLayer.matrices(gradient).items():
        np.testing.assert_allclose(factors[name] * G, expected[name], rtol=1e-4, atol=1e-5)


def test_statistics_do_not_depend_on_the_frame():
    layer = linear("vanilla")
    R = -e3nn.rand_matrix(KEY)

    def moments(x):
        all_rows = E3nnLayer.inputs_of(layer, x)
        assert len(all_rows) == len(E3nnLayer.outputs_of(layer, layer(x))) == 36
        matrices = E3nnLayer.matrices(layer)
        ends = np.cumsum([W.shape[1] for W in matrices.values()])
        rows = dict(zip(matrices, jnp.split(all_rows, ends[:-1], axis=1), strict=True))
        return {name: (r.mean(axis=0), r.T @ r / len(r)) for name, r in rows.items()}

    here, there = moments(X), moments(X.transform_by_matrix(R))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), here, there)
    scalars, vectors = X.chunks[0][..., 0], X.chunks[1]
    for name, mean, covariance in (
        ("0e_2", scalars.mean(axis=0), scalars.T @ scalars / 6),
        ("1o_1", jnp.zeros(3), jnp.einsum("nic,njc->ij", vectors, vectors) / 18),
    ):
        np.testing.assert_allclose(here[name][0], mean, atol=1e-6)
        np.testing.assert_allclose(here[name][1], covariance, rtol=1e-4, atol=1e-5)


def test_dora_and_lora_act_at_once():
    layer = linear("vanilla")
    adapted = [
        perturb(Net(layer).freeze().lora(2, 3.0, wrapper=cls).module)
        for cls in (adapters.DoRAE3nn, LoRAE3nn)
    ]
    sets = dict(zip(("dora", "lora"), map(extract_adapters, adapted), strict=True))
    total = sum_adapters(layer, sets, weights={"lora": -0.5}, train=["lora"])
    plain = layer(X).array
    dora, lora = (a(X).array - plain for a in adapted)
    expected = plain + dora - 0.5 * lora
    np.testing.assert_allclose(total(X).array, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(merge_lora(total)(X).array, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_controller_moves_rank_between_the_matrices_of_a_layer():
    layer = linear("vanilla")
    module = perturb(Net(layer).lora(rank=2, wrapper=adapters.AdaLoRAE3nn).module)
    trainable, frozen = eqx.partition(module, lora_trainable_filter(module))
    controller = AdaLoRAController(target_rank=1, warmup=0, final=1, total=2)
    state = controller.init(trainable)
    # Gradients of one matrix alone: the directions of the other matrices are the least important.
    grads = eqx.tree_at(
        lambda a: (a.lora_E["0e_0"], a.lora_E["1o_1"]),
        jax.tree.map(jnp.zeros_like, trainable),
        (jnp.ones(2), jnp.array([0.0, 1.0])),
    )
    for step in range(2):
        trainable, state = controller.update(trainable, grads, state, step)
    opened = {name: np.asarray(gate != 0).tolist() for name, gate in trainable.lora_E.items()}
    assert opened == {"0e_0": [True, True], "0e_2": [False, False], "1o_1": [False, True]}
    adapted = eqx.combine(trainable, frozen)
    small = shrink(adapted)
    assert type(small) is LoRAE3nn and small.rank == 2
    np.testing.assert_allclose(small(X).array, adapted(X).array, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="Every gate is zero"):
        assert type(shrink(Net(layer).lora(rank=2, wrapper="AdaLoRAE3nn").module)) is type(layer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "expected"), [("DoRAE3nn", LoRAE3nn), ("DoRAE3nnPerSpecies", LoRAE3nnPerSpecies)]
)
def test_an_update_of_several_matrices_becomes_plain_lora(cls, expected):
    """Of rank 3, which a matrix with two rows does not have, without a loss."""
    layer = linear("indexed")
    adapted = perturb(getattr(adapters, cls)(layer, 3, 3.0, key=KEY))
    plain_lora, report = to_lora(adapted, rank=4)
    assert type(plain_lora) is expected and float(report.rows[0].error) < 1e-5
    y = applied(adapted, "indexed", X)
    np.testing.assert_allclose(applied(plain_lora, "indexed", X), y, rtol=1e-4, atol=1e-4)


def test_adapters_of_a_sharded_stack_lie_as_its_arrays():
    template = linear("vanilla")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("layers", "out"))
    sharding = NamedSharding(mesh, P("layers", None, "out"))
    weights = {
        name: jax.device_put(jnp.ones((4, *w.shape)), sharding if w.shape[1] == 2 else None)
        for name, w in template._weights.items()
    }
    stack = eqx.tree_at(lambda m: m._weights, template, weights)
    adapter = Net(stack).lora(rank=2, wrapper=LoRAE3nn).module
    specs = {"lora_A": P("layers", None, None), "lora_B": P("layers", "out", None)}
    assert adapter.lora_A["0e_0"].sharding.spec == specs["lora_A"]
    assert adapter.lora_B["0e_0"].sharding.spec == specs["lora_B"]
    assert adapter.lora_B["0e_0"].shape == (4, 2, 2)
