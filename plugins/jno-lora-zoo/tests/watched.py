"""Uses the library under an audit hook: `python watched.py FOLDER FORBIDDEN`.

An audit hook cannot be taken away again, so that this is a process of its own. It prints as JSON
what our code did at each step, or had others do. `FORBIDDEN` is a distribution that is not to be
loaded, of whose adapters a file says that they come from it.
"""

import json
import os
import sys
from pathlib import Path

import equinox as eqx
import jax

# Of the packages whose frames count.
OURS = (f"{os.sep}jno{os.sep}lora{os.sep}", f"{os.sep}jno_lora_")
# The name of a path in the model and of a file; no code may be made of it.
CANARY = "__import__('canary')"
FILES = ("open", "glob.", "shutil.", "tempfile.", "mmap.")
FILES += tuple(f"os.{name}" for name in ("list", "scan", "mk", "rm", "re", "ch", "l", "sym", "tr"))
NEVER = ("pickle.", "socket.", "subprocess.", "urllib.", "http.", "ftplib.", "smtplib.", "imaplib.")
NEVER += ("webbrowser.", "sqlite3.", "pty.", "poplib.", "nntplib.", "telnetlib.", "cpython.run_")
NEVER += tuple(f"os.{name}" for name in ("system", "exec", "fork", "posix_spawn", "spawn", "start"))


class Watch:
    """The events, by the name of the step: `(event, first argument, file of the caller)`."""

    def __init__(self):
        self.step, self.seen, self.busy = None, {}, False
        sys.addaudithook(self)

    def during(self, step, action):
        self.seen[step] = []
        self.step = step
        try:
            return action()
        finally:
            self.step = None

    def __call__(self, event, arguments):
        if self.step is None or self.busy:
            return
        self.busy = True  # what is done here raises events, too
        try:
            if self.counts(event, arguments):
                caller = sys._getframe(1).f_code.co_filename
                said = [event, *map(str, arguments[:1]), caller]
                self.seen[self.step].append(said)
        finally:
            self.busy = False

    def counts(self, event, arguments):
        if event.startswith(NEVER):
            return self.is_ours(sys._getframe(2), by_import=True)
        if event in ("exec", "compile"):
            # Imports, data classes, named tuples and Equinox's modules make code; we do not.
            innermost = sys._getframe(2).f_code.co_filename
            return any(part in innermost for part in OURS) or "canary" in repr(arguments)
        if event.startswith(FILES):
            return not isinstance(arguments[0], int) and self.is_ours(sys._getframe(2))
        return False

    def is_ours(self, frame, by_import=False):
        """Whether one of our functions is being called, and no module is being read for it."""
        while frame is not None:
            file = frame.f_code.co_filename
            if any(part in file for part in OURS):
                return True
            if "<frozen importlib._bootstrap" in file and not by_import:
                return False
            frame = frame.f_back
        return False


def main(folder, forbidden):
    """Do everything once, and say what was seen."""
    # JAX and Equinox are there, and what they did is theirs.
    one, two, key = jax.random.split(jax.random.key(0), 3)
    model = {CANARY: eqx.nn.Linear(3, 2, key=one), "other": eqx.nn.Linear(2, 3, key=two)}
    file, lying = folder / "adapters.safetensors", folder / "lying.safetensors"
    watch = Watch()

    def imported():
        import jno_lora_peft
        from jno import lora
        from jno.lora import _commands

        return lora, jno_lora_peft, _commands.cli

    lora, jno_lora_peft, cli = watch.during("import", imported)
    call = {"key": key, "wrapper": "lora", "target": "canary"}
    adapted = watch.during("apply", lambda: lora.apply_lora(model, 1, **call))
    steps = {
        "plan": lambda: str(lora.plan_lora(model, 1, wrapper="lora")),
        "merge": lambda: lora.merge_lora(adapted),
        "report": lambda: str(lora.lora_report(adapted)),
        "save": lambda: lora.save_adapters(adapted, file),
        "read": lambda: lora.read_adapters(file),
        "load": lambda: lora.load_adapters(model, file),
        "inspect": lambda: cli(["inspect", str(file)], standalone_mode=False),
        "save_peft": lambda: jno_lora_peft.save_peft(adapted, folder / "peft"),
        "load_peft": lambda: jno_lora_peft.load_peft(model, folder / "peft"),
    }
    for name, step in steps.items():
        watch.during(name, step)

    cls = type(adapted[CANARY])
    wrappers = [w for record in lora.registered() for w in record.wrappers]
    (origin,) = {w.distribution for w in wrappers if w.cls is cls}
    # A name of the same length, so that the file is in order but for what it says.
    assert len(origin) == len(forbidden)
    # Without checksums: the key has another name.
    content = file.read_bytes().replace(b"jno.lora.crc32", b"jno.lora.crc__")
    lying.write_bytes(content.replace(origin.encode(), forbidden.encode()))
    error = None
    try:
        watch.during("load what lies", lambda: lora.load_adapters(model, lying))
    except lora.JnoLoraError as err:
        error = str(err)

    # A control: the hook does see such an event.
    control = compile("exec('1')", f"{os.sep}jno_lora_zoo{os.sep}control.py", "exec")
    watch.during("control", lambda: exec(control))
    found = {"seen": watch.seen, "error": error, "path": sys.path, "modules": list(sys.modules)}
    return found | {"records": {r.distribution: r.status for r in lora.registered()}}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
