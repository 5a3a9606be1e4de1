"""AdaLoRA's allocator, against the paper's equations in NumPy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import Net, apply_lora, lora_trainable_filter
from jno_lora_zoo import AdaLoRAController, AdaLoRALinear

RANK, DEPTH = 3, 2
CONTROLLER = AdaLoRAController(target_rank=1.5, warmup=2, final=3, total=12, every=3, beta1=0.8)
FIELDS = ("lora_A", "lora_B", "lora_E")


@pytest.fixture
def trainable():
    """Two linear layers and a stack of two, of three directions each, and a plain array."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = {
        "first": eqx.nn.Linear(5, 4, key=keys[0]),
        "second": eqx.nn.Linear(4, 6, key=keys[1]),
        "stack": eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 5, key=key))(keys[2:]),
        "plain": jnp.ones(2),
    }
    adapted = apply_lora(model, RANK, 3.0, key=keys[0], wrapper=AdaLoRALinear)
    return eqx.filter(adapted, lora_trainable_filter(adapted))


def drawn(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


def layers_of(tree):
    """The three arrays of each layer in float64, those of a stack one by one."""
    names = ("first", "second")
    found = [{f: np.asarray(getattr(tree[n], f), np.float64) for f in FIELDS} for n in names]
    for k in range(DEPTH):
        found.append({f: np.asarray(getattr(tree["stack"], f)[k], np.float64) for f in FIELDS})
    return found


class Paper:
    """The allocator of arXiv:2303.10512, sections 3.2 and 3.3, in float64.

    The budget is that of the authors' program, which starts at all directions.
    """

    def __init__(self, of, layers):
        self.of = of
        self.mean = [{f: np.zeros_like(w) for f, w in layer.items()} for layer in layers]
        self.deviation = [{f: np.zeros_like(w) for f, w in layer.items()} for layer in layers]
        self.final_masks = None

    def budget(self, t, layers):
        of, first = self.of, RANK * layers
        last = round(of.target_rank * layers)
        if t <= of.warmup:
            return first
        if t >= of.total - of.final:
            return last
        left = 1 - (t - of.warmup) / (of.total - of.final - of.warmup)
        return last + round((first - last) * left**3)

    def masks(self, t, layers, grads):
        """For each layer, the directions that stay on after step `t`."""
        scores = []
        for layer, grad, mean, deviation in zip(
            layers, grads, self.mean, self.deviation, strict=True
        ):
            s = {}
            for f in FIELDS:
                sensitivity = np.abs(layer[f] * grad[f])
                mean[f] = self.of.beta1 * mean[f] + (1 - self.of.beta1) * sensitivity
                away = np.abs(sensitivity - mean[f])
                deviation[f] = self.of.beta2 * deviation[f] + (1 - self.of.beta2) * away
                s[f] = mean[f] * deviation[f]
            scores.append(s["lora_E"] + s["lora_A"].mean(axis=1) + s["lora_B"].mean(axis=0))
        if self.final_masks is not None:
            return self.final_masks
        is_end = t == self.of.total - self.of.final
        if not (is_end or (t > self.of.warmup and t % self.of.every == 0)):
            return [np.ones(RANK, bool) for _ in layers]
        budget = self.budget(t, len(layers))
        largest = np.sort(np.concatenate(scores))[::-1][:budget]
        found = [score >= largest[-1] for score in scores]
        if is_end:
            self.final_masks = found
        return found


def test_every_step_is_the_papers(trainable):
    state = CONTROLLER.init(trainable)
    paper = Paper(CONTROLLER, layers_of(trainable))
    on, traces = [], []

    @eqx.filter_jit
    def update(*args):
        traces.append(args)
        return CONTROLLER.update(*args)

    for t in range(CONTROLLER.total):
        # Other values at each step, as of an optimiser: also the gates that are off train.
        model, grads = drawn(trainable, 2 * t), drawn(trainable, 2 * t + 1)
        made, state = update(model, grads, state)
        masks = paper.masks(t, layers_of(model), layers_of(grads))
        for before, after, mask in zip(layers_of(model), layers_of(made), masks, strict=True):
            np.testing.assert_array_equal(after["lora_E"], np.where(mask, before["lora_E"], 0))
            for field in ("lora_A", "lora_B"):
                np.testing.assert_array_equal(after[field], before[field])
        on.append(int(sum(mask.sum() for mask in masks)))
        means = [*state.sensitivity[:2], *unstacked(state.sensitivity[2])]
        deviations = [*state.uncertainty[:2], *unstacked(state.uncertainty[2])]
        for found, expected in [(means, paper.mean), (deviations, paper.deviation)]:
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, expected)
    # 12 directions, then fewer at the steps 3 and 6, and 6 from step 9 on.
    assert on == [12, 12, 12, 10, 12, 12, 6, 12, 12, 6, 6, 6]
    assert bool(state.is_final) and int(state.step) == CONTROLLER.total and len(traces) == 1


