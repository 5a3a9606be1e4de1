"""The examples run, loaded as the scripts that they are, and give the numbers of the README."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import Net
from jno_lora_testing import messages, run_checks, standard_cases

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
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


def test_error_bars(example, capsys):
    """The intervals hold most of the new points."""
    calibrated, held = example.main(steps=60)
    assert int(calibrated.examples) == 64
    assert 0.8 < held < 0.99
    assert "new points inside" in capsys.readouterr().out


def test_first_adapter(example):
    """The adapter of the README passes every check of the kit."""
    assert example.main().summary().rows[0].wrapper is example.RowGain
    results = [r for case in standard_cases(example.RowGain) for r in run_checks(case)]
    assert messages(results) == []


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


LINE = re.compile(r"step (\d+): (\S+)")


def losses_of(lines):
    return {int(found[1]): found[2] for found in map(LINE.match, lines) if found}


def killed_at(step, example, folder):
    """The losses by step that a process prints before `kill -9` ends it."""
    lines = []
    command = [sys.executable, example.__file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"step {step}:"):
                process.kill()
                break
    assert process.returncode != 0
    return losses_of(lines)


def test_training_loop(example, tmp_path, capsys):
    """A killed run goes on with the same losses and the best adapters."""
    net = example.main(tmp_path / "whole")
    printed = capsys.readouterr().out
    whole = losses_of(printed.splitlines())
    assert len(whole) > 100
    first = killed_at(70, example, tmp_path / "killed")
    example.main(tmp_path / "killed")
    second = losses_of(capsys.readouterr().out.splitlines())
    assert min(second) == 60  # the last evaluation
    assert first | second == whole
    files = [tmp_path / name / "adapters.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # The best adapters are the adapters of the best evaluation.
    best = re.search(r"held out: (\S+)", printed)[1]
    x, y = example.data(1, 256)
    assert f"{np.mean((jax.vmap(net.module)(x) - y) ** 2):.4f}" == best
    start = example.eqx.nn.MLP(4, 2, 32, 2, key=jax.random.key(0))
    loaded = Net(start).load_adapters(files[0])
    np.testing.assert_array_equal(jax.vmap(loaded.module)(x), jax.vmap(net.module)(x))
