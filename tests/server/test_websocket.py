"""GraphQL over websockets, message by message: a bad message affects only its own connection."""

import asyncio
import gc
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from graphql import Executor
from sqlalchemy import text
from structlog.types import EventDict
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.api import CHANGES, DEREGISTER, register, wait_until_connected
from tests.support.fleet import wait_for_lock
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import SECONDS, Client, connect, open_websocket
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("logged")]

TYPENAME = "{ __typename }"
FOLLOW = "subscription { nodeStatusChanges { __typename } }"
ANSWER = {"data": {"__typename": "Query"}}
INTERNALS = re.compile(r"pydantic|codec|Error|Traceback|object at 0x|_Subscribe|GraphQLRequest")


async def check_is_alive(client: Client) -> None:
    """Check that the connection still answers."""
    await client.subscribe("still-there", TYPENAME)
    assert await client.receive() == {"type": "next", "id": "still-there", "payload": ANSWER}
    assert await client.receive() == {"type": "complete", "id": "still-there"}


async def receive_error(client: Client, operation_id: str) -> dict[str, Any]:
    """Receive the `error` message that rejects an operation; return its only error."""
    message = await client.receive()
    assert message.keys() == {"type", "id", "payload"}
    assert (message["type"], message["id"]) == ("error", operation_id)
    [error] = message["payload"]
    assert re.fullmatch("[0-9a-f]{32}", error["extensions"]["requestId"])
    return dict(error)


async def follow_changes(client: Client, server: LiveServer, operation_id: str) -> None:
    """Subscribe, and wait until the server follows the change log."""
    before = server.services.change_feed.subscriber_count
    await client.subscribe(operation_id, CHANGES)
    await wait_until(lambda: server.services.change_feed.subscriber_count > before)


