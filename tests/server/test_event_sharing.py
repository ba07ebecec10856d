"""Subscriptions that are alike share the work of an event, and nothing of it is anybody else's."""

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
from graph.api.root_fields import declare
from graph.api.scalars import SCALARS, Revision
from graph.api.schema import Schema
from graph.auth.permissions import EVERYBODY
from graph.core.event_batches import EventBatches
from graph.execution.engine import Engine
from graph.execution.request import GraphQLRequest
from graph.execution.response import OperationRefused
from tests.support.api import CHANGES, MAINTENANCE, register, wait_for_revision
from tests.support.live_server import LiveServer, StartServer
from tests.support.statements import record_statements
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until


@dataclass(eq=False)
class Stage:
    """What the events of the test's own schema do while they are executed."""

    executed: Counter[str] = field(default_factory=Counter)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    failing: bool = False


STAGE = Stage()


def caller(role: Role = Role.VIEWER, *nodes: str, name: str = "one") -> Caller:
    return Caller(Identity(name, role, frozenset(nodes)), "127.0.0.1")


ONE = caller()


@strawberry.type
class Said:
    """One that several subscriptions are told of."""

    text: str

    @strawberry.field
    async def told_to(self, info: Info) -> str:
        STAGE.executed[self.text] += 1
        await STAGE.may_go_on.wait()
        if STAGE.failing:
            raise Unavailable(1)
        identity = info.context.caller.identity
        return " ".join([self.text, "for", identity.role, *sorted(identity.nodes)])


EVENTS = [Said(text="first"), Said(text="second")]


def itself(event: Said) -> Said:
    return event


async def said() -> AsyncGenerator[Sequence[Said], None]:
    yield EVENTS


@strawberry.type
class Subscription:
    @strawberry.subscription(**declare(EVERYBODY, "What is said."))  # type: ignore[untyped-decorator]  # as its schema is
    async def said(self, after: Revision | None = None, loud: bool = False) -> AsyncIterator[Said]:  # noqa: FBT001, FBT002  # as GraphQL has them
        del after, loud  # they say only what is asked
        return EventBatches(said(), itself)

    @strawberry.subscription(**declare(EVERYBODY, "What is said to all."))  # type: ignore[untyped-decorator]  # as above
    async def cried(self) -> AsyncIterator[Said]:
        return EventBatches(said(), itself, same_for_all=True)


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
  said(after: $after, loud: $loud) { toldTo }
}
subscription Two { said { toldTo } }
"""


@pytest.fixture
def engine(server: LiveServer) -> Engine:
    STAGE.__init__()  # type: ignore[misc]  # anew for each test
    STAGE.may_go_on.set()
    return Engine(SCHEMA, server.services)


def request(name: str = "One", document: str = DOCUMENT, **variables: Any) -> GraphQLRequest:
    asked = {"query": document, "operationName": name, "variables": variables}
    return GraphQLRequest.model_validate(asked)


async def subscribe(
    engine: Engine, asked: GraphQLRequest, by: Caller = ONE
) -> AsyncGenerator[str, None]:
    stream = await engine.handle(asked, by)
    assert not isinstance(stream, str)
    async with aclosing(stream) as payloads:
        async for payload in payloads:
            yield payload


async def collect_events(engine: Engine, asked: GraphQLRequest, by: Caller = ONE) -> list[str]:
    async with aclosing(subscribe(engine, asked, by)) as payloads:
        return [orjson.loads(payload)["data"]["said"]["toldTo"] async for payload in payloads]


async def test_what_is_alike_is_executed_once_and_the_same_to_the_byte(
    engine: Engine,
) -> None:
    streams = [subscribe(engine, request(after=str(number))) for number in range(20)]
    payloads = [[payload async for payload in stream] for stream in streams]
    assert STAGE.executed == {"first": 1, "second": 1}
    assert all(payload is payloads[0][0] for payload, _ in payloads)


async def test_what_differs_is_executed_for_each(engine: Engine) -> None:
    for asked in (
        request(),
        request(loud=True),
        request("Two"),
        request(document=DOCUMENT + "# another document"),
    ):
        assert await collect_events(engine, asked) == ["first for viewer", "second for viewer"]
    assert STAGE.executed["first"] == 4


async def test_nobody_gets_what_was_made_for_a_caller_of_other_rights(
    engine: Engine,
) -> None:
    STAGE.may_go_on.clear()
    callers = [
        caller(Role.VIEWER, name="one"),
        caller(Role.OPERATOR, name="one"),
        caller(Role.AGENT, "a", name="one"),
        caller(Role.AGENT, "b", name="one"),
        caller(Role.AGENT, "a", "b", name="one"),
    ]
    tasks = []
    for each in callers * 2:
        tasks.append(asyncio.create_task(collect_events(engine, request(), each)))
        await asyncio.sleep(0)
    STAGE.may_go_on.set()
    of_each = ["viewer", "operator", "agent a", "agent b", "agent a b"]
    assert await asyncio.gather(*tasks) == [
        [f"first for {rights}", f"second for {rights}"] for rights in of_each * 2
    ]
    assert STAGE.executed["first"] == 5


async def test_what_looks_alike_to_all_is_executed_once_whatever_their_rights(
    engine: Engine,
) -> None:
    asked = request("All", "subscription All { said: cried { toldTo } }")
    for by in (caller(Role.VIEWER), caller(Role.AGENT, "a"), caller(Role.AGENT, "b")):
        assert await collect_events(engine, asked, by) == ["first for viewer", "second for viewer"]
    assert STAGE.executed == {"first": 1, "second": 1}


async def test_callers_of_the_same_rights_share(engine: Engine) -> None:
    for name in ("one", "two"):
        await collect_events(engine, request(), caller(name=name))
    assert STAGE.executed == {"first": 1, "second": 1}


async def test_what_failed_is_executed_anew_for_who_comes_later(engine: Engine) -> None:
    STAGE.failing = True
    payloads = [payload async for payload in subscribe(engine, request())]
    assert all("UNAVAILABLE" in payload for payload in payloads)
    STAGE.failing = False
    assert await collect_events(engine, request()) == ["first for viewer", "second for viewer"]


async def test_one_that_leaves_in_the_middle_disturbs_nobody(engine: Engine) -> None:
    STAGE.may_go_on.clear()
    leaves, stays = [asyncio.create_task(collect_events(engine, request())) for _ in range(2)]
    await wait_until(lambda: STAGE.executed)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    STAGE.may_go_on.set()
    assert await stays == ["first for viewer", "second for viewer"]


async def test_a_stream_that_breaks_off_says_so_in_an_error(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> AsyncGenerator[Sequence[Said], None]:
        yield EVENTS[:1]
        raise Unavailable(1)

    monkeypatch.setitem(globals(), "said", broken)
    STAGE.__init__()  # type: ignore[misc]  # anew
    STAGE.may_go_on.set()
    payloads = subscribe(Engine(SCHEMA, server.services), request())
    assert await anext(payloads)
    with pytest.raises(OperationRefused) as refused:
        await anext(payloads)
    assert refused.value.errors[0]["extensions"]["code"] == "UNAVAILABLE"


async def test_nested_fields_are_read_once_for_all_and_a_filter_is_matched_in_memory(
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
    assert not [statement for statement in sent if "labels @>" in statement]  # matched in memory


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
