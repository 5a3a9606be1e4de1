"""The subcommands of `jno-lora`, one idea per module. `_cli` gives them names and options."""
