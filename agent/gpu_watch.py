"""The periodic reading of the GPUs, in a separate thread."""

import asyncio
import sys
import threading
from collections.abc import Callable

import structlog

from agent.apple import AppleGpuReader
from agent.gpu import Gpu
from agent.nvidia import NvidiaGpuReader
from agent.pace import Clock

READ_SECONDS = 10.0
# Older figures are not reported.
STALE_SECONDS = 3 * READ_SECONDS
# How long the start waits for the first reading.
FIRST_TIMEOUT_SECONDS = 5.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def choose_reader() -> Callable[[], list[Gpu]]:
    """Return the function that reads this machine's GPUs, for use by one thread."""
    return AppleGpuReader().read if sys.platform == "darwin" else NvidiaGpuReader().read


class GpuWatch:
    """A thread that reads the GPUs every ten seconds.

    A faulty driver can block its caller without end: then only this thread hangs, and its figures
    become stale. The thread ends with the process at the latest.
    """

    def __init__(
        self, read: Callable[[], list[Gpu]] | None = None, clock: Clock | None = None
    ) -> None:
        self._read = read or choose_reader()
        self._now = (clock or Clock()).now
        self._reading: tuple[float, list[Gpu]] = (-STALE_SECONDS, [])
        self._has_read = threading.Event()
        self._stopped = threading.Event()

    @property
    def last_gpus(self) -> list[Gpu]:
        """The GPUs of the last reading, of any age: a GPU stays when its driver hangs."""
        return self._reading[1]

    @property
    def current_gpus(self) -> list[Gpu]:
        """The GPUs of the last reading; empty when that is too old."""
        read_at, gpus = self._reading
        return gpus if self._now() - read_at < STALE_SECONDS else []

    async def start(self, timeout_seconds: float = FIRST_TIMEOUT_SECONDS) -> None:
        """Start the thread and wait for the first reading, at most `timeout_seconds`."""
        threading.Thread(target=self._watch, name="gpus", daemon=True).start()
        await asyncio.to_thread(self._has_read.wait, timeout_seconds)

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        is_failing = False
        while not self._stopped.is_set():
            try:
                self._reading = (self._now(), self._read())
                is_failing = False
            except Exception as error:  # noqa: BLE001  # an unforeseen error must not end the readings
                (log.debug if is_failing else log.warning)("gpu_reading.failed", reason=repr(error))
                is_failing = True
            self._has_read.set()
            self._stopped.wait(READ_SECONDS)
