"""The command line: `jno-lora COMMAND`, and `python -m jno.lora COMMAND`."""

from ._cli import cli as cli
