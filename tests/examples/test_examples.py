"""The examples run, loaded as the scripts that they are, and give the numbers of the README.

`test_training_loop.py` and `test_plugin_of_your_own.py` start processes.
"""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora.testing import messages, run_checks, standard_cases

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def numbers_of_the_readme(pattern):
    return [float(number) for number in re.search(pattern, README).groups()]


def test_attention_adapter(example, capsys):
    found = example.main(["--quick"])
    assert list(found) == list(example.CANDIDATES)
    assert all(0 < value < 1 for value in found.values())
    # The head has 330; of each of two layers, LoRA on two of four projections of 32 by 32.
    assert f"{330 + 2 * 2 * 4 * 64:,} parameters" in capsys.readouterr().out


def test_burgers_operator(example, tmp_path, capsys):
    errors = example.main(["--quick", "--output", str(tmp_path / "burgers.svg")])
    assert list(errors) == ["pretrained", "full fine-tuning", "lora"]
    assert all(0 < value < 2 for values in errors.values() for value in values)
    assert "<svg" in (tmp_path / "burgers.svg").read_text()
    assert "pretrained: error" in capsys.readouterr().out


def test_first_adapter(example):
    """The adapter of the README passes as many checks of the kit as the README says."""
    assert example.main().summary().rows[0].wrapper is example.RowGain
    results = [r for case in standard_cases(example.RowGain) for r in run_checks(case)]
    assert messages(results) == []
    # On one device, where a reader runs it, there is nothing to shard.
    ran = [r for r in results if r.not_applicable is None and r.check != "sharding"]
    assert f"0 of {len(ran)} checks fail" in README


def test_first_language_model(example, capsys):
    """A file of PEFT and a bank compute the logits of each user's model."""
    logits, each = example.main()
    np.testing.assert_allclose(logits, each, rtol=1e-5, atol=1e-5 * np.abs(each).max())
    assert np.abs(logits[0] - logits[2]).max() > 1e-2  # the adapters do something
    printed = capsys.readouterr().out
    assert "4,096 of 61,696 parameters train" in printed
    losses = re.findall(r"^loss (\S+) to (\S+)$", printed, re.MULTILINE)[1]
    shown = numbers_of_the_readme(r"The loss falls from (\S+) to (\S+)\.")
    # Other versions of JAX round differently, and training amplifies it.
    assert [float(loss) for loss in losses] == pytest.approx(shown, abs=0.3)


def test_first_operator(example, capsys):
    _, found = example.main()
    printed = re.search(r"error at 0.05: (\S+) before, (\S+) after", capsys.readouterr().out)
    shown = numbers_of_the_readme(r"the error falls from (\S+) to (\S+); `found.z` is (\d\.\d+)\.")
    # Other versions of JAX round differently, and training amplifies it.
    assert [*map(float, printed.groups()), float(found.z)] == pytest.approx(shown, abs=0.03)


def test_inverse_viscosity(example, capsys):
    true, recovered = example.main(["--quick"])
    assert true.shape == recovered.shape == (8,)
    assert jnp.all(jnp.isfinite(recovered))
    assert "5 layers move by Powers" in capsys.readouterr().out
    # Where a wave is small, the equation is the heat equation.
    x = jnp.linspace(0, 2 * jnp.pi, 64, endpoint=False)
    decayed = example.solve(1e-3 * jnp.sin(2 * x), 0.1)
    np.testing.assert_allclose(decayed, 1e-3 * jnp.exp(-0.4) * jnp.sin(2 * x), atol=1e-6)


def test_per_user_adapters(example, capsys):
    before, after = example.main(["--quick"])
    assert before.shape == after.shape == (example.USERS,)
    assert "8 adapters of 2,344 parameters" in capsys.readouterr().out


def test_serve_many(example, capsys):
    """Every request gets the answer of its user."""
    requests, answered, wrong = example.main(["--quick"])
    assert (requests, wrong) == (64, 0)
    assert 32 < answered <= requests
    assert "0 answers are wrong" in capsys.readouterr().out
