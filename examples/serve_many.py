"""A server of many adapters on one model. Adapters come and go while requests are answered.

Requests of several threads wait in a queue. A worker takes them in small batches, and answers each
batch by one program, every request with the adapter of its user. Meanwhile a second thread adds
adapters from files, and removes them again. At the end every request has its answer, and the
answers are compared with the results of each user's model.

    pip install "jno-lora[bank,zoo]"
    python examples/serve_many.py

It takes fifteen seconds on two cores.
"""

import pathlib
import queue
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import Future

import equinox as eqx
import jax
import numpy as np

from jno.lora import Net, SelectionError, load_adapters, save_adapters
from jno_lora_bank import AdapterBank

USERS, GUESTS, CLIENTS, BATCH, WAIT = 24, 8, 4, 32, 0.002


class Server:
    """Answers requests in batches of at most `BATCH`. No request waits over `WAIT` seconds."""

    def __init__(self, bank, size):
        self.bank, self.batches, self._queue = bank, 0, queue.Queue()
        self._padding = np.zeros(size, np.float32)
        self._worker = threading.Thread(target=self._work)
        self._worker.start()

    def ask(self, user, x):
        """A future with the answer, or with an error if the user has no adapter by then."""
        answer = Future()
        self._queue.put((user, x, answer))
        return answer

    def stop(self):
        """Answer all waiting requests, and end."""
        self._queue.put(None)
        self._worker.join()

    def _work(self):
        while True:
            requests, is_last = self._take()
            try:
                self._answer(requests)
            except Exception as error:  # no client may wait for ever
                for _, _, answer in requests:
                    if not answer.done():
                        answer.set_exception(error)
            if is_last:
                return

    def _take(self):
        requests, deadline = [], None
        while len(requests) < BATCH:
            try:
                seconds = None if deadline is None else max(0, deadline - time.monotonic())
                request = self._queue.get(timeout=seconds)
            except queue.Empty:
                return requests, False
            if request is None:
                return requests, True
            requests.append(request)
            deadline = deadline or time.monotonic() + WAIT
        return requests, False

    def _answer(self, requests):
        while requests:
            users, xs, answers = zip(*requests, strict=True)
            # Always `BATCH` inputs, so that nothing compiles again.
            missing = BATCH - len(users)
            padded = np.stack([*xs, *[self._padding] * missing])
            try:
                ys = np.asarray(self.bank.run([*users, *[None] * missing], padded))
            except SelectionError:  # an adapter was removed: only its requests fail
                present = self.bank.slots
                for user, _, answer in requests:
                    if user not in present:
                        answer.set_exception(KeyError(user))
                requests = [request for request in requests if not request[2].done()]
                continue
            self.batches += 1
            for answer, y in zip(answers, ys, strict=False):
                answer.set_result(y)
            return


def client(server, seed, count, log):
    """Send requests of random users, eight at a time, and log the answers with their latencies."""
    choose = random.Random(seed)
    draw = np.random.default_rng(seed)
    for _ in range(count // 8):
        pending = []
        for _ in range(8):
            user = f"user {choose.randrange(USERS + GUESTS)}"
            x = draw.normal(size=64).astype(np.float32)
            pending.append((user, x, time.perf_counter(), server.ask(user, x)))
        for user, x, start, answer in pending:
            error = answer.exception(timeout=60)
            seconds = time.perf_counter() - start
            log.append((user, x, None if error else answer.result(), seconds, error))


def come_and_go(bank, files, stop, changes):
    """Add the guests' adapters from their files and remove them, until `stop`."""
    guests = [f"user {number}" for number in range(USERS, USERS + GUESTS)]
    choose = random.Random(0)
    while not stop.is_set():
        guest = choose.choice(guests)
        start = time.perf_counter()
        if guest in bank.slots:
            bank.remove(guest)
        else:
            bank.add(files[guest], name=guest)
            changes.append(time.perf_counter() - start)
        stop.wait(0.005)


def main(arguments=()):
    """Run the example; returns the numbers of requests, of answers, and of wrong answers."""
    count = 64 if "--quick" in arguments else 20_000
    model = eqx.nn.MLP(64, 64, 256, 2, key=jax.random.key(0))
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number in range(USERS + GUESTS):
            net = Net(model, key=jax.random.key(number)).freeze().lora(4, 8)
            trainable, _ = net.partition()
            net.update(jax.tree.map(lambda a: a + 0.02, trainable))  # stands for the training
            files[f"user {number}"] = pathlib.Path(folder, f"{number}.safetensors")
            save_adapters(net.module, files[f"user {number}"])
        user_files = dict(list(files.items())[:USERS])
        bank = AdapterBank(model, user_files, slots=USERS + GUESTS, fixed=True)
        bank.run([None] * BATCH, np.zeros((BATCH, 64), np.float32))  # compiles

        server, log, changes, stop = Server(bank, 64), [], [], threading.Event()
        clients = [
            threading.Thread(target=client, args=(server, seed, count // CLIENTS, log))
            for seed in range(CLIENTS)
        ]
        keeper = threading.Thread(target=come_and_go, args=(bank, files, stop, changes))
        start = time.perf_counter()
        for thread in (keeper, *clients):
            thread.start()
        for thread in clients:
            thread.join()
        seconds = time.perf_counter() - start
        stop.set()
        keeper.join()
        server.stop()

        models = {user: load_adapters(model, path) for user, path in files.items()}
    run = eqx.filter_jit(lambda model, x: model(x))
    refused = [error for *_, error in log if error is not None]
    assert all(isinstance(error, KeyError) for error in refused), refused[0]
    wrong = sum(
        not np.allclose(run(models[user], x), y, atol=1e-4)
        for user, x, y, *_ in log
        if y is not None
    )
    late = np.percentile([1000 * taken for *_, taken, _ in log], [50, 95, 99])
    print(f"{len(log)} requests in {server.batches} batches, {len(log) / seconds:.0f} a second")
    print("latency: median {:.1f} ms, 95th percentile {:.1f} ms, 99th {:.1f} ms".format(*late))
    added = 1000 * np.median(changes)
    print(f"{len(changes)} adapters came under load, each in {added:.1f} ms (median)")
    print(f"{len(refused)} requests were for a removed adapter; {wrong} answers are wrong")
    return len(log), len(log) - len(refused), wrong


if __name__ == "__main__":
    main(sys.argv[1:])
