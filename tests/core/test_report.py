"""`lora_report`: one row per adapter, and totals over the model."""

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Net, apply_lora, lora_report, merge_lora

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


def test_only_parameters_are_counted_and_no_constants_of_an_adapter(getkey):
    (row,) = lora_report(ToyScale(eqx.nn.Linear(3, 2, key=getkey()), 1, 1.0, key=getkey()))
    assert (row.trainable, row.total) == (2, 2 + 8)
    (row,) = lora_report(ToyLinear(eqx.nn.Linear(3, 1, key=getkey()), 8, 1.0, key=getkey()))
    assert (row.path, row.rank) == ("", 1)  # the effective rank
    report = lora_report({"x": jnp.ones(2), "n": jnp.arange(5), "f": jax.nn.relu, "s": "text"})
    assert (len(report), report.trainable, report.total) == (0, 0, 2)
    assert (lora_report([]).total, lora_report([]).percentage) == (0, 0.0)
    model = {"w": jnp.ones((3, 2), jnp.complex64), "l": eqx.nn.Linear(2, 2, key=getkey())}
    report = Net(model).lora(1, wrapper=ToyLinear).summary()
    assert (report.trainable, report.total) == (12 + 4, 12 + 6 + 4)  # a complex number is two
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(jax.random.split(getkey(), 4))
    (row,) = lora_report(apply_lora(stack, 2, key=getkey(), wrapper=ToyStacked))
    assert (row.trainable, row.total) == (4 * (2 * 3 + 3 * 2), 4 * (2 * 3 + 3 * 2 + 9 + 3))
