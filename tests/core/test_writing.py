"""A file is written whole or not at all: whoever reads finds the old file or the new one."""

import concurrent.futures
import errno
import os
import stat
import subprocess
import sys
import textwrap
import time

import equinox as eqx
import jax
import numpy as np
import pytest

from jno.lora import CheckpointError, apply_lora, extract_adapters, read_adapters, save_adapters

from .toys import ToyLinear

# The adapters here come from no plugin, and none is looked for.
pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture(scope="module")
def model():
    one, two = jax.random.split(jax.random.key(0))
    return apply_lora([eqx.nn.Linear(3, 2, key=one)], 1, key=two, wrapper=ToyLinear)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adapters.safetensors"


def alone(file):
    """Whether nothing is in the directory but the file."""
    return [path.name for path in file.parent.iterdir()] == [file.name]


def test_permissions_are_the_users_and_those_of_an_old_file_stay(model, file):
    before = os.umask(0o027)
    try:
        save_adapters(model, file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and alone(file)
    file.chmod(0o604)
    save_adapters(model, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    assert list(read_adapters(file, wrappers=[ToyLinear])) == ["0"]


def test_a_link_stays_a_link_and_a_name_may_be_as_long_as_the_file_system_takes(model, tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / ("層" * 85), tmp_path / "link"  # 255 bytes
    link.symlink_to(target)
    save_adapters(model, link)
    assert link.is_symlink() and target.is_file() and alone(target)


def test_a_path_that_cannot_be_a_file_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        ("none/x", "No such file or directory"),
        ("file/x", "Not a directory"),
        ("pipe", "not a file"),
        (".", "not a file"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            save_adapters(model, tmp_path / path)


@pytest.mark.parametrize(
    ("call", "old"),
    # A new file has the permissions of the umask: `chmod` is not called.
    [
        *(("open", "old"), ("fsync", "old"), ("replace", "old"), ("chmod", "old")),
        *(("fsync", None), ("replace", None)),
    ],
)
def test_a_failure_at_any_step_leaves_the_old_file(call, old, model, file, monkeypatch):
    if old is not None:
        file.write_text(old)
    error, opened = OSError(errno.ENOSPC, "No space left on device"), open

    def fail(*arguments, **options):
        if call == "open" and "xb" not in arguments:  # only the new file cannot be made
            return opened(*arguments, **options)
        raise error

    with monkeypatch.context() as inside:
        inside.setattr("builtins.open" if call == "open" else f"os.{call}", fail)
        with pytest.raises(CheckpointError, match="No space left") as caught:
            save_adapters(model, file)
    assert caught.value.__cause__ is error and str(file) in str(caught.value)
    assert (file.read_text() if file.exists() else None) == old
    assert alone(file) if old else not list(file.parent.iterdir())


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(model, file, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        log = lambda *args, name=name, call=call: (calls.append(name), call(*args))  # noqa: E731
        monkeypatch.setattr(os, name, log)
    save_adapters(model, file)
    assert calls == ["fsync", "replace"]


# A process that has imported everything, and forks one that is killed at each line in turn of the
# code that writes, and one that is interrupted there. The first line that is not reached any more
# is beyond the last.
EVERY_LINE = """
    import os, signal, sys
    from pathlib import Path
    import jno.lora._checkpoint.file as writing

    file, old, new = Path(sys.argv[1]), b"old" * 1_000, b"new" * 2_000

    def stop(how):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt

    def stopped_at(line, how):
        seen = 0
        def trace(frame, event, arg):
            nonlocal seen
            if frame.f_code.co_filename != writing.__file__:
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    stop(how)
            return trace
        sys.settrace(trace)

    for how in ("killed", "interrupted"):
        contents = []
        for line in range(1, 1000):
            file.write_bytes(old)
            child = os.fork()
            if child == 0:
                stopped_at(line, how)
                try:
                    writing.write_atomically(file, new)
                except KeyboardInterrupt:
                    os._exit(1)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            content = file.read_bytes()
            assert content in (old, new), (line, len(content))
            contents.append(content == new)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                assert content == new
                break
            for left in file.parent.glob(".*.tmp"):
                left.unlink()
        print(len(contents), contents.index(True))
"""


@pytest.mark.slow
def test_a_process_killed_or_interrupted_at_any_line_leaves_the_old_file_or_the_new_one(file):
    script = [sys.executable, "-c", textwrap.dedent(EVERY_LINE), str(file)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for way in done.stdout.splitlines():
        # It was stopped at some lines before the new file took the name, and at some after.
        lines, replaced = map(int, way.split())
        assert lines > 16 and 10 < replaced < lines - 1


def filled(number):
    """A set whose arrays are full of one number."""
    adapter = ToyLinear(
        eqx.nn.Linear(2000, 3, key=jax.random.key(0)), 1, 1.0, key=jax.random.key(1)
    )
    full = jax.tree.map(lambda x: np.full(x.shape, number, x.dtype), adapter.state())
    fields = lambda a: (a.lora_A, a.lora_B)  # noqa: E731
    return extract_adapters(eqx.tree_at(fields, adapter, (full["lora_A"], full["lora_B"])))


def test_whoever_reads_while_several_threads_save_reads_a_whole_file(file):
    sets, seen, end = [filled(number) for number in range(3)], set(), time.monotonic() + 30
    save_adapters(sets[0], file)

    def read():
        state = read_adapters(file, wrappers=[ToyLinear])[""].state
        (value,) = {*np.concatenate([np.ravel(array) for array in state.values()]).tolist()}
        seen.add(value)  # and not a mixture of two files

    def repeat(action):
        while len(seen) < 3 and time.monotonic() < end:
            action()

    saves = [lambda adapters=adapters: save_adapters(adapters, file) for adapters in sets]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(repeat, [*saves, read, read]))
    assert seen == {0, 1, 2} and alone(file)
