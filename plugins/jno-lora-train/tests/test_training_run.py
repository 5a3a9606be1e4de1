"""A loop written with `Trainer`: early stopping, the best arrays, a killed run that goes on."""

import io
import math
import zlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.core.toys import ToyLinear

from jno.lora import CheckpointError, Net
from jno_lora_train import Trainer
from jno_lora_train.optim import conjugate


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def net_of(width=4, **changed):
    model = eqx.nn.MLP(3, 2, width, 1, key=jax.random.key(0))
    return Net(model).freeze().lora(**{"rank": 2, "alpha": 2.0, "wrapper": ToyLinear, **changed})


def batch(number):
    x = np.asarray(jax.random.normal(jax.random.key(number), (6, 3)))
    return x, np.sin(x[:, :2])


def accumulating():
    return optax.MultiSteps(optax.adam(optax.cosine_decay_schedule(1e-2, 20)), 2)


@pytest.fixture(scope="module")
def trainer():
    return Trainer(loss, accumulating())


@pytest.fixture
def run(trainer):
    return trainer.start(net_of().partition()[0])


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run"


def trained(trainer, run, frozen, until):
    losses = []
    while run.step < until:
        run, value = trainer.step(run, frozen, batch(run.step))
        losses.append(float(value))
    return run, losses


def test_a_killed_run_goes_on_to_the_bit_without_compiling_again(file):
    traces = []

    def counted(model, batch):
        traces.append(batch)
        return loss(model, batch)

    trainer = Trainer(counted, accumulating())
    trainable, frozen = net_of().partition()
    whole, losses = trained(trainer, trainer.start(trainable), frozen, 7)
    # In the middle of an accumulated gradient.
    half, _ = trained(trainer, trainer.start(trainable), frozen, 3)
    half.evaluated(0.5).evaluated(0.75).save(file)

    loaded = trainer.start(net_of().partition()[0]).load(file)
    assert (loaded.step, loaded.best_loss, loaded.waited) == (3, 0.5, 1)
    assert eqx.tree_equal(loaded.best, half.trainable)
    finished, remaining = trained(trainer, loaded, frozen, 7)
    assert remaining == losses[3:]
    assert eqx.tree_equal(finished.trainable, whole.trainable)
    assert eqx.tree_equal(finished.state, whole.state)
    fit = trainer.fit(trainable, frozen, [batch(number) for number in range(7)])
    assert losses == list(fit.losses) and eqx.tree_equal(whole.trainable, fit.trainable)
    assert len(traces) == 1


def test_a_run_in_half_precision_comes_back(file):
    trainer = Trainer(loss, optax.sgd(1e-2))
    trainable = {"a": jnp.ones(3, jnp.bfloat16), "b": None, "c": jnp.arange(2.0)}
    trainer.start(trainable).save(file)
    loaded = trainer.start(jax.tree.map(jnp.zeros_like, trainable)).load(file)
    assert eqx.tree_equal(loaded.trainable, trainable)


def test_the_best_is_kept_and_the_wait_counted(trainer, run):
    moved = eqx.tree_at(lambda run: run.trainable, run, jax.tree.map(jnp.ones_like, run.best))
    best = moved.evaluated(1.0)
    assert best.best is moved.trainable and (best.best_loss, best.waited) == (1.0, 0)
    waiting = best
    for value in (2.0, 1.0, math.nan):
        waiting = waiting.evaluated(value)
    assert waiting.best is moved.trainable and (waiting.best_loss, waiting.waited) == (1.0, 3)
    assert run.evaluated(math.nan).best is run.trainable
    assert waiting.evaluated(0.5).waited == 0
    # Before the first evaluation, the newest arrays are the best.
    _, frozen = net_of().partition()
    after, _ = trainer.step(run, frozen, batch(0))
    assert after.best is after.trainable
    after, _ = trainer.step(best, frozen, batch(0))
    assert after.best is best.best


def test_evaluation_is_the_mean_loss(trainer):
    net = net_of()
    batches = [batch(number) for number in range(3)]
    expected = np.mean([float(loss(net.module, batch)) for batch in batches])
    assert trainer.evaluate(net.module, batches) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        trainer.evaluate(net.module, iter(()))


