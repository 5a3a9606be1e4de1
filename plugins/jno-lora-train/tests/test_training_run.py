"""A loop written with `Trainer`: early stopping, the best arrays, a killed run that goes on."""

import io
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.core.toys import ToyLinear

from jno.lora import CheckpointError, Net
from jno.lora.optim import conjugate
from jno_lora_train import Trainer


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def net_of(width=4):
    model = eqx.nn.MLP(3, 2, width, 1, key=jax.random.key(0))
    return Net(model).freeze().lora(rank=2, alpha=2.0, wrapper=ToyLinear)


def batch(number):
    x = np.asarray(jax.random.normal(jax.random.key(number), (6, 3)))
    return x, np.sin(x[:, :2])


@pytest.fixture(scope="module")
def trainer():
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, 20))
    return Trainer(loss, optax.MultiSteps(adam, 2))


def trained(trainer, run, frozen, until):
    losses = []
    while run.step < until:
        run, value = trainer.step(run, frozen, batch(run.step))
        losses.append(float(value))
    return run, losses


def test_steps_are_those_of_fit(trainer):
    trainable, frozen = net_of().partition()
    run, losses = trained(trainer, trainer.start(trainable), frozen, 6)
    fit = trainer.fit(trainable, frozen, [batch(number) for number in range(6)])
    assert losses == list(fit.losses) and run.step == 6
    assert eqx.tree_equal(run.trainable, fit.trainable)


def test_an_accumulated_gradient_moves_nothing_until_it_is_whole(trainer):
    trainable, frozen = net_of().partition()
    run, _ = trained(trainer, trainer.start(trainable), frozen, 1)
    assert eqx.tree_equal(run.trainable, trainable)
    run, _ = trained(trainer, run, frozen, 2)
    assert not eqx.tree_equal(run.trainable, trainable)


def test_a_killed_run_goes_on_to_the_bit(trainer, tmp_path):
    trainable, frozen = net_of().partition()
    whole, losses = trained(trainer, trainer.start(trainable), frozen, 7)
    # In the middle of an accumulated gradient.
    half, _ = trained(trainer, trainer.start(trainable), frozen, 3)
    half.evaluated(0.5).evaluated(0.75).save(tmp_path / "run")

    again = Trainer(loss, trainer.optimizer)
    loaded = again.start(net_of().partition()[0]).load(tmp_path / "run")
    assert (loaded.step, loaded.best_loss, loaded.waited) == (3, 0.5, 1)
    assert eqx.tree_equal(loaded.best, half.trainable)
    finished, rest = trained(again, loaded, frozen, 7)
    assert rest == losses[3:]
    assert eqx.tree_equal(finished.trainable, whole.trainable)
    assert eqx.tree_equal(finished.state, whole.state)


def test_one_step_is_compiled_also_for_a_run_that_was_loaded(tmp_path):
    traces = []

    def counted(model, batch):
        traces.append(batch)
        return loss(model, batch)

    adam = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 5))
    )
    trainer = Trainer(counted, optax.MultiSteps(adam, 2))
    trainable, frozen = net_of().partition()
    run, _ = trained(trainer, trainer.start(trainable), frozen, 3)
    run.save(tmp_path / "run")
    trained(trainer, trainer.start(trainable).load(tmp_path / "run"), frozen, 6)
    assert len(traces) == 1


def test_a_run_in_half_precision_comes_back(tmp_path):
    trainer = Trainer(loss, optax.sgd(1e-2))
    trainable = {"a": jnp.ones(3, jnp.bfloat16), "b": None, "c": jnp.arange(2.0)}
    trainer.start(trainable).save(tmp_path / "run")
    empty = jax.tree.map(jnp.zeros_like, trainable)
    loaded = trainer.start(empty).load(tmp_path / "run")
    assert eqx.tree_equal(loaded.trainable, trainable)


