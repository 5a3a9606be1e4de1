"""The fixtures of the core's tests."""

# The commands import them when `site` has taken the folder away where they are installed.
from tests.core.conftest import *  # noqa: F403

import jno_lora_testing._check
import jno_lora_testing._new  # noqa: F401
