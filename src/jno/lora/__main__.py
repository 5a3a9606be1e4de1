"""The entry point of `jno-lora` and `python -m jno.lora`."""

from ._commands import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="jno-lora")


if __name__ == "__main__":
    main()
