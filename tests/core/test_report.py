"""`lora_report`: one row per adapter, and totals over the model."""

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Net, apply_lora, lora_report, merge_lora, register

from .toys import ToyLinear, ToyScale, ToyStacked, UserEmbedding

PLAIN = 5 * 3 + 2 * (9 + 3) + (6 + 2) + 1  # embedding, two layers, head, temperature


def test_each_adapter_has_a_row_with_its_counts(model, getkey):
    adapted = apply_lora(model, 2, 8.0, key=getkey(), target="head|emb", wrapper=WRAPPERS)
    embedding, head = lora_report(adapted)
    assert (embedding.path, embedding.layer, embedding.wrapper) == (
        "embedding",
        "Embedding",
        UserEmbedding,
    )
    assert (head.path, head.layer, head.wrapper) == ("head", "Linear", ToyLinear)
    assert (head.rank, head.alpha, head.distribution) == (2, 8.0, None)
    assert head.trainable == 2 * 3 + 2 * 2
    assert head.total == head.trainable + 2 * 3 + 2


WRAPPERS = [ToyLinear, UserEmbedding]


def test_totals_are_those_of_the_whole_model(model, getkey):
    adapted = apply_lora(model, 2, key=getkey(), target="head", wrapper=ToyLinear)
    report = lora_report(adapted)
    assert report.trainable == 10
    assert report.total == PLAIN + 10
    assert report.percentage == 100 * 10 / (PLAIN + 10)


def test_the_rank_is_the_effective_one(getkey):
    layer = eqx.nn.Linear(3, 1, key=getkey())
    (row,) = lora_report(ToyLinear(layer, 8, 1.0, key=getkey()))
    assert (row.path, row.rank) == ("", 1)


def test_constants_that_an_adapter_keeps_are_not_counted(getkey):
    layer = eqx.nn.Linear(3, 2, key=getkey())
    (row,) = lora_report(ToyScale(layer, 1, 1.0, key=getkey()))
    assert (row.trainable, row.total) == (2, 2 + 8)


def test_only_parameters_are_counted():
    report = lora_report({"x": jnp.ones(2), "n": jnp.arange(5), "f": jax.nn.relu, "s": "text"})
    assert (len(report), report.trainable, report.total) == (0, 0, 2)


def test_nothing_at_all_is_zero_percent():
    report = lora_report([])
    assert (report.trainable, report.total, report.percentage) == (0, 0, 0.0)


def test_a_plain_or_merged_model_has_no_rows(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    assert len(lora_report(adapted)) == 3
    assert lora_report(merge_lora(adapted)) == lora_report(model)
    assert len(lora_report(model)) == 0


def test_a_stacked_layer_counts_every_slice(getkey):
    keys = jax.random.split(getkey(), 4)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(keys)
    (row,) = lora_report(apply_lora(stack, 2, key=getkey(), wrapper=ToyStacked))
    assert row.trainable == 4 * (2 * 3 + 3 * 2)
    assert row.total == row.trainable + 4 * (9 + 3)


def test_a_template_of_shapes_counts_like_the_model(model, getkey):
    adapted = apply_lora(model, 2, key=getkey(), wrapper=ToyLinear)
    assert lora_report(eqx.filter_eval_shape(lambda: adapted)) == lora_report(adapted)


def test_a_complex_number_counts_as_two_parameters(getkey):
    model = {"w": jnp.ones((3, 2), jnp.complex64), "l": eqx.nn.Linear(2, 2, key=getkey())}
    report = Net(model).lora(1, wrapper=ToyLinear).summary()
    assert (report.trainable, report.total) == (12 + 4, 12 + 6 + 4)


def test_where_an_adapter_comes_from_is_shown(model, getkey, registry):
    register(ToyScale)
    (row,) = lora_report(apply_lora(model, 1, key=getkey(), target="head", wrapper=ToyScale))
    assert row.distribution == "(in-process)"


def test_it_prints_as_a_table(model, getkey):
    adapted = apply_lora(model, 2, 8.0, key=getkey(), target="head", wrapper=ToyLinear)
    text = str(lora_report(adapted))
    assert "1 adapted layer\n" in text
    (line,) = (line for line in text.splitlines() if "ToyLinear" in line)
    assert line.split() == ["head", "Linear", "ToyLinear", "2", "8", "10", "18"]
    assert "10 of 58 parameters train (17.24 %)" in text
