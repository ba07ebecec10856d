"""One run of the agent: it registers its node and sends heartbeats at the registry's pace."""

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
# What only a person can put right, e.g. a token: asking often does not help.
OPERATOR_CODES = {BAD_INPUT, FORBIDDEN, UNAUTHENTICATED}
SLOW_RETRY_SECONDS = 60.0
# The registry jitters its pace; less than this factor is not news.
PACE_CHANGE = 1.5
# How often the registry is told at most that this machine has changed.
REPORT_SECONDS = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()

T = TypeVar("T")


@dataclass
class Runner:
    """Between `identity.hold` and its end; `boot_id` is of `identity.begin_boot`.

    Without `patience_seconds` it keeps trying for as long as a later try can succeed.
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
    """Set before `register`: the id to ask for when the directory holds none."""
    sequence: int = 0
    _reported: dict[str, Any] = field(default_factory=dict)
    _reported_at: float = 0.0

    async def run(self) -> NoReturn:
        """Raises RefusedError when this run has to end, StateError when a file cannot be used."""
        await self.register()
        while True:
            try:
                recorded = await self.send_heartbeat()
                await rotate_token_if_due(self.transport, self.credentials, recorded.received_at)
                await self.report_changes()
            except RequestRejectedError as refusal:
                if refusal.code == NODE_NOT_FOUND:
                    log.warning("node.forgotten", node_id=self.node_id)
                elif refusal.code != UNAUTHENTICATED:
                    raise
                await self.register()
            await self.schedule.wait()

    async def register(self) -> RegisterNodePayload:
        """Returns once the registry has accepted; the node id is on disk then."""
        registered = await self._retry(self._try_to_register, ends_at={BAD_INPUT, STALE_BOOT})
        log.info(
            "node.registered",
            node_id=self.node_id,
            boot_id=self.boot_id,
            created=registered.created,
            status=registered.node.status,
            next_heartbeat_in_seconds=registered.next_heartbeat_in_seconds,
            key_expires_at=str(registered.key_expires_at) if registered.key_expires_at else None,
        )
        return registered

    async def send_heartbeat(self) -> RecordHeartbeatPayload:
        """Returns once a heartbeat is recorded: the newest one, with the figures of that moment."""
        ends_at = {STALE_BOOT, NODE_NOT_FOUND}
        if self.credentials.has_fallback:
            ends_at.add(UNAUTHENTICATED)  # a registration tries the other
        return await self._retry(self._try_to_send_heartbeat, ends_at=ends_at)

    async def report_changes(self) -> None:
        """Registers again when the machine is not what it was; if that fails, later once more."""
        now = self.clock.now()
        if now - self._reported_at < REPORT_SECONDS or self._reported == self._build_registration():
            return
        self._reported_at = now
        try:
            await self._try_to_register()
        except RegistryUnavailableError as error:
            log.debug("node.untold", reason=error.reason)
        except RequestRejectedError as refusal:
            if refusal.code == STALE_BOOT:
                raise
            log.warning("node.untold", code=refusal.code, message=refusal.message)
        else:
            log.info("node.changed", node_id=self.node_id)

    def _build_registration(self) -> dict[str, Any]:
        return build_registration_input(self.settings, self.observe_machine(), self.boot_id)

    async def _try_to_register(self) -> RegisterNodePayload:
        node_id = identity.read_node_id(self.directory) or self.node_id
        former_boot_id = identity.read_boot_id(self.directory)
        registration = self._build_registration()
        variables = dict(registration)
        if node_id:
            variables["nodeId"] = node_id
        if former_boot_id and former_boot_id != self.boot_id:
            variables["replacesBootId"] = former_boot_id
        reply = await self._send_registration(variables)
        if node_id not in {None, reply.node.node_id}:
            raise RegistryUnavailableError(f"asked for {node_id}, got {reply.node.node_id}")
        # The key goes first: only while the bootId is pending the registry would give it again.
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
        """By the node's own key, and by the token when that is not good any more."""
        variables = {"input": registration}
        self.credentials.use_node_token()
        try:
            data = await self.transport.execute(
                documents.REGISTER_NODE, variables, RegisterNodeData
            )
        except RequestRejectedError as refusal:
            if refusal.code != UNAUTHENTICATED or not self.credentials.use_configured_token():
                raise
            log.warning("key.refused", message=refusal.message)
            data = await self.transport.execute(
                documents.REGISTER_NODE, variables, RegisterNodeData
            )
        return data.register_node

    async def _try_to_send_heartbeat(self) -> RecordHeartbeatPayload:
        # A heartbeat whose answer was lost is not sent again: this is the next one.
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
        recorded = data.record_heartbeat
        log.debug("heartbeat.recorded", sequence=self.sequence, status=recorded.status)
        self._set_interval(recorded.next_heartbeat_in_seconds)
        return recorded

    def _set_interval(self, seconds: float) -> None:
        previous = self.schedule.interval_seconds
        if max(seconds / previous, previous / seconds) > PACE_CHANGE:
            log.info("heartbeat.paced", next_heartbeat_in_seconds=seconds)
        self.schedule.set_interval(seconds)

    async def _retry(self, attempt: Callable[[], Awaitable[T]], *, ends_at: set[str]) -> T:
        """Tries until it succeeds, or a refusal is final, or patience ends."""
        started_at = self.clock.now()
        failures = 0
        logged: str | None = None
        while True:
            try:
                result = await attempt()
            except (RegistryUnavailableError, RequestRejectedError) as error:
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

    def _is_final(self, refusal: RequestRejectedError, ends_at: set[str]) -> bool:
        impatient = self.max_retry_seconds is not None and not refusal.is_retryable
        return refusal.code in ends_at or impatient

    def _draw_delay(
        self, failures: int, error: RegistryUnavailableError | RequestRejectedError
    ) -> float:
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
        error: RegistryUnavailableError | RequestRejectedError,
        logged: str | None,
        failures: int,
        delay: float,
    ) -> str:
        """Logs what is new; returns what has been logged now, for the next call."""
        write = log.warning
        if isinstance(error, RegistryUnavailableError):
            event, kind = "registry.away", "away"
            facts: dict[str, object] = {"reason": error.reason}
            if isinstance(error, RegistryRestartingError):
                event, kind, write = "registry.restarting", "restarting", log.info
        else:
            event, kind = "registry.refused", error.code
            facts = {"code": error.code, "message": error.message, "facts": dict(error.facts)}
        # The wait for a holder is one that a person may want to end, so it is said each time.
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
    """RegisterNodeInput. What is not known is left out, and stays as the registry has it."""
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