def test_a_flipped_bit_anywhere_is_refused(run, file):
    run.save(file)
    whole = file.read_bytes()
    for place in (*range(40), len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            run.load(file)
    for content in (damaged, whole[:-100], whole + b"more"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"run is damaged"):
            run.load(file)


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def test_a_file_that_does_not_fit_is_refused(trainer, run, file):
    run.save(file)
    content = file.read_bytes().partition(b"\n")[2]
    of_sgd = Trainer(loss, optax.sgd(0.1)).start(run.trainable)
    pickled = io.BytesIO()  # an array as NumPy writes it, with a pickle inside that would run code
    np.save(pickled, np.array([Exploding()], dtype=object), allow_pickle=True)
    for target, written, message in (
        (trainer.start(net_of(width=5).partition()[0]), content, "should hold a training run of"),
        (run, content[:-100], "should hold a training run of this model"),
        (run, content + content[:200], "more arrays"),
        (of_sgd, content, r"stops fitting at \w+"),
        (run, content.partition(b"\n")[0] + b"\n" + pickled.getvalue(), "stops fitting"),
    ):
        file.write_bytes(b"crc32 %08x\n" % zlib.crc32(written) + written)
        with pytest.raises(CheckpointError, match=message):
            target.load(file)
    for written in (content, b"\x80 nothing of ours"):
        file.write_bytes(written)
        with pytest.raises(CheckpointError, match=r"damaged, or not written by TrainingRun\.save"):
            run.load(file)
    with pytest.raises(FileNotFoundError):
        run.load(file.parent / "nobody")


def test_a_run_that_cannot_be_written_says_so(run, file):
    with pytest.raises(CheckpointError):
        run.save(file.parent / "missing" / "run")
    jax.tree.leaves(run.state)[0].delete()
    with pytest.raises(CheckpointError, match=r"cannot be written into .*run: .*mini_step"):
        run.save(file)
    assert not file.exists()


@pytest.mark.parametrize("changed", [{"alpha": 8.0}, {"wrapper": "lora"}])
def test_a_run_of_other_adapters_is_refused(run, trainer, file, changed):
    run.save(file)
    other = trainer.start(net_of(**changed).partition()[0])
    with pytest.raises(CheckpointError, match=r"(?s)adapters or .*only in this run:") as error:
        other.load(file)
    assert "only in the file: ['layers/0', 'ToyLinear', 2, 2.0]" in str(error.value)


def noisy(seed, impl):
    adding = optax.add_noise(0.1, 0.5, jax.random.key(seed, impl=impl))
    return Trainer(loss, optax.chain(adding, optax.adam(1e-2)))


def test_typed_keys_of_an_optimiser_go_on_to_the_bit(file):
    trainable, frozen = net_of().partition()
    trainer = noisy(5, "rbg")
    half, _ = trained(trainer, trainer.start(trainable), frozen, 2)
    half.save(file)
    loaded = noisy(6, "rbg").start(trainable).load(file)
    assert jax.tree.structure(loaded) == jax.tree.structure(half)
    assert trained(trainer, loaded, frozen, 4)[1] == trained(trainer, half, frozen, 4)[1]
    with pytest.raises(CheckpointError, match=r"(?s)random keys differ.*in the file: .*rbg"):
        noisy(5, "threefry2x32").start(trainable).load(file)


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
    [optax.sgd(0.05), optax.contrib.split_real_and_imaginary(optax.adam(0.1))],
    ids=["sgd", "split"],
)
def test_complex_arrays_descend(optimizer):
    trainable, frozen = eqx.partition(Complex(jnp.zeros_like(COMPLEX.weight)), eqx.is_inexact_array)
    fit = Trainer(distance, optimizer).fit(trainable, frozen, [TURNED] * 200)
    assert fit.losses[-1] < 1e-4 * fit.losses[0]


def test_an_optimiser_that_conjugates_as_well_is_refused():
    twice = Trainer(distance, optax.chain(conjugate(), optax.sgd(0.05)))
    with pytest.raises(ValueError, match=r"conjugate\(\)"):
        twice.fit(*eqx.partition(COMPLEX, eqx.is_inexact_array), [TURNED])
    both = Trainer(loss, optax.chain(conjugate(), optax.sgd(0.05)))
    assert both.fit(*net_of().partition(), [batch(0)]).losses  # real arrays have no conjugate
