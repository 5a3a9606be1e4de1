"""The output of the kit's two commands, a case of any adapter, and cases for `jno-lora check`."""

import click
import equinox as eqx
import jax
from click.testing import CliRunner
from tests.core.good_adapter import Good
from wrong_adapters._bases import is_exactly

from jno.lora import MatrixAdapter
from jno.lora._commands._cli import Group
from jno_lora_testing import WrapperCase
from jno_lora_testing.plugin import jno_lora_commands


def run(*arguments: str, code: int = 0) -> str:
    """The output of `jno-lora` with these arguments, which must end with that code."""
    group: click.Group = Group()
    jno_lora_commands(group)
    result = CliRunner().invoke(group, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


def case_of(wrapper, **changes):
    """A case with a linear layer, of an adapter with the parameters of LoRA, and with a gate."""
    settings = {
        "base": lambda key: eqx.nn.Linear(6, 4, key=key),
        "inputs": lambda key: (jax.random.normal(key, (6,)),),
        "parameters": 2 * (6 + 4 + (MatrixAdapter.of(wrapper).rank_gate is not None)),
    }
    return WrapperCase(wrapper, **{**settings, **changes})


class Picky(Good):
    def __init__(self, base, rank, alpha, *, key):
        if rank < 4:
            raise ValueError("four at least")
        Good.__init__(self, base, rank, alpha, key=key)


class Doubling(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return 2 * (self.weight @ x)


class DoublingUpdate(Good):
    @classmethod
    def applies_to(cls, leaf):
        return is_exactly(leaf, Doubling, 2)

    def __call__(self, x):
        return self.merge()(x)


def cases(name="Doubling-{}"):
    return [
        WrapperCase(
            DoublingUpdate,
            base=lambda key, outputs=outputs: Doubling(jax.random.normal(key, (outputs, 3))),
            inputs=lambda key: (jax.random.normal(key, (3,)),),
            name=name.format(outputs),
        )
        for outputs in (2, 4)
    ]


CASES = cases()
CASE = CASES[0]
UNNAMED = cases("")
