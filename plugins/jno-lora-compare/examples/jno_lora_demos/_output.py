"""The printed lines of the demos."""

from rich.console import Console


def new_console() -> Console:
    """Standard output. A pipe gets 100 columns, because it has no width."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def say(console: Console, *lines: str) -> None:
    """Print the lines unchanged: no markup, no coloured numbers, no line breaks in a path."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def suggest_commands(console: Console, other_demo: str, purpose: str) -> None:
    """End a demo by suggesting commands to run next, the other demo first."""
    commands = {
        other_demo: purpose,
        "jno-lora compare MODULE:FACTORY": "the same for your own model and loss",
        "jno-lora adapters": "every adapter: its layers, cost and paper",
    }
    say(console, "", "Next:", *(f"  {command:33} {use}" for command, use in commands.items()))
