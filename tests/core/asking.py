"""Questions of tests to plans, to registries and to the command line."""

import threading
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner

from jno.lora import LoRAWrapper, Registry, plan_lora
from jno.lora._commands._cli import cli


def wrapped(model: Any, *args: Any, **kwargs: Any) -> dict[str, type[LoRAWrapper] | None]:
    """The adapter class by path that `plan_lora` would wrap."""
    return {row.path: row.wrapper for row in plan_lora(model, *args, **kwargs).wrapped}


def names(*args: Any, **kwargs: Any) -> dict[str, str]:
    """The name of the adapter class by path that `plan_lora` would wrap."""
    return {row.path: row.wrapper.__name__ for row in plan_lora(*args, **kwargs).wrapped}


def statuses(registry: Registry) -> dict[str, str]:
    """The status of each plugin by its distribution."""
    return {record.distribution: record.status for record in registry.records()}


def one(registry: Registry, name: str) -> type[LoRAWrapper]:
    """The only class of that name."""
    (cls,) = registry.resolve(name)
    return cls


def run(*arguments: str, code: int = 0) -> str:
    """The output of a command that must end with that code."""
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def at_once(*questions: Callable[[], Any]) -> list[Any]:
    """The answers of the questions, each asked in a thread of its own at the same time."""
    begin = threading.Barrier(len(questions))
    answers: list[Any] = [None] * len(questions)

    def ask(number: int, question: Callable[[], Any]) -> None:
        begin.wait()
        answers[number] = question()

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    return answers
