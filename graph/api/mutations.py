"""The mutations. Each is one transaction, and its response is sent after the commit."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated

import strawberry

from db.core.errors import BadInput, RegistryError
from db.core.identity import Caller
from db.core.token_format import redact_tokens
from db.registry import nodes, registration
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.node_limits import BudgetExceeded
from graph.api.audited_field import AuditedField
from graph.api.context import Info
from graph.api.enums import NodeStatus
from graph.api.field_declarations import declare
from graph.api.fields import INPUT, field, optional
from graph.api.inputs import (
    DeregisterNodeInput,
    RecordHeartbeatInput,
    RegisterNodeInput,
    SetMaintenanceInput,
)
from graph.api.node import Node
from graph.api.profiles import ProfileMutations
from graph.api.scalars import Revision
from graph.api.tokens import TokenMutations, issue_node_token
from graph.auth.permissions import (
    OPERATORS,
    OWN_AGENT,
    REGISTRANTS,
    require_own_node,
    resolve_node_id,
)
from graph.core import validation


@strawberry.type(description="A registered node.")
class RegisterNodePayload:
    node: Node = field("The node after the registration.")
    created: bool = field("Whether the node was not registered before.")
    next_heartbeat_in_seconds: float = field(
        "The time in seconds after which to send the first heartbeat. The registry sets the"
        " interval."
    )
    key: str | None = optional(
        "The node's own token, if it was registered with an enrolment token. It is shown only"
        " this once."
    )
    key_expires_at: datetime | None = optional(
        "When the node's own token expires: the token in key, or the one that the request was"
        " sent with."
    )


@strawberry.type(description="An accepted heartbeat.")
class RecordHeartbeatPayload:
    node_id: str = field("The id of the node that sent the heartbeat.")
    status: NodeStatus = field("The status of the node now.")
    received_at: datetime = field("When the node's last heartbeat was received.")
    next_heartbeat_in_seconds: float = field(
        "The time in seconds after which to send the next heartbeat. The registry sets the"
        " interval."
    )
    metrics_stored: bool = field(
        "Whether the metrics were stored, if there were any: false once the node has used up its"
        " bytes of the day, NODE_REGISTRY_NODE_BYTES_PER_DAY. The lease is renewed all the same."
    )

    @classmethod
    def from_ack(cls, ack: HeartbeatAck) -> "RecordHeartbeatPayload":
        return cls(
            node_id=ack.node_id,
            status=ack.status,
            received_at=ack.received_at,
            next_heartbeat_in_seconds=ack.interval_seconds,
            metrics_stored=not ack.metrics_dropped,
        )


@strawberry.type(description="A rejected heartbeat of a batch.")
class HeartbeatRejected:
    node_id: str = field("The node id in the heartbeat.")
    code: str = field("The code of the error, e.g. STALE_BOOT.")
    message: str = field("The message of the error.")
    retry_after_seconds: float | None = field(
        "The time in seconds after which the heartbeat may be accepted; null if the error does not"
        " pass by itself."
    )


HeartbeatResult = Annotated[
    RecordHeartbeatPayload | HeartbeatRejected,
    strawberry.union("HeartbeatResult", description="The outcome of one heartbeat of a batch."),
]


@strawberry.type(description="A node whose maintenance was started or ended.")
class SetMaintenancePayload:
    node: Node = field("The node after the change.")


@strawberry.type(description="A node that was removed.")
class DeregisterNodePayload:
    node_id: str = field("The id of the removed node.")
    revision: Revision = field("The revision of the removal in the change log.")


@strawberry.type(description="The mutations that change the registry.")
class Mutation(ProfileMutations, TokenMutations):
    @strawberry.mutation(
        **declare(
            REGISTRANTS,
            "Registers a node. An agent calls this at every start. NODE_ID_TAKEN while another"
            " run of an agent holds the node id and still sends heartbeats. RATE_LIMITED if the"
            " node restarts or changes too often, or changes after its bytes of the day are used"
            " up.",
        ),
        extensions=[AuditedField("node.register", "node_id")],
    )
    async def register_node(
        self,
        info: Info,
        input: Annotated[RegisterNodeInput, INPUT],
    ) -> RegisterNodePayload:
        context = info.context
        context.services.caller_limits.charge_registration(context.caller)
        content = input.to_registration()
        content = replace(content, node_id=resolve_node_id(context.caller, content.node_id))
        async with context.services.database.write() as session:
            try:
                node, created = await registration.register(
                    session,
                    content,
                    rules=context.services.sweeper.rules,
                    caller=context.caller,
                    limits=context.services.settings.to_node_limits(),
                )
            except BudgetExceeded:
                context.services.metrics.budget_exceeded.labels("registration").inc()
                raise
            key, key_expires_at = await issue_node_token(session, node, context.caller)
        return RegisterNodePayload(
            node=Node.from_row(node),
            created=created,
            next_heartbeat_in_seconds=node.heartbeat_interval_seconds,
            key=key,
            key_expires_at=key_expires_at,
        )

    @strawberry.mutation(
        **declare(
            OWN_AGENT,
            "Renews the lease of a node. NODE_NOT_FOUND if the node must register first."
            " STALE_BOOT if another run of the agent has registered the node. RATE_LIMITED if"
            " heartbeats come a few times more often than nextHeartbeatInSeconds says.",
        )
    )
    async def record_heartbeat(
        self,
        info: Info,
        input: Annotated[RecordHeartbeatInput, INPUT],
    ) -> RecordHeartbeatPayload:
        context = info.context
        context.services.caller_limits.charge_heartbeats(context.caller, 1)
        report = _parse_report("input", input, context.caller)
        [outcome] = await context.services.heartbeat_writer.record([report])
        if isinstance(outcome, RegistryError):
            raise outcome
        return RecordHeartbeatPayload.from_ack(outcome)

    @strawberry.mutation(
        **declare(
            OWN_AGENT,
            "Renews the leases of up to 1000 nodes, for a gateway that acts for them. Each"
            " heartbeat is accepted or rejected on its own; the results are in the order of the"
            " inputs.",
        )
    )
    async def record_heartbeats(
        self,
        info: Info,
        inputs: Annotated[
            list[RecordHeartbeatInput],
            strawberry.argument(description="The heartbeats, at most 1000."),
        ],
    ) -> list[HeartbeatResult]:
        if len(inputs) > validation.MAX_BATCH_SIZE:
            raise BadInput("inputs", f"must be at most {validation.MAX_BATCH_SIZE}")
        context = info.context
        context.services.caller_limits.charge_heartbeats(context.caller, len(inputs))
        reports = [
            _parse_report_or_error(f"inputs[{i}]", heartbeat, context.caller)
            for i, heartbeat in enumerate(inputs)
        ]
        outcomes = iter(
            await context.services.heartbeat_writer.record(
                [report for report in reports if isinstance(report, HeartbeatReport)]
            )
        )
        return [
            _show_outcome(
                heartbeat.node_id, report if isinstance(report, RegistryError) else next(outcomes)
            )
            for heartbeat, report in zip(inputs, reports, strict=True)
        ]

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Starts or ends the maintenance of a node. After maintenance the node has the status"
            " that its heartbeats determine.",
        ),
        extensions=[AuditedField("node.set_maintenance", "node_id")],
    )
    async def set_maintenance(
        self,
        info: Info,
        input: Annotated[SetMaintenanceInput, INPUT],
    ) -> SetMaintenancePayload:
        context = info.context
        node_id = validation.check_search_value("input.nodeId", input.node_id)
        note = validation.check_optional(validation.check_note, "input.note", input.note)
        if input.until is not None and not input.enabled:
            raise BadInput("input.until", "must be absent unless input.enabled is true")
        async with context.services.database.write() as session:
            if input.enabled:
                node = await nodes.start_maintenance(
                    session, node_id, note=note, until=input.until, caller=context.caller
                )
            else:
                node = await nodes.end_maintenance(
                    session,
                    node_id,
                    rules=context.services.sweeper.rules,
                    note=note,
                    caller=context.caller,
                )
        return SetMaintenancePayload(node=Node.from_row(node))

    @strawberry.mutation(
        **declare(
            OPERATORS,
            "Removes a node and keeps its history. A later registration creates a new node.",
        ),
        extensions=[AuditedField("node.deregister", "node_id")],
    )
    async def deregister_node(
        self,
        info: Info,
        input: Annotated[DeregisterNodeInput, INPUT],
    ) -> DeregisterNodePayload:
        node_id = validation.check_search_value("input.nodeId", input.node_id)
        note = validation.check_optional(validation.check_note, "input.note", input.note)
        async with info.context.services.database.write() as session:
            revision = await nodes.deregister(
                session, node_id, note=note, caller=info.context.caller
            )
        return DeregisterNodePayload(node_id=node_id, revision=Revision(revision))


def _parse_report(path: str, heartbeat: RecordHeartbeatInput, caller: Caller) -> HeartbeatReport:
    report = heartbeat.to_report(path, caller.name)
    require_own_node(caller, report.node_id)
    return report


def _parse_report_or_error(
    path: str, heartbeat: RecordHeartbeatInput, caller: Caller
) -> HeartbeatReport | RegistryError:
    try:
        return _parse_report(path, heartbeat, caller)
    except RegistryError as error:
        return error


def _show_outcome(
    node_id: str, outcome: HeartbeatAck | RegistryError
) -> RecordHeartbeatPayload | HeartbeatRejected:
    if isinstance(outcome, RegistryError):
        retry_after = outcome.details.get("retryAfterSeconds")
        return HeartbeatRejected(
            node_id=redact_tokens(node_id),
            code=outcome.code,
            message=redact_tokens(outcome.message),
            retry_after_seconds=retry_after if isinstance(retry_after, float) else None,
        )
    return RecordHeartbeatPayload.from_ack(outcome)