async def test_query_yields_one_result_and_completes(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        await client.subscribe("1", "query ($id: String!) { node(nodeId: $id) { name } }", id="x")
        assert await client.receive() == {
            "type": "next",
            "id": "1",
            "payload": {"data": {"node": None}},
        }
        assert await client.receive() == {"type": "complete", "id": "1"}


@pytest.mark.asyncio(loop_scope="function")
async def test_mutation_yields_one_result_and_completes(server: LiveServer) -> None:
    async with connect(server.websocket_url) as client:
        await client.subscribe(
            "1",
            'mutation { registerNode(input: {nodeId: "a", role: BACKUP, type: WORKER, bootId: "b"})'
            " { created } }",
        )
        result = {"data": {"registerNode": {"created": True}}}
        assert await client.receive() == {"type": "next", "id": "1", "payload": result}
        assert await client.receive() == {"type": "complete", "id": "1"}
    assert await server.execute('{ node(nodeId: "a") { nodeId } }') == {"node": {"nodeId": "a"}}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("[1]", "Invalid message: it must be a JSON object"),
        ('"x"', "Invalid message: it must be a JSON object"),
        ("null", "Invalid message: it must be a JSON object"),
        ("1", "Invalid message: it must be a JSON object"),
        ("", "Messages must be JSON"),
        ("{", "Messages must be JSON"),
        ("[" * 100_000, "Messages must be JSON"),
        (r'{"type": "\ud800"}', "Messages must be JSON"),
        ("{}", "Invalid message: it has no type"),
        ('{"type": 1}', "Invalid message: it has a type that clients do not send"),
        ('{"type": null}', "Invalid message: it has a type that clients do not send"),
        ('{"type": "' + "x" * 500 + '"}', "Invalid message: it has a type that clients do not"),
        ('{"type": "start", "id": "1", "payload": {}}', "Invalid message: it has a type"),
        ('{"type": "connection_ack"}', "Invalid message: it has a type that clients do not"),
        ('{"type": "ping", "payload": 1}', "Invalid message: ping.payload must be a JSON object"),
        ('{"type": "pong", "payload": "x"}', "Invalid message: pong.payload must be a JSON object"),
        ('{"type": "connection_init", "payload": []}', "Invalid message: connection_init.payload"),
        ('{"type": "complete"}', "Invalid message: complete.id is missing"),
        ('{"type": "complete", "id": 1}', "Invalid message: complete.id must be a string"),
    ],
)
async def test_malformed_message_closes_the_connection_with_a_reason(
    shared_server: LiveServer, message: str, reason: str
) -> None:
    async with connect(shared_server.websocket_url) as client:
        await client.socket.send(message)
        code, closing_reason = await client.wait_for_close()
    assert code == 4400
    assert closing_reason.startswith(reason)
    assert not INTERNALS.search(closing_reason)
    assert await shared_server.execute(TYPENAME)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": 1}, "subscribe.id must be a string"),
        ({"id": {"a": 1}}, "subscribe.id must be a string"),
        ({"id": None}, "subscribe.id must be a string"),
        ({"id": ""}, "subscribe.id must not be empty"),
        ({"id": "x" * 256}, "subscribe.id"),
        ({"payload": TYPENAME}, "subscribe.payload must be a JSON object"),
        ({"payload": None}, "subscribe.payload must be a JSON object"),
        ({"payload": [TYPENAME]}, "subscribe.payload must be a JSON object"),
        ({"payload": {}}, "subscribe.payload.query is missing"),
        ({"payload": {"query": 1}}, "subscribe.payload.query must be a string"),
        ({"payload": {"query": ""}}, "subscribe.payload.query must not be empty"),
        (
            {"payload": {"query": TYPENAME, "variables": [1]}},
            "subscribe.payload.variables must be a JSON object",
        ),
        (
            {"payload": {"query": TYPENAME, "operationName": 1}},
            "subscribe.payload.operationName must be a string",
        ),
        (
            {"payload": {"query": TYPENAME, "extensions": "x"}},
            "subscribe.payload.extensions must be a JSON object",
        ),
    ],
)
async def test_malformed_subscribe_closes_the_connection_and_names_the_problem(
    shared_server: LiveServer, changes: dict[str, Any], reason: str
) -> None:
    async with connect(shared_server.websocket_url) as client:
        message = {"type": "subscribe", "id": "1", "payload": {"query": TYPENAME}}
        await client.send(message | changes)
        code, closing_reason = await client.wait_for_close()
    assert code == 4400
    assert closing_reason.startswith(f"Invalid message: {reason}")
    assert not INTERNALS.search(closing_reason)


async def test_subscribe_without_id_or_payload_closes_the_connection(
    shared_server: LiveServer,
) -> None:
    for missing in ("id", "payload"):
        async with connect(shared_server.websocket_url) as client:
            message = {"type": "subscribe", "id": "1", "payload": {"query": TYPENAME}}
            del message[missing]
            await client.send(message)
            assert await client.wait_for_close() == (
                4400,
                f"Invalid message: subscribe.{missing} is missing",
            )


async def test_binary_message_closes_the_connection(shared_server: LiveServer) -> None:
    for content in (b'{"type": "ping"}', b"", b"\xff\xfe"):
        async with connect(shared_server.websocket_url) as client:
            await client.socket.send(content)
            assert await client.wait_for_close() == (4400, "Messages must be text")


