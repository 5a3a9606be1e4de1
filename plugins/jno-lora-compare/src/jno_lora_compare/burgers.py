"""The Burgers task, which is in `jno_lora_demos.burgers` now."""

from jno_lora_demos.burgers import *  # noqa: F403
