"""Faults injected into the service and its store while the simulator syncs."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import redis

from tests.chaos.processes import ServiceProcess, StoreProcess
from tests.support.proxy import Proxy


class Faults:
    """Injects one random fault after another, determined by a seed, and undoes each."""

    def __init__(
        self,
        service: ServiceProcess,
        store: StoreProcess,
        proxy: Proxy,
        seed: int,
        kinds: Sequence[str] = (),
    ) -> None:
        self.done: Counter[str] = Counter()
        self._service, self._store, self._proxy = service, store, proxy
        self._drawn = random.Random(seed)
        self._stop = threading.Event()
        all_kinds: dict[str, Callable[[], None]] = {
            "worker killed (-9)": self._kill_worker,
            "master killed (-9), service restarted": self._kill_master,
            "service restarted as in a deployment": self._deploy,
            "store killed (-9) and restarted": self._kill_store,
            "store paused for seconds": self._pause_store,
            "store memory full": self._fill_memory,
            "connections to the store broken": self._break_connections,
            "connections to the store refused": self._refuse_connections,
        }
        self.kinds = {name: all_kinds[name] for name in kinds or all_kinds}

    def run(self, seconds: float) -> None:
        """Inject faults for about so long; each kind at least once."""
        timer = threading.Timer(seconds, self._stop.set)
        timer.start()
        names = list(self.kinds)
        self._drawn.shuffle(names)
        try:
            while names or not self._stop.is_set():
                name = names.pop() if names else self._drawn.choice(list(self.kinds))
                self._rest(0.3, 1.5)
                self.kinds[name]()
                self.done[name] += 1
        finally:
            timer.cancel()

    def _rest(self, least: float, most: float) -> None:
        # Not polling for anything: the load continues during this time.
        threading.Event().wait(self._drawn.uniform(least, most))

    def _kill_worker(self) -> None:
        if workers := self._service.workers():
            os.kill(self._drawn.choice(workers), signal.SIGKILL)

    def _kill_master(self) -> None:
        self._service.kill_master()
        self._service.start()

    def _deploy(self) -> None:
        code = self._service.stop()
        assert code == 0, f"the service exited with {code} after SIGTERM"
        self._service.start()

    def _kill_store(self) -> None:
        self._store.kill()
        self._rest(0.1, 1.0)
        self._store.start()

    def _pause_store(self) -> None:
        self._store.signal(signal.SIGSTOP)
        self._rest(0.5, 3.0)
        self._store.signal(signal.SIGCONT)

    def _fill_memory(self) -> None:
        with redis.Redis.from_url(self._store.url) as client:
            client.config_set("maxmemory", "1")
            self._rest(0.3, 1.5)
            client.config_set("maxmemory", "0")

    def _break_connections(self) -> None:
        self._proxy.break_all()

    def _refuse_connections(self) -> None:
        self._proxy.refuse(True)
        self._rest(0.3, 1.5)
        self._proxy.refuse(False)
