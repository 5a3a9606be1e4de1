"""A file is written whole or not at all, whatever happens meanwhile."""

import os
import pathlib
import signal
import stat
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import pytest

from jno.lora import CheckpointError, apply_lora, read_adapters, save_adapters
from jno.lora.extending import write_together

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


def test_a_new_file_has_the_permissions_that_the_user_wants(model, file):
    before = os.umask(0o027)
    try:
        save_adapters(model, file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert alone(file)


def test_the_permissions_of_an_existing_file_are_kept(model, file):
    file.write_text("old")
    file.chmod(0o604)
    save_adapters(model, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    assert list(read_adapters(file, wrappers=[ToyLinear])) == ["0"]


def test_a_link_stays_a_link(model, tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "file", tmp_path / "link"
    link.symlink_to(target)
    save_adapters(model, link)
    assert link.is_symlink()
    assert target.is_file()
    assert alone(target)


def test_a_name_as_long_as_the_file_system_takes_can_be_written(model, tmp_path):
    file = tmp_path / ("層" * 85)  # 255 bytes
    save_adapters(model, file)
    assert alone(file)


@pytest.mark.parametrize("kind", ["no directory", "a directory", "a pipe"])
def test_a_path_that_cannot_be_a_file_is_refused(kind, model, tmp_path):
    path = tmp_path / "x"
    if kind == "no directory":
        path = path / "y"
    elif kind == "a directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    message = "No such file or directory" if kind == "no directory" else "not a file"
    with pytest.raises(CheckpointError, match=message):
        save_adapters(model, path)


class Failing:
    """An operating system in which one call fails."""

    def __init__(self, monkeypatch, name):
        self.error = OSError(28, "No space left on device")
        monkeypatch.setattr(os, name, self.fail)

    def fail(self, *args):
        raise self.error


@pytest.mark.parametrize(
    ("call", "old"),
    # A new file has the permissions of the umask: `chmod` is not called.
    [("fsync", "old"), ("replace", "old"), ("chmod", "old"), ("fsync", None), ("replace", None)],
)
def test_a_failure_at_any_step_leaves_the_old_file(call, old, model, file, monkeypatch):
    if old is not None:
        file.write_text(old)
    failing = Failing(monkeypatch, call)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        save_adapters(model, file)
    assert caught.value.__cause__ is failing.error
    assert (file.read_text() if file.exists() else None) == old
    assert old is None or alone(file)
    assert old is not None or list(file.parent.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(model, file, monkeypatch):
    file.write_text("old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_adapters(model, file)
    assert file.read_text() == "old"
    assert alone(file)


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(model, file, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched(descriptor):
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        calls.append("directory" if kind == stat.S_IFDIR else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    save_adapters(model, file)
    assert calls == ["file", "replace"]


# Writes until the limit of the process (as on a full disk), or until somebody kills it.
SCRIPT = """
    import os, resource, signal, sys
    from pathlib import Path
    from jno.lora import CheckpointError
    from jno.lora.extending import write_together

    file, mode = Path(sys.argv[1]), sys.argv[2]
    if mode == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_together({file: bytes(1_000_000)})
        except CheckpointError as err:
            print(err)
    else:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        write_together({file: bytes(1_000_000)})
"""


@pytest.mark.parametrize("mode", ["full", "killed"])
def test_a_full_disk_or_a_killed_process_leaves_the_old_file_whole(mode, file):
    file.write_text("old")
    script = file.with_suffix(".py")
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, str(script), str(file), mode], capture_output=True, text=True
    )
    assert file.read_text() == "old"
    left = {path.name for path in pathlib.Path(file.parent).iterdir()} - {file.name, script.name}
    if mode == "full":
        assert (done.returncode, "File too large" in done.stdout) == (0, True), done.stderr
        assert left == set()
    else:
        assert done.returncode == -9
        assert len(left) == 1  # a temporary file, which nobody could remove


def test_the_next_save_of_a_path_removes_what_a_killed_save_of_it_left(model, tmp_path):
    name = "a-name-of-which-more-than-40-characters-are-alike-1"
    paths = [tmp_path / f"{name}{end}" for end in ("", "0", ".safetensors")]
    script = textwrap.dedent(SCRIPT)
    for path in paths:
        run = subprocess.run([sys.executable, "-c", script, str(path), "killed"], check=False)
        assert run.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    save_adapters(model, paths[0])
    # The other two may be of another process, which saves other paths of the directory.
    assert len(list(tmp_path.iterdir())) == 3 and paths[0].exists()
    for path in paths:
        save_adapters(model, path)
    assert {*tmp_path.iterdir()} == {*paths}


def test_a_save_leaves_the_temporary_file_of_another_save_that_is_running(model, file, monkeypatch):
    fsync = os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        save_adapters(model, file)
        assert list(read_adapters(file, wrappers=[ToyLinear])) == ["0"]

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_together({file: b"the last save"})
    assert file.read_bytes() == b"the last save"
    assert alone(file)
