"""One run of the agent, which registers its node and sends heartbeats at the registry's pace."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import structlog

from agent import documents, identity
from agent.credentials import Credentials
from agent.errors import (
    FORBIDDEN,
    UNAUTHENTICATED,
    RegistryError,
    RegistryRestartingError,
    RegistryUnavailableError,
    RequestRejectedError,
)
from agent.machine import Machine, observe_machine
from agent.metrics import Meter
from agent.pace import Clock, Schedule, draw_retry_delay
from agent.replies import (
    RecordHeartbeatData,
    RecordHeartbeatPayload,
    RegisterNodeData,
    RegisterNodePayload,
)
from agent.rotation import rotate_token_if_due
from agent.settings import AgentSettings
from agent.transport import RegistryTransport

BAD_INPUT, NODE_ID_TAKEN, NODE_NOT_FOUND, STALE_BOOT = (
    "BAD_INPUT",
    "NODE_ID_TAKEN",
    "NODE_NOT_FOUND",
    "STALE_BOOT",
)
# Errors that only a person can resolve, e.g. by another token: frequent retries do not help.
OPERATOR_CODES = {BAD_INPUT, FORBIDDEN, UNAUTHENTICATED}
SLOW_RETRY_SECONDS = 60.0
# The registry jitters its pace; a change by less than this factor is not logged.
PACE_CHANGE = 1.5
# The shortest time between two reports that this machine has changed.
REPORT_SECONDS = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()

T = TypeVar("T")


@dataclass
class Runner:
    """One run of the agent. The caller holds `identity.lock_directory` for as long as it lasts.

    `boot_id` comes from `identity.prepare_boot_id`. A request is retried for `max_retry_seconds`,
    or without limit if that is None, while a later attempt can succeed.
    """

    transport: RegistryTransport
    credentials: Credentials
    schedule: Schedule
    directory: Path
    settings: AgentSettings
    boot_id: str
    max_retry_seconds: float | None = None
    clock: Clock = field(default_factory=Clock)
    meter: Meter = field(default_factory=Meter)
    observe_machine: Callable[[], Machine] = observe_machine
    node_id: str | None = None
    """If set before `register`: the id to request when the directory contains none."""
    sequence: int = 0
    _reported: dict[str, Any] = field(default_factory=dict)
    _reported_at: float = 0.0

    async def run(self) -> NoReturn:
        """Register the node, then send heartbeats until the run has to end.

        Raises: RequestRejectedError: the run has to end, e.g. another one replaced it.
        StateError: a file cannot be used.
        """
        await self.register()
        while True:
            try:
                reply = await self.send_heartbeat()
                await rotate_token_if_due(self.transport, self.credentials, reply.received_at)
                await self.report_changes()
            except RequestRejectedError as error:
                if error.code == NODE_NOT_FOUND:
                    log.warning("node.removed", node_id=self.node_id)
                elif error.code != UNAUTHENTICATED:
                    raise
                await self.register()
            await self.schedule.wait()

    async def register(self) -> RegisterNodePayload:
        """Register the node and return the reply once the node id is on disk."""
        reply = await self._retry(self._try_to_register, ends_at={BAD_INPUT, STALE_BOOT})
        log.info(
            "node.registered",
            node_id=self.node_id,
            boot_id=self.boot_id,
            created=reply.created,
            status=reply.node.status,
            next_heartbeat_in_seconds=reply.next_heartbeat_in_seconds,
            token_expires_at=str(reply.key_expires_at) if reply.key_expires_at else None,
        )
        return reply

    async def send_heartbeat(self) -> RecordHeartbeatPayload:
        """Return the reply once a heartbeat is recorded; each attempt sends current metrics."""
        ends_at = {STALE_BOOT, NODE_NOT_FOUND}
        if self.credentials.has_fallback:
            ends_at.add(UNAUTHENTICATED)  # a registration then tries the other token
        return await self._retry(self._try_to_send_heartbeat, ends_at=ends_at)

    async def report_changes(self) -> None:
        """Register again if the machine has changed since; a failure is retried later."""
        now = self.clock.now()
        if now - self._reported_at < REPORT_SECONDS or self._reported == self._build_registration():
            return
        self._reported_at = now
        try:
            await self._try_to_register()
        except RegistryUnavailableError as error:
            log.debug("node_update.failed", reason=error.reason)
        except RequestRejectedError as error:
            if error.code == STALE_BOOT:
                raise
            log.warning("node_update.failed", code=error.code, message=error.message)
        else:
            log.info("node.updated", node_id=self.node_id)

    def _build_registration(self) -> dict[str, Any]:
        return build_registration_input(self.settings, self.observe_machine(), self.boot_id)

    async def _try_to_register(self) -> RegisterNodePayload:
        node_id = identity.read_node_id(self.directory) or self.node_id
        former_boot_id = identity.read_boot_id(self.directory)
        registration = self._build_registration()
        registration_input = dict(registration)
        if node_id:
            registration_input["nodeId"] = node_id
        if former_boot_id and former_boot_id != self.boot_id:
            registration_input["replacesBootId"] = former_boot_id
        reply = await self._send_registration(registration_input)
        if node_id not in {None, reply.node.node_id}:
            raise RegistryUnavailableError(
                f"the answer is for node {reply.node.node_id} instead of {node_id}"
            )
        # Save the token first: the registry sends it again only while the bootId is pending.
        if reply.key is not None:
            self.credentials.save_node_token(reply.key, reply.key_expires_at)
        else:
            self.credentials.update_expiry(reply.key_expires_at)
        identity.save_accepted_boot(self.directory, reply.node.node_id, self.boot_id)
        self.node_id = reply.node.node_id
        self.schedule.set_interval(reply.next_heartbeat_in_seconds)
        self._reported, self._reported_at = registration, self.clock.now()
        return reply

    async def _send_registration(self, registration: dict[str, Any]) -> RegisterNodePayload:
        """Register with the node token, or with the configured one if that is no longer valid."""
        variables = {"input": registration}
        self.credentials.use_node_token()
        try:
            data = await self.transport.execute(
                documents.REGISTER_NODE, variables, RegisterNodeData
            )
        except RequestRejectedError as error:
            if error.code != UNAUTHENTICATED or not self.credentials.use_configured_token():
                raise
            log.warning("token.rejected", message=error.message)
            data = await self.transport.execute(
                documents.REGISTER_NODE, variables, RegisterNodeData
            )
        return data.register_node

    async def _try_to_send_heartbeat(self) -> RecordHeartbeatPayload:
        # A heartbeat whose reply was lost is not repeated, so each attempt has a new number.
        self.sequence += 1
        heartbeat = {
            "nodeId": self.node_id,
            "bootId": self.boot_id,
            "sequence": self.sequence,
            "metrics": self.meter.read(),
        }
        data = await self.transport.execute(
            documents.RECORD_HEARTBEAT, {"input": heartbeat}, RecordHeartbeatData
        )
        reply = data.record_heartbeat
        log.debug("heartbeat.recorded", sequence=self.sequence, status=reply.status)
        previous, seconds = self.schedule.interval_seconds, reply.next_heartbeat_in_seconds
        if max(seconds / previous, previous / seconds) > PACE_CHANGE:
            log.info("heartbeat_interval.changed", next_heartbeat_in_seconds=seconds)
        self.schedule.set_interval(seconds)
        return reply

    async def _retry(self, attempt: Callable[[], Awaitable[T]], *, ends_at: set[str]) -> T:
        """Retry the attempt until it succeeds, is finally rejected, or the time is up."""
        started_at = self.clock.now()
        failures = 0
        logged: str | None = None
        while True:
            try:
                result = await attempt()
            except RegistryError as error:
                failures += 1
                if isinstance(error, RequestRejectedError) and self._is_final(error, ends_at):
                    raise
                delay = self._draw_delay(failures, error)
                if self.max_retry_seconds is not None:
                    remaining = self.max_retry_seconds - (self.clock.now() - started_at)
                    if remaining <= error.retry_after_seconds:
                        raise
                    delay = min(delay, remaining)
                logged = self._log_failure(error, logged, failures, delay)
            else:
                if failures:
                    seconds = round(self.clock.now() - started_at, 1)
                    log.info("registry.recovered", failures=failures, seconds=seconds)
                return result
            await self.clock.wait(delay)

    def _is_final(self, error: RequestRejectedError, ends_at: set[str]) -> bool:
        is_limited = self.max_retry_seconds is not None and not error.is_retryable
        return error.code in ends_at or is_limited

    def _draw_delay(self, failures: int, error: RegistryError) -> float:
        at_least = error.retry_after_seconds
        if isinstance(error, RequestRejectedError) and error.code in OPERATOR_CODES:
            at_least = max(at_least, SLOW_RETRY_SECONDS)
        return draw_retry_delay(
            failures,
            interval_seconds=self.schedule.interval_seconds,
            at_least_seconds=at_least,
            uniform=self.clock.uniform,
        )

    def _log_failure(
        self,
        error: RegistryError,
        logged: str | None,
        failures: int,
        delay: float,
    ) -> str:
        """Log a failure, of a kind already logged at debug level, and return its kind.

        Pass the returned kind as `logged` to the next call.
        """
        write = log.warning
        event, kind, facts = "request.failed", "unavailable", dict[str, object](reason=str(error))
        if isinstance(error, RegistryRestartingError):
            event, kind, write = "registry.restarting", "restarting", log.info
        elif isinstance(error, RequestRejectedError):
            event, kind = "request.rejected", error.code
            facts = {"code": error.code, "message": error.message, "facts": dict(error.facts)}
        # A person may want to end the wait for another holder of the node id, so log each attempt.
        is_new = kind != logged or kind == NODE_ID_TAKEN
        (write if is_new else log.debug)(
            event,
            registry_url=self.settings.registry_url,
            failures=failures,
            retry_in_seconds=round(delay, 1),
            **facts,
        )
        return kind


def build_registration_input(
    settings: AgentSettings, machine: Machine, boot_id: str
) -> dict[str, Any]:
    """Return a RegisterNodeInput without unknown fields, which the registry leaves as they are."""
    fields = {
        "name": settings.name,
        "role": settings.node_role.value,
        "type": settings.node_type.value,
        "labels": None if settings.labels is None else list(settings.labels),
        "ipAddress": machine.ip_address,
        "localIp": machine.local_ip,
        "hostname": machine.hostname,
        "capabilities": machine.capabilities,
        "metadata": machine.metadata,
        "bootId": boot_id,
    }
    return {name: value for name, value in fields.items() if value is not None}
