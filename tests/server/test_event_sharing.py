"""Equal subscriptions share the execution of an event; callers of other permissions do not."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import strawberry

from db.core.enums import Role
from db.core.errors import Unavailable
from db.core.identity import Caller, Identity
from graph.api.context import Info
from graph.api.field_declarations import declare
from graph.api.scalars import SCALARS, Revision
from graph.api.schema import Schema
from graph.auth.permissions import EVERYBODY
from graph.core.event_batches import EventBatches
from graph.execution.engine import Engine
from graph.execution.request import GraphQLRequest
from graph.execution.response import OperationRejected
from tests.support.api import CHANGES, MAINTENANCE, register, wait_for_revision
from tests.support.live_server import LiveServer, StartServer
from tests.support.statements import record_statements
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until


@dataclass(eq=False)
class Execution:
    """The state of the resolvers of this module, and how often each event was executed."""

    executed: Counter[str] = field(default_factory=Counter)
    may_continue: asyncio.Event = field(default_factory=asyncio.Event)
    is_failing: bool = False


EXECUTION = Execution()


def make_caller(role: Role = Role.VIEWER, *nodes: str, name: str = "one") -> Caller:
    return Caller(Identity(name, role, frozenset(nodes)), "127.0.0.1")


CALLER = make_caller()


@strawberry.type
class Message:
    """An event that several subscriptions receive."""

    text: str

    @strawberry.field
    async def text_for_caller(self, info: Info) -> str:
        EXECUTION.executed[self.text] += 1
        await EXECUTION.may_continue.wait()
        if EXECUTION.is_failing:
            raise Unavailable(1)
        identity = info.context.caller.identity
        return " ".join([self.text, "for", identity.role, *sorted(identity.nodes)])


EVENTS = [Message(text="first"), Message(text="second")]


def return_event(event: Message) -> Message:
    return event


async def open_messages() -> AsyncGenerator[Sequence[Message], None]:
    yield EVENTS


@strawberry.type
class Subscription:
    @strawberry.subscription(**declare(EVERYBODY, "Messages."))  # type: ignore[untyped-decorator]  # as its schema is
    async def messages(
        self,
        after: Revision | None = None,
        loud: bool = False,  # noqa: FBT001, FBT002  # a GraphQL argument
    ) -> AsyncIterator[Message]:
        del after, loud  # the arguments only make operations differ
        return EventBatches(open_messages(), return_event)

    @strawberry.subscription(**declare(EVERYBODY, "Messages that are the same for all."))  # type: ignore[untyped-decorator]  # as above
    async def announcements(self) -> AsyncIterator[Message]:
        return EventBatches(open_messages(), return_event, same_for_all=True)


@strawberry.type
class Query:
    nothing: str = ""


SCHEMA = Schema(
    query=Query,
    subscription=Subscription,
    config=strawberry.schema.config.StrawberryConfig(scalar_map=dict(SCALARS)),
)
DOCUMENT = """
subscription One($after: Revision, $loud: Boolean! = false) {
  messages(after: $after, loud: $loud) { textForCaller }
}
subscription Two { messages { textForCaller } }
"""


@pytest.fixture
def engine(server: LiveServer) -> Engine:
    EXECUTION.__init__()  # type: ignore[misc]  # reset for each test
    EXECUTION.may_continue.set()
    return Engine(SCHEMA, server.services)


def make_request(name: str = "One", document: str = DOCUMENT, **variables: Any) -> GraphQLRequest:
    body = {"query": document, "operationName": name, "variables": variables}
    return GraphQLRequest.model_validate(body)


async def subscribe(
    engine: Engine, request: GraphQLRequest, caller: Caller = CALLER
) -> AsyncGenerator[str, None]:
    stream = await engine.handle(request, caller)
    assert not isinstance(stream, str)
    async with aclosing(stream) as payloads:
        async for payload in payloads:
            yield payload


async def collect_texts(
    engine: Engine, request: GraphQLRequest, caller: Caller = CALLER
) -> list[str]:
    async with aclosing(subscribe(engine, request, caller)) as payloads:
        return [
            orjson.loads(payload)["data"]["messages"]["textForCaller"] async for payload in payloads
        ]


async def test_an_event_of_equal_subscriptions_is_executed_once_with_identical_payloads(
    engine: Engine,
) -> None:
    streams = [subscribe(engine, make_request(after=str(number))) for number in range(20)]
    payloads = [[payload async for payload in stream] for stream in streams]
    assert EXECUTION.executed == {"first": 1, "second": 1}
    assert all(payload is payloads[0][0] for payload, _ in payloads)


async def test_an_event_of_different_operations_is_executed_for_each(engine: Engine) -> None:
    for request in (
        make_request(),
        make_request(loud=True),
        make_request("Two"),
        make_request(document=DOCUMENT + "# another document"),
    ):
        assert await collect_texts(engine, request) == ["first for viewer", "second for viewer"]
    assert EXECUTION.executed["first"] == 4


async def test_no_caller_gets_a_payload_made_for_other_permissions(
    engine: Engine,
) -> None:
    EXECUTION.may_continue.clear()
    callers = [
        make_caller(Role.VIEWER, name="one"),
        make_caller(Role.OPERATOR, name="one"),
        make_caller(Role.AGENT, "a", name="one"),
        make_caller(Role.AGENT, "b", name="one"),
        make_caller(Role.AGENT, "a", "b", name="one"),
    ]
    tasks = []
    for caller in callers * 2:
        tasks.append(asyncio.create_task(collect_texts(engine, make_request(), caller)))
        await asyncio.sleep(0)
    EXECUTION.may_continue.set()
    permissions = ["viewer", "operator", "agent a", "agent b", "agent a b"]
    assert await asyncio.gather(*tasks) == [
        [f"first for {permission}", f"second for {permission}"] for permission in permissions * 2
    ]
    assert EXECUTION.executed["first"] == 5


async def test_an_event_that_is_the_same_for_all_is_executed_once_for_all_permissions(
    engine: Engine,
) -> None:
    request = make_request("All", "subscription All { messages: announcements { textForCaller } }")
    for caller in (
        make_caller(Role.VIEWER),
        make_caller(Role.AGENT, "a"),
        make_caller(Role.AGENT, "b"),
    ):
        assert await collect_texts(engine, request, caller) == [
            "first for viewer",
            "second for viewer",
        ]
    assert EXECUTION.executed == {"first": 1, "second": 1}


async def test_callers_of_the_same_permissions_share(engine: Engine) -> None:
    for name in ("one", "two"):
        await collect_texts(engine, make_request(), make_caller(name=name))
    assert EXECUTION.executed == {"first": 1, "second": 1}


async def test_an_event_whose_execution_failed_is_executed_again_for_later_subscribers(
    engine: Engine,
) -> None:
    EXECUTION.is_failing = True
    payloads = [payload async for payload in subscribe(engine, make_request())]
    assert all("UNAVAILABLE" in payload for payload in payloads)
    EXECUTION.is_failing = False
    assert await collect_texts(engine, make_request()) == ["first for viewer", "second for viewer"]


async def test_a_subscriber_that_leaves_during_execution_disturbs_no_other(engine: Engine) -> None:
    EXECUTION.may_continue.clear()
    cancelled, remaining = [
        asyncio.create_task(collect_texts(engine, make_request())) for _ in range(2)
    ]
    await wait_until(lambda: EXECUTION.executed)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    EXECUTION.may_continue.set()
    assert await remaining == ["first for viewer", "second for viewer"]


async def test_a_stream_that_fails_ends_with_an_error(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_broken_messages() -> AsyncGenerator[Sequence[Message], None]:
        yield EVENTS[:1]
        raise Unavailable(1)

    monkeypatch.setitem(globals(), "open_messages", open_broken_messages)
    EXECUTION.__init__()  # type: ignore[misc]  # reset
    EXECUTION.may_continue.set()
    payloads = subscribe(Engine(SCHEMA, server.services), make_request())
    assert await anext(payloads)
    with pytest.raises(OperationRejected) as rejection:
        await anext(payloads)
    assert rejection.value.errors[0]["extensions"]["code"] == "UNAVAILABLE"


async def test_subscribers_share_the_read_of_nested_fields_and_filters_match_in_memory(
    quiet_server: LiveServer,
) -> None:
    server = quiet_server
    for number in range(5):
        profile = {"name": "p", "type": "LLM", "config": {}}
        await register(server, f"n{number}", labels=["mine"], profiles=[profile])
    await wait_for_revision(server, 7)
    mine = {"labels": {"all": ["mine"]}}
    async with connect(server.websocket_url) as client:
        for number in range(10):
            await client.subscribe(str(number), CHANGES, filter=mine, after="7")
        await wait_until(lambda: server.services.change_feed.subscriber_count >= 10)
        with record_statements(server.services.database) as sent:
            await server.execute(MAINTENANCE, input={"nodeId": "n0", "enabled": True})
            for _ in range(10):
                await client.receive()
    assert len([statement for statement in sent if "node_profiles" in statement]) == 1
    assert not [statement for statement in sent if "labels @>" in statement]


async def test_nested_fields_of_many_events_cost_one_statement(start_server: StartServer) -> None:
    quiet = {"sweep_interval_seconds": 3600, "listen_check_seconds": 300}
    async with start_server(**quiet) as server:
        for number in range(20):
            await register(server, f"n{number}")
    async with start_server(**quiet) as server, connect(server.websocket_url) as client:
        with record_statements(server.services.database) as sent:
            await client.subscribe("1", CHANGES, after="2")
            for _ in range(20):
                await client.receive()
    assert len([statement for statement in sent if "node_profiles" in statement]) == 1
