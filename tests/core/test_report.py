"""`lora_report`: one row per adapter, and totals over the model."""

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Net, apply_lora, lora_report, merge_lora, register

from .toys import ToyLinear, ToyScale, ToyStacked, UserEmbedding

PLAIN = 5 * 3 + 2 * (9 + 3) + (6 + 2) + 1  # embedding, two layers, head, temperature


def test_each_adapter_has_a_row_and_the_totals_are_those_of_the_whole_model(model, getkey):
    wrappers = [ToyLinear, UserEmbedding]
    adapted = apply_lora(model, 2, 8.0, key=getkey(), target="head|emb", wrapper=wrappers)
    report = lora_report(adapted)
    embedding, head = report
    assert (embedding.path, embedding.layer) == ("embedding", "Embedding")
    assert (embedding.wrapper, head.wrapper) == (UserEmbedding, ToyLinear)
    assert (head.path, head.layer) == ("head", "Linear")
    assert (head.rank, head.alpha, head.distribution) == (2, 8.0, None)
    assert (head.trainable, head.total) == (2 * 3 + 2 * 2, 10 + 2 * 3 + 2)
    assert (report.trainable, report.total) == (10 + 15, PLAIN + 10 + 15)
    assert report.percentage == 100 * 25 / (PLAIN + 25)
    # A template of shapes counts like the model.
    assert lora_report(eqx.filter_eval_shape(lambda: adapted)) == report
    assert lora_report(merge_lora(adapted)) == lora_report(model)
    assert len(lora_report(model)) == 0


def test_the_rank_is_the_effective_one(getkey):
    layer = eqx.nn.Linear(3, 1, key=getkey())
    (row,) = lora_report(ToyLinear(layer, 8, 1.0, key=getkey()))
    assert (row.path, row.rank) == ("", 1)


def test_only_parameters_are_counted_and_no_constants_of_an_adapter(getkey):
    layer = eqx.nn.Linear(3, 2, key=getkey())
    (row,) = lora_report(ToyScale(layer, 1, 1.0, key=getkey()))
    assert (row.trainable, row.total) == (2, 2 + 8)
    report = lora_report({"x": jnp.ones(2), "n": jnp.arange(5), "f": jax.nn.relu, "s": "text"})
    assert (len(report), report.trainable, report.total) == (0, 0, 2)
    report = lora_report([])
    assert (report.trainable, report.total, report.percentage) == (0, 0, 0.0)
    model = {"w": jnp.ones((3, 2), jnp.complex64), "l": eqx.nn.Linear(2, 2, key=getkey())}
    report = Net(model).lora(1, wrapper=ToyLinear).summary()
    assert (report.trainable, report.total) == (12 + 4, 12 + 6 + 4)  # a complex number is two


def test_a_stacked_layer_counts_every_slice(getkey):
    keys = jax.random.split(getkey(), 4)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(keys)
    (row,) = lora_report(apply_lora(stack, 2, key=getkey(), wrapper=ToyStacked))
    assert row.trainable == 4 * (2 * 3 + 3 * 2)
    assert row.total == row.trainable + 4 * (9 + 3)


def test_it_prints_as_a_table_with_the_distribution(model, getkey, registry):
    register(ToyLinear)
    adapted = apply_lora(model, 2, 8.0, key=getkey(), target="head", wrapper=ToyLinear)
    text = str(lora_report(adapted))
    assert "1 adapted layer\n" in text
    (line,) = (line for line in text.splitlines() if "ToyLinear" in line)
    assert line.split() == ["head", "Linear", "ToyLinear", "(in-process)", "2", "8", "10", "18"]
    assert "10 of 58 parameters train (17.24 %)" in text
