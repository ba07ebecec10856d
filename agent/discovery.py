"""What the agent finds around it: GPUs, and what is served here. Heartbeats never wait for it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from agent.gpu_watch import GpuWatch
from agent.machine import outgoing_address
from agent.pace import Clock
from agent.services import Served, UnclearError, served_at

LOOK_SECONDS = 30.0
# How long a server that is too busy to answer is believed to serve what it served.
BELIEVED_SECONDS = 300.0
# The registry takes 64 KiB, of which the rest says what the machine is.
MAX_BYTES = 60 * 1024

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Surroundings:
    """Of the addresses given, each as `served_at` has it."""

    def __init__(
        self, addresses: Sequence[str], *, clock: Clock | None = None, gpus: GpuWatch | None = None
    ) -> None:
        self._addresses = addresses
        self._clock = clock or Clock()
        self.gpus = gpus or GpuWatch(clock=self._clock)
        self._served: Mapping[str, Served] = {}
        self._heard_at: dict[str, float] = {}

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Begins when it has looked once, which takes some seconds at most."""
        async with asyncio.TaskGroup() as first:
            first.create_task(self.gpus.start())
            first.create_task(self.look())
        watching = asyncio.create_task(self._keep_looking())
        try:
            yield
        finally:
            self.gpus.stop()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def look(self) -> None:
        local = outgoing_address()
        asked = [self._ask(address, str(local) if local else None) for address in self._addresses]
        answers = zip(self._addresses, await asyncio.gather(*asked), strict=True)
        served = {address: answer for address, answer in answers if answer is not None}
        if served != self._served:
            names = [found.service["name"] for found in served.values()]
            count = sum(len(found.models) for found in served.values())
            log.info("services.changed", services=names, models=count)
        self._served = served

    async def _ask(self, address: str, local_ip: str | None) -> Served | None:
        now = self._clock.now()
        try:
            found = await served_at(address, local_ip)
        except UnclearError as error:
            log.debug("service.unclear", address=address, reason=str(error))
            is_believed = now - self._heard_at.get(address, now) < BELIEVED_SECONDS
            return self._served.get(address) if is_believed else None
        except Exception as error:  # noqa: BLE001  # one that nobody foresaw costs no other, and no heartbeat
            log.warning("service.unreadable", address=address, reason=repr(error))
            return None
        self._heard_at[address] = now
        return found

    async def _keep_looking(self) -> None:
        while True:
            await self._clock.wait(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                log.exception("services.unreadable")  # the next look may do better

    def capabilities(self) -> dict[str, Any]:
        """models, services and devices; the last models are left out of what is too much."""
        served = list(self._served.values())
        # Of those that serve the same model the first is named.
        models = {model["name"]: model for found in served[::-1] for model in found.models}
        document = {
            "models": [models[name] for name in sorted(models)],
            "services": [found.service for found in served],
            "devices": [gpu.as_device() for gpu in self.gpus.known],
        }
        while document["models"] and len(json.dumps(document)) > MAX_BYTES:
            document["models"] = document["models"][: len(document["models"]) * 3 // 4]
        return document
