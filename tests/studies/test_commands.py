"""Each study has a command, which refuses a pattern that selects nothing."""

import importlib

import pytest

STUDIES = ("conditional", "equivariant", "large", "operators", "physics", "sequence", "uncertainty")


@pytest.mark.parametrize("study", STUDIES)
def test_a_pattern_that_selects_nothing_is_refused(study):
    main = importlib.import_module(f"studies.{study}.__main__").main
    with pytest.raises(SystemExit, match="selects no"):
        main(["--quick", "--only", "nothing"])