def unstacked(arrays):
    return [{name: array[k] for name, array in arrays.items()} for k in range(DEPTH)]


def test_the_last_allocation_comes_even_if_its_step_is_skipped(trainable):
    state = CONTROLLER.init(trainable)
    for t in (0, 1, 10, 11):
        model, state = CONTROLLER.update(drawn(trainable, t), drawn(trainable, 9), state, t)
        assert bool(state.is_final) == (t >= 10)
    gates = [model[name].lora_E for name in ("first", "second", "stack")]
    assert sum(map(np.count_nonzero, map(np.asarray, gates))) == 6


def test_half_precision_has_float32_averages_and_the_state_can_be_donated(trainable):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), trainable)
    state = CONTROLLER.init(half)
    assert {a.dtype for a in jax.tree.leaves(state.sensitivity)} == {jnp.dtype(jnp.float32)}
    made, _ = eqx.filter_jit(CONTROLLER.update, donate="all")(half, drawn(half, 1), state)
    assert {a.dtype for a in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}


def test_the_whole_model_may_be_given_where_all_adapters_train():
    model = eqx.nn.MLP(3, 3, 4, 1, key=jax.random.key(0))
    adapted = apply_lora(model, 2, key=jax.random.key(1), wrapper=AdaLoRALinear)
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    controller = AdaLoRAController(target_rank=1, warmup=0, final=1, total=2)
    values, grads = drawn(trainable, 1), drawn(trainable, 2)
    part, _ = controller.update(values, grads, controller.init(trainable), 1)
    whole = eqx.combine(values, frozen)
    whole, _ = controller.update(whole, grads, controller.init(whole), 1)
    assert eqx.tree_equal(whole, eqx.combine(part, frozen))
    assert sum(int(jnp.sum(layer.lora_E != 0)) for layer in whole.layers) == 2


def test_adapters_that_do_not_train_keep_their_rank(trainable):
    frozen = eqx.tree_at(
        lambda m: [getattr(m["first"], f) for f in FIELDS], trainable, replace_fn=lambda _: None
    )
    state = CONTROLLER.init(frozen)
    assert len(state.kept) == 2
    made, _ = CONTROLLER.update(frozen, drawn(frozen, 3), state)
    assert eqx.tree_equal(made["first"], frozen["first"])
    with pytest.raises(ValueError, match=r"The state is for 2 adapters, but .*'first'"):
        CONTROLLER.update(trainable, trainable, state)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"target_rank": 0}, "`target_rank` must be more than 0, but is 0"),
        ({"warmup": -1}, "but are -1 and 3 of 12"),
        ({"final": 0}, "but are 2 and 0 of 12"),
        ({"total": 5}, "but are 2 and 3 of 5"),
        ({"every": 0}, "`every` must be at least 1, but is 0"),
        ({"beta1": 1.0}, r"`beta1` must be in \(0, 1\), but is 1.0"),
        ({"beta2": 0}, r"`beta2` must be in \(0, 1\), but is 0"),
        ({"target_rank": 4}, "asks for 16 directions, but the adapters have 12 in all"),
    ],
)
def test_numbers_out_of_range_and_a_rank_that_cannot_move_are_refused(trainable, numbers, said):
    given = {"target_rank": 1, "warmup": 2, "final": 3, "total": 12, **numbers}
    with pytest.raises(ValueError, match=said):
        AdaLoRAController(**given).init(trainable)
    adapted = Net(eqx.nn.Linear(3, 3, key=jax.random.key(0))).lora(2).module
    with pytest.raises(ValueError, match="No adapter of this model has a `rank_gate` that trains"):
        CONTROLLER.init(adapted)
