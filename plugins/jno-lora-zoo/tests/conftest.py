"""Makes `zoo_cases`, what the tests of the zoo share, importable under any import mode."""

import sys
from pathlib import Path

import pytest

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)

pytest.register_assert_rewrite("zoo_cases")
