"""`jno-lora adapters`, in an environment with plugins for one test."""

import json

from click.testing import CliRunner
from tests.core.asking import run
from tests.core.conftest import *  # noqa: F403
from tests.core.test_commands import GOOD

from jno.lora._commands._cli import Group
from jno_lora_zoo._listing import adapters

ABOUT = 'about = jno.lora.About(family="turns", paper="0000.00000", formula="out")'


def listed(*arguments, code=0):
    """The output of the zoo's `jno-lora adapters`, in a site without the zoo."""
    run("plugins")  # loads them
    group = Group(commands={"adapters": adapters})
    result = CliRunner().invoke(group, ["adapters", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_adapters_say_what_they_are_for_and_are_listed_as_methods_by_family(site):
    turned = GOOD.replace('variant = "shift"', f'variant = "shift"\n    {ABOUT}')
    site.install("whole", turned, version="1.2")
    (adapter,) = json.loads(listed("--json"))
    assert adapter == {
        "name": "Shift",
        "qualified_name": "whole:Shift",
        "distribution": "whole",
        "version": "1.2",
        "variant": "shift",
        "method": "shift",
        "family": "turns",
        "auto": False,
        "layers": ["Linear"],
        "formula": "out",
        "paper": "0000.00000",
    }
    for word in ("shift", "SHIFT", "Shift"):
        assert "Shift" in listed(word)
    assert "nearest" in listed("shaft", code=1)
    heading, method = [line for line in listed().splitlines() if "  " in line][-2:]
    assert heading.strip() == "turns:"
    assert method.split() == ["shift", "out", "Linear", "(1)", "0000.00000"]