@pytest.mark.parametrize(
    "payload",
    [
        {"query": "{"},
        {"query": "{ nothing }"},
        {"query": " "},
        {"query": "{a" * 1900 + "}" * 1900},
        {"query": "query ($a: Int!) { nodes(first: $a) { totalCount } }"},
        {"query": "query A { __typename } query B { __typename }"},
        {"query": "query A { __typename }", "operationName": "B"},
        {"query": "query A { __typename }", "operationName": ""},
        {"query": "fragment F on Query { __typename }"},
        {"query": "subscription { nodeStatusChanges { __typename } b: nodeStatusChanges {"},
        {"query": 'subscription { nodeStatusChanges(after: "x") { __typename } }'},
        {"query": 'subscription { nodeStatusChanges(after: "999999") { __typename } }'},
        {
            "query": "subscription ($search: String) { nodeStatusChanges(filter: {search: $search})"
            " { __typename } }",
            "variables": {"search": "x" * 256},
        },
    ],
)
async def test_invalid_operation_gets_one_error_and_the_connection_stays_open(
    shared_server: LiveServer, payload: dict[str, Any]
) -> None:
    async with connect(shared_server.websocket_url) as client:
        for _ in range(2):  # after an error the id may be used again
            await client.send({"type": "subscribe", "id": "1", "payload": payload})
            error = await receive_error(client, "1")
            assert error["extensions"]["code"] == "BAD_INPUT"
            assert error["extensions"]["retryable"] is False
            assert not INTERNALS.search(error["message"].replace("Syntax Error", ""))
        await check_is_alive(client)