def test_the_best_is_kept_and_the_wait_counted(trainer):
    start = trainer.start(net_of().partition()[0])
    moved = eqx.tree_at(lambda run: run.trainable, start, jax.tree.map(jnp.ones_like, start.best))
    run = moved.evaluated(1.0)
    assert run.best is moved.trainable and (run.best_loss, run.waited) == (1.0, 0)
    for value in (2.0, 1.0, math.nan):
        run = run.evaluated(value)
    assert run.best is moved.trainable and (run.best_loss, run.waited) == (1.0, 3)
    assert start.evaluated(math.nan).best is start.trainable
    assert run.evaluated(0.5).waited == 0


def test_evaluation_is_the_mean_loss(trainer):
    net = net_of()
    batches = [batch(number) for number in range(3)]
    expected = np.mean([float(loss(net.module, one)) for one in batches])
    assert trainer.evaluate(net.module, batches) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        trainer.evaluate(net.module, iter(()))


def pickled():
    """An array as NumPy writes it, with a pickle inside that would run code."""
    file = io.BytesIO()
    np.save(file, np.array([Exploding()], dtype=object), allow_pickle=True)
    return file.getvalue()


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def test_a_flipped_bit_anywhere_is_refused(trainer, tmp_path):
    run = trainer.start(net_of().partition()[0])
    run.save(tmp_path / "run")
    whole = (tmp_path / "run").read_bytes()
    for place in (*range(40), len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "run").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            run.load(tmp_path / "run")
    for content in (damaged, whole[:-100], whole + b"more"):
        (tmp_path / "run").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"run is damaged"):
            run.load(tmp_path / "run")


