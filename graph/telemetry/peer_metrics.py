"""The metrics of all workers that share an address, merged by whichever worker is scraped.

A scrape reaches a random worker, so each worker serves its metrics to its peers on a socket in a
shared folder. The label `worker` tells them apart.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from graph.core.item_failures import report_failure, skip_poison

_TASK = "peer_metrics"
_ANSWER_SECONDS = 5


class PeerMetrics:
    """The metrics of the workers that share a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        """`name` is this worker's, and also that of the worker which replaces it."""
        self._folder = folder
        self._name = name

    async def serve(self, generate: Callable[[], Awaitable[bytes]]) -> None:
        """Send the output of `generate` to each peer that connects, until cancelled."""

        async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(await generate())
                await writer.drain()
            except ConnectionError:
                pass  # the peer no longer waits
            except Exception as error:  # noqa: BLE001  # the next scrape may succeed
                report_failure(_TASK, error)
            finally:
                writer.close()

        path = self._folder / self._name
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)  # a killed predecessor left it
        try:
            async with await asyncio.start_unix_server(respond, path) as server:
                await server.serve_forever()
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # the last worker removes it if the parent was killed
                self._folder.rmdir()

    async def collect(self) -> bytes:
        """Return the metrics of all workers that answer in time, this one included, as text."""
        paths = sorted(self._folder.iterdir())
        texts = await asyncio.gather(*map(_read_peer, paths))
        text_by_worker = {path.name: text for path, text in zip(paths, texts, strict=True) if text}
        return generate_latest(_MergedMetrics(text_by_worker))


async def _read_peer(path: Path) -> str:
    """Return the metrics of a peer, or nothing if it has ended or is being replaced."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return (await reader.read()).decode(errors="replace")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return ""


class _MergedMetrics(Collector):
    def __init__(self, text_by_worker: Mapping[str, str]) -> None:
        self._text_by_worker = text_by_worker

    def collect(self) -> Iterable[Metric]:
        """Return each metric once, with the samples of all workers."""
        metrics: dict[str, Metric] = {}
        for name, text in self._text_by_worker.items():
            families: list[Metric] = []
            with skip_poison(_TASK, worker=name):
                families = list(text_string_to_metric_families(text))
            for family in families:
                metric = metrics.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                metric.samples += [
                    sample._replace(labels={**sample.labels, "worker": name})
                    for sample in family.samples
                ]
        return metrics.values()
