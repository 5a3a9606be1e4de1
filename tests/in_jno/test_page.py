"""The code on the page "In jNO" runs, in its order, with the newest of jNO's versions."""

import pathlib
import re

import pytest
from problems import IS_OLD

import jno

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "in-jno.md"


@pytest.mark.skipif(IS_OLD or not hasattr(jno, "shape"), reason="the page is for jNO 0.4")
def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), namespace)
    assert len(namespace["adapters"])
