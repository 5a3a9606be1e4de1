"""The Burgers task, which has moved to `jno_lora_demos.burgers`."""

from jno_lora_demos.burgers import *  # noqa: F403