async def test_revision_in_the_future_is_rejected_and_named(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        await client.subscribe("1", CHANGES, after="3000")
        error = await receive_error(client, "1")
        assert error["extensions"]["field"] == "after"
        await check_is_alive(client)
    assert shared_server.services.change_feed.subscriber_count == 0


@pytest.mark.parametrize(
    "payload", [None, {}, {"a": [1, {"b": None}], "c": "ü🏃"}, {"deep": [[[[[[]]]]]]}]
)
async def test_ping_is_answered_with_its_payload(
    shared_server: LiveServer, payload: dict[str, Any] | None
) -> None:
    async with open_websocket(shared_server.websocket_url) as client:
        ping = {"type": "ping"} if payload is None else {"type": "ping", "payload": payload}
        await client.send(ping)
        assert await client.receive() == {**ping, "type": "pong"}
        await client.send({"type": "connection_init", "payload": payload})
        assert await client.receive() == {"type": "connection_ack"}
        await client.send({"type": "pong", "payload": {"unasked": True}})
        await client.send(ping)
        assert await client.receive() == {**ping, "type": "pong"}
        await check_is_alive(client)


async def test_large_integer_in_a_ping_is_echoed_exactly(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        await client.socket.send(f'{{"type": "ping", "payload": {{"a": {10**30}}}}}')
        assert str(10**30) in str(await client.socket.recv())


@pytest.mark.parametrize(
    ("payload", "problem"),
    [("[" * 400 + "]" * 400, "Messages must be JSON"), ("1e999", "Invalid message: ping.payload")],
)
async def test_ping_that_cannot_be_echoed_closes_the_connection(
    shared_server: LiveServer, payload: str, problem: str
) -> None:
    async with connect(shared_server.websocket_url) as client:
        await client.socket.send(f'{{"type": "ping", "payload": {{"a": {payload}}}}}')
        code, reason = await client.wait_for_close()
    assert code == 4400
    assert reason.startswith(problem)


async def test_operation_before_init_closes_the_connection(
    shared_server: LiveServer,
) -> None:
    async with open_websocket(shared_server.websocket_url) as client:
        await client.subscribe("1", TYPENAME)
        assert await client.wait_for_close() == (4401, "Unauthorized")


async def test_second_init_closes_the_connection(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        await client.send({"type": "connection_init"})
        assert await client.wait_for_close() == (4429, "Too many initialisation requests")


async def run_operation(client: Client, _: LiveServer) -> None:
    await check_is_alive(client)


async def run_failing_operation(client: Client, _: LiveServer) -> None:
    await client.subscribe("fails", DEREGISTER, input={"nodeId": "unknown"})
    [error] = (await client.receive())["payload"]["errors"]
    assert error["extensions"]["code"] == "NODE_NOT_FOUND"
    assert (await client.receive())["type"] == "complete"


async def follow_and_receive(client: Client, _: LiveServer) -> None:
    await client.subscribe("follows", CHANGES, after=0)
    assert (await client.receive())["type"] == "next"


async def disconnect_while_waiting(client: Client, server: LiveServer) -> None:
    """Disconnect while the operation waits for a lock; a sweep only reads, so it does not wait."""
    database, metrics = server.services.database, server.services.metrics.registry
    async with database.write() as session:
        await session.execute(text("LOCK TABLE nodes IN EXCLUSIVE MODE"))
        await client.subscribe("left", DEREGISTER, input={"nodeId": "unknown"})
        await wait_for_lock(database)
        client.socket.transport.abort()
        await wait_until(lambda: metrics.get_sample_value("node_registry_connections") == 0)


@pytest.mark.parametrize("kind", [HttpToolsProtocol, WebSocketsSansIOProtocol, Executor])
@pytest.mark.parametrize(
    "operation",
    [run_operation, run_failing_operation, follow_and_receive, disconnect_while_waiting],
)
async def test_finished_connection_is_freed_without_the_garbage_collector(
    shared_server: LiveServer,
    operation: Callable[[Client, LiveServer], Awaitable[None]],
    kind: type,
) -> None:
    """A garbage collection would stop a process with ten thousand connections for a second."""

    def count_objects() -> int:
        return sum(isinstance(item, kind) for item in gc.get_objects())

    await register(shared_server)  # so that followers have a change to receive
    gc.collect()
    gc.disable()
    try:
        before = count_objects()
        async with connect(shared_server.websocket_url) as client:
            await operation(client, shared_server)
        await wait_until(lambda: count_objects() <= before)
    finally:
        gc.enable()


@pytest.mark.asyncio(loop_scope="function")
async def test_missing_init_closes_the_connection_after_the_timeout(
    start_server: StartServer,
) -> None:
    async with (
        start_server(connection_init_seconds=0.5) as server,
        open_websocket(server.websocket_url) as silent,
        connect(server.websocket_url) as initialised,
    ):
        await silent.send({"type": "ping"})
        assert await silent.receive() == {"type": "pong"}
        assert await silent.wait_for_close() == (4408, "Connection initialisation timeout")
        await check_is_alive(initialised)


@pytest.mark.parametrize(
    "subprotocols",
    [(), ("graphql-ws",), ("graphql-transport-ws2", "chat"), ("GRAPHQL-TRANSPORT-WS",)],
)
async def test_unknown_subprotocol_is_rejected(
    shared_server: LiveServer, subprotocols: tuple[str, ...]
) -> None:
    async with open_websocket(shared_server.websocket_url, subprotocols) as client:
        assert client.socket.subprotocol is None
        assert await client.wait_for_close() == (4406, "Subprotocol not acceptable")


async def test_supported_subprotocol_is_chosen_of_several(shared_server: LiveServer) -> None:
    async with open_websocket(
        shared_server.websocket_url, ("graphql-ws", "graphql-transport-ws")
    ) as client:
        assert client.socket.subprotocol == "graphql-transport-ws"
        await client.send({"type": "connection_init"})
        assert await client.receive() == {"type": "connection_ack"}


async def test_operation_id_in_use_closes_the_connection(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        await follow_changes(client, shared_server, "same")
        await client.subscribe("same", TYPENAME)
        assert await client.wait_for_close() == (4409, "Subscriber for same already exists")
    await wait_until(lambda: shared_server.services.change_feed.subscriber_count == 0)


async def test_close_reason_is_truncated_to_its_limit(shared_server: LiveServer) -> None:
    long = "ü" * 255
    async with connect(shared_server.websocket_url) as client:
        await follow_changes(client, shared_server, long)
        await client.subscribe(long, TYPENAME)
        code, reason = await client.wait_for_close()
    assert code == 4409
    assert len(reason.encode()) <= 123
    assert reason.startswith("Subscriber for üüü")


async def test_operation_id_may_be_used_again_after_completion(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        for _ in range(3):
            await client.subscribe("1", TYPENAME)
            assert await client.receive() == {"type": "next", "id": "1", "payload": ANSWER}
            assert await client.receive() == {"type": "complete", "id": "1"}
        for _ in range(3):
            await follow_changes(client, shared_server, "1")
            await client.send({"type": "complete", "id": "1"})
            await wait_until(lambda: shared_server.services.change_feed.subscriber_count == 0)
        await check_is_alive(client)


async def test_completing_an_unknown_id_changes_nothing(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        await client.send({"type": "complete", "id": "never"})
        await check_is_alive(client)


@pytest.mark.asyncio(loop_scope="function")
async def test_completing_one_subscription_leaves_the_other_on_the_socket(
    server: LiveServer,
) -> None:
    async with connect(server.websocket_url) as client:
        await follow_changes(client, server, "first")
        await follow_changes(client, server, "second")
        await register(server, "a")
        messages = [await client.receive(), await client.receive()]
        assert {message["id"] for message in messages} == {"first", "second"}
        for message in messages:
            event = message["payload"]["data"]["nodeStatusChanges"]
            assert event["change"]["nodeId"] == "a"
        await client.send({"type": "complete", "id": "first"})
        await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
        await register(server, "b")
        message = await client.receive()
        assert message["id"] == "second"
        assert message["payload"]["data"]["nodeStatusChanges"]["change"]["nodeId"] == "b"
        await check_is_alive(client)


async def test_cut_socket_ends_its_subscriptions(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        for i in range(3):
            await follow_changes(client, shared_server, str(i))
        client.socket.transport.abort()
        await wait_until(lambda: shared_server.services.change_feed.subscriber_count == 0)
        with pytest.raises(ConnectionClosed):
            await client.receive()
    assert await shared_server.execute(TYPENAME)


async def test_closed_socket_ends_its_subscriptions(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        await follow_changes(client, shared_server, "1")
    await wait_until(lambda: shared_server.services.change_feed.subscriber_count == 0)


@pytest.mark.asyncio(loop_scope="function")
async def test_operation_over_the_limit_is_rejected_and_others_continue(
    start_server: StartServer,
) -> None:
    async with (
        start_server(max_operations_per_connection=2) as server,
        connect(server.websocket_url) as client,
    ):
        await follow_changes(client, server, "1")
        await follow_changes(client, server, "2")
        await client.subscribe("3", FOLLOW)
        error = await receive_error(client, "3")
        assert error["extensions"]["code"] == "RATE_LIMITED"
        assert error["extensions"]["retryable"] is True
        await client.send({"type": "complete", "id": "1"})
        await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
        await check_is_alive(client)


@pytest.mark.asyncio(loop_scope="function")
async def test_oversized_message_closes_its_connection_only(
    start_server: StartServer,
) -> None:
    async with start_server(max_body_bytes=2048) as server:
        async with connect(server.websocket_url) as client:
            await client.subscribe("1", TYPENAME + " " * 2048)
            code, _ = await client.wait_for_close()
            assert code == 1009
        async with connect(server.websocket_url) as client:
            await check_is_alive(client)


@pytest.mark.asyncio(loop_scope="function")
async def test_internal_error_leaks_nothing_and_the_connection_stays_open(
    server: LiveServer, logged: list[EventDict]
) -> None:
    await wait_until_connected(server)
    async with server.services.database.write() as session:
        await session.execute(text("ALTER TABLE status_changes RENAME COLUMN note TO remark"))
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", "{ statusChanges { nodes { note } } }")
        message = await client.receive()
        assert message["type"] == "next"
        assert message["payload"]["data"] is None
        [query_error] = message["payload"]["errors"]
        assert await client.receive() == {"type": "complete", "id": "1"}
        await client.subscribe("2", CHANGES, after="0")
        stream_error = await receive_error(client, "2")
        await check_is_alive(client)
    failures = [event for event in logged if event["event"] == "request.failed"]
    logged[:] = [event for event in logged if event not in failures]
    assert [failure["operation"] for failure in failures] == ["1", "2"]
    for error, failure in zip([query_error, stream_error], failures, strict=True):
        assert error["extensions"]["code"] == "INTERNAL"
        assert error["extensions"]["requestId"] == failure["request_id"]
        assert not re.search(r"remark|SELECT|does not exist", str(error))


async def test_stalled_reader_is_cut_and_delays_nobody(start_server: StartServer) -> None:
    fields = " ".join(f'n{n}: node(nodeId: "a") {{ metadata }}' for n in range(40))
    async with (
        start_server(stalled_reader_seconds=0.1) as server,
        connect(server.websocket_url) as stalled,
        connect(server.websocket_url) as other,
    ):
        await register(server, "a", metadata={"much": "x" * 60_000})
        await stalled.subscribe("live", CHANGES)
        async with asyncio.timeout(SECONDS):
            await wait_until(lambda: server.services.change_feed.subscriber_count != 0)
            stalled.socket.transport.pause_reading()
            for number in range(10):
                await stalled.subscribe(str(number), f"{{ {fields} }}")
            while server.services.change_feed.subscriber_count:
                await other.subscribe("q", "{ registry { mode } }")
                assert (await other.receive())["type"] == "next"
                assert (await other.receive())["type"] == "complete"
        stalled.socket.transport.abort()


async def test_peer_that_does_not_answer_pings_is_cut(start_server: StartServer) -> None:
    async with (
        start_server(keepalive_seconds=0.1) as server,
        connect(server.websocket_url) as responsive,
        connect(server.websocket_url) as unresponsive,
    ):
        for client in (responsive, unresponsive):
            await client.subscribe("1", CHANGES)
        await wait_until(lambda: server.services.change_feed.subscriber_count == 2)
        unresponsive.socket.transport.pause_reading()
        await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
        await register(server, "a")
        assert (await responsive.receive())["type"] == "next"
        unresponsive.socket.transport.abort()


async def test_connection_over_the_limit_is_rejected_at_the_handshake(
    start_server: StartServer,
) -> None:
    async with start_server(max_connections=1) as server, connect(server.websocket_url) as first:
        with pytest.raises(InvalidStatus) as rejection:
            async with open_websocket(server.websocket_url):
                pass
        response = rejection.value.response
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert b"RATE_LIMITED" in (response.body or b"")
        await check_is_alive(first)
    assert server.services.metrics.registry.get_sample_value("node_registry_connections") in {
        0,
        None,
    }


async def test_subscriptions_are_limited_per_caller_over_all_connections(
    start_server: StartServer,
) -> None:
    async with (
        start_server(max_subscriptions_per_caller=2) as server,
        connect(server.websocket_url) as first,
        connect(server.websocket_url) as second,
    ):
        await follow_changes(first, server, "1")
        await follow_changes(second, server, "1")
        await second.subscribe("2", CHANGES)
        assert (await receive_error(second, "2"))["extensions"]["code"] == "RATE_LIMITED"
        await check_is_alive(second)
        await first.send({"id": "1", "type": "complete"})
        await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
        await follow_changes(second, server, "2")


async def test_stopping_server_closes_its_connections_gradually(
    start_server: StartServer,
) -> None:
    async with AsyncExitStack() as stack:
        async with start_server(drain_seconds=0.5) as server:
            clients = [
                await stack.enter_async_context(connect(server.websocket_url)) for _ in range(20)
            ]
            clock = asyncio.get_running_loop().time

            async def wait_for_close(client: Client) -> tuple[int, float]:
                code, _ = await client.wait_for_close()
                return code, clock()

            ends = asyncio.gather(*(wait_for_close(client) for client in clients))
        codes, times = zip(*await ends, strict=True)
    assert set(codes) == {1012}
    assert max(times) - min(times) > 0.1