def test_a_file_that_does_not_fit_is_refused(trainer, tmp_path):
    run = trainer.start(net_of().partition()[0])
    run.save(tmp_path / "run")
    # Files of version 0.3 do not begin with a checksum.
    content = (tmp_path / "run").read_bytes().partition(b"\n")[2]
    (tmp_path / "run").write_bytes(content)
    assert eqx.tree_equal(run.load(tmp_path / "run"), run)
    other = trainer.start(net_of(width=5).partition()[0])
    with pytest.raises(CheckpointError, match="should hold a training run of this model"):
        other.load(tmp_path / "run")
    (tmp_path / "run").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="should hold a training run of this model"):
        run.load(tmp_path / "run")
    (tmp_path / "run").write_bytes(content + content[:200])
    with pytest.raises(CheckpointError, match="more arrays"):
        run.load(tmp_path / "run")
    (tmp_path / "run").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"stops fitting at \w+"):
        Trainer(loss, optax.sgd(0.1)).start(run.trainable).load(tmp_path / "run")
    (tmp_path / "run").write_bytes(b"\x80 no JSON")
    with pytest.raises(CheckpointError, match=r"not written by TrainingRun\.save"):
        run.load(tmp_path / "run")
    for start in (b"PK\x03\x04", b"PK\x05\x06", b"\x80\x04", pickled()):
        (tmp_path / "run").write_bytes(start + content)
        with pytest.raises(CheckpointError):
            run.load(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        run.load(tmp_path / "nobody")
    with pytest.raises(CheckpointError):
        run.save(tmp_path / "missing" / "run")


def test_a_run_whose_arrays_are_gone_is_not_written(trainer, tmp_path):
    run = trainer.start(net_of().partition()[0])
    jax.tree.leaves(run.state)[0].delete()
    with pytest.raises(CheckpointError, match=r"cannot be written into .*run: .*mini_step"):
        run.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_before_an_evaluation_the_newest_is_the_best(tmp_path):
    net = Net(eqx.nn.Linear(3, 2, key=jax.random.key(0))).freeze().lora(2)
    trainable, frozen = net.partition()
    trainer = Trainer(lambda model, x: jnp.sum(jax.vmap(model)(x) ** 2), optax.sgd(0.1))
    run = trainer.start(trainable)
    run, _ = trainer.step(run, frozen, jnp.ones((4, 3)))
    assert run.best is run.trainable
    evaluated = run.evaluated(1.0)
    after, _ = trainer.step(evaluated, frozen, jnp.ones((4, 3)))
    assert after.best is evaluated.best


@pytest.mark.parametrize("other", [{"alpha": 8.0}, {"wrapper": "rslora"}])
def test_a_run_of_other_adapters_is_refused(tmp_path, other):
    def start(**kwargs):
        net = Net(eqx.nn.Linear(3, 2, key=jax.random.key(0))).freeze().lora(2, **kwargs)
        trainer = Trainer(lambda model, x: jnp.sum(model(x)), optax.sgd(0.1))
        return trainer.start(net.partition()[0])

    start().save(tmp_path / "run")
    assert start().load(tmp_path / "run").step == 0
    with pytest.raises(CheckpointError, match=r"(?s)adapters or .*only in this run:") as error:
        start(**other).load(tmp_path / "run")
    assert "only in the file: ['', 'LoRALinear', 2, 2.0]" in str(error.value)


def noisy(key):
    adding = optax.add_noise(0.1, 0.5, key)
    return Trainer(loss, optax.chain(adding, optax.adam(1e-2)))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_of_an_optimiser_go_on_to_the_bit(tmp_path, impl):
    trainable, frozen = net_of().partition()
    trainer = noisy(jax.random.key(5, impl=impl))
    half, _ = trained(trainer, trainer.start(trainable), frozen, 2)
    half.save(tmp_path / "run")
    start = noisy(jax.random.key(6, impl=impl)).start(trainable)
    loaded = start.load(tmp_path / "run")
    assert jax.tree.structure(loaded) == jax.tree.structure(half)
    assert trained(trainer, loaded, frozen, 4)[1] == trained(trainer, half, frozen, 4)[1]
    assert trained(trainer, start, frozen, 2)[1] != trained(trainer, half, frozen, 4)[1]


def test_keys_of_another_kind_are_refused(tmp_path):
    trainable, _ = net_of().partition()
    noisy(jax.random.key(5)).start(trainable).save(tmp_path / "run")
    other = noisy(jax.random.key(5, impl="rbg")).start(trainable)
    with pytest.raises(CheckpointError, match=r"(?s)random keys differ.*in the file: .*threefry"):
        other.load(tmp_path / "run")


# --- complex arrays


class Complex(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return self.weight * x


COMPLEX = Complex(jnp.asarray([1.0 + 2.0j, -0.5 + 1.0j, 2.0 - 1.0j], jnp.complex64))
TURNED = jnp.asarray([[1.0 + 1.0j, 2.0 - 1.0j, -1.0 + 0.5j]], jnp.complex64)


def distance(model, x):
    return jnp.sum(jnp.abs(jax.vmap(model)(x) - jax.vmap(COMPLEX)(x)) ** 2)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.05), optax.adam(0.1), optax.contrib.split_real_and_imaginary(optax.adam(0.1))],
    ids=["sgd", "adam", "split"],
)
def test_complex_arrays_descend(optimizer):
    trainable, frozen = eqx.partition(Complex(jnp.zeros_like(COMPLEX.weight)), eqx.is_inexact_array)
    fit = Trainer(distance, optimizer).fit(trainable, frozen, [TURNED] * 200)
    assert fit.losses[-1] < 1e-4 * fit.losses[0]


def test_an_optimiser_that_conjugates_as_well_is_refused():
    twice = Trainer(distance, optax.chain(conjugate(), optax.sgd(0.05)))
    with pytest.raises(ValueError, match=r"conjugate\(\)"):
        twice.fit(*eqx.partition(COMPLEX, eqx.is_inexact_array), [TURNED])
    trainable, frozen = net_of().partition()  # real arrays have no conjugate
    both = Trainer(loss, optax.chain(conjugate(), optax.sgd(0.05)))
    assert both.fit(trainable, frozen, [batch(0)]).losses
