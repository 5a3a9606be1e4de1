"""The loop that the documentation offers to copy, killed while it runs."""

import os
import re
import subprocess
import sys

import jax
import numpy as np

from jno.lora import Net

LINE = re.compile(r"step (\d+): (\S+)")


def losses_of(lines):
    return {int(found[1]): found[2] for found in map(LINE.match, lines) if found}


def killed_at(step, example, folder):
    """The losses by step that a process prints before `kill -9` ends it."""
    lines = []
    command = [sys.executable, example.__file__, str(folder)]
    # It could leave a program half written in the folder that later tests read.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
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
