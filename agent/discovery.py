"""The discovery of GPUs and local services. Heartbeats never wait for it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from agent.gpu_watch import GpuWatch
from agent.machine import find_outgoing_address
from agent.pace import Clock
from agent.services import DiscoveredService, UnreadableAnswerError, find_service

REFRESH_SECONDS = 30.0
# How long a server that gives no readable answer is assumed to serve what it served before.
MAX_SILENCE_SECONDS = 300.0
# The registry accepts 64 KiB of capabilities; the rest describes the machine itself.
MAX_BYTES = 60 * 1024

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Discovery:
    """The GPUs and the services at the given addresses, which are those of `find_service`."""

    def __init__(
        self, addresses: Sequence[str], *, clock: Clock | None = None, gpus: GpuWatch | None = None
    ) -> None:
        self._addresses = addresses
        self._clock = clock or Clock()
        self.gpus = gpus or GpuWatch(clock=self._clock)
        self._services: Mapping[str, DiscoveredService] = {}
        self._answered_at: dict[str, float] = {}

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Keep the discovery current during the block.

        The block begins after the first refresh, which takes a few seconds at most.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.gpus.start())
            tasks.create_task(self.refresh())
        refreshing = asyncio.create_task(self._refresh_forever())
        try:
            yield
        finally:
            self.gpus.stop()
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing

    async def refresh(self) -> None:
        outgoing = find_outgoing_address()
        local_ip = str(outgoing) if outgoing else None
        queries = [self._query(address, local_ip) for address in self._addresses]
        answers = zip(self._addresses, await asyncio.gather(*queries), strict=True)
        services = {address: answer for address, answer in answers if answer is not None}
        if services != self._services:
            names = [service.service["name"] for service in services.values()]
            model_count = sum(len(service.models) for service in services.values())
            log.info("services.changed", services=names, models=model_count)
        self._services = services

    async def _query(self, address: str, local_ip: str | None) -> DiscoveredService | None:
        now = self._clock.now()
        try:
            service = await find_service(address, local_ip)
        except UnreadableAnswerError as error:
            log.debug("service_answer.rejected", address=address, reason=str(error))
            is_recent = now - self._answered_at.get(address, now) < MAX_SILENCE_SECONDS
            return self._services.get(address) if is_recent else None
        except Exception as error:  # noqa: BLE001  # an unforeseen error must cost no other service and no heartbeat
            log.warning("service_query.failed", address=address, reason=repr(error))
            return None
        self._answered_at[address] = now
        return service

    async def _refresh_forever(self) -> None:
        while True:
            await self._clock.wait(REFRESH_SECONDS)
            try:
                await self.refresh()
            except Exception:
                log.exception("service_refresh.failed")  # the next refresh may succeed

    def collect_capabilities(self) -> dict[str, Any]:
        """Return `models`, `services` and `devices`, with the models that the size limit allows."""
        services = list(self._services.values())
        # Reversed, so that the first service that serves a model is named for it.
        models = {model["name"]: model for service in services[::-1] for model in service.models}
        document = {
            "models": [models[name] for name in sorted(models)],
            "services": [service.service for service in services],
            "devices": [gpu.to_device() for gpu in self.gpus.last_gpus],
        }
        while document["models"] and len(json.dumps(document)) > MAX_BYTES:
            document["models"] = document["models"][: len(document["models"]) * 3 // 4]
        return document
