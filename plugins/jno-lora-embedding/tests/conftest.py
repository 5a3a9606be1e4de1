"""Makes `zoo_cases`, which the tests of the zoo share with those of its columns, importable."""

import sys
from pathlib import Path

import pytest

# In the repository, which is also where the fixtures of every test are.
_ZOO = str(Path(__file__).parents[2] / "jno-lora-zoo" / "tests")
if _ZOO not in sys.path:
    sys.path.append(_ZOO)

pytest.register_assert_rewrite("zoo_cases")
