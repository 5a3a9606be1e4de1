"""The printed lines of the demos."""

from rich.console import Console


def new_console() -> Console:
    """Standard output. A pipe has no width of its own: it gets 100 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: no markup, no colours for numbers, and a path is never broken."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def say_what_next(console: Console, other: str, shows: str) -> None:
    """The end of a demo: commands to go on with, the other demo first."""
    commands = {
        other: shows,
        "jno-lora compare MODULE:FACTORY": "the same for your own model and loss",
        "jno-lora adapters": "every adapter: its layers, cost and paper",
    }
    say(console, "", "Next:", *(f"  {name:33} {text}" for name, text in commands.items()))
