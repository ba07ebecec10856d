"""The pages of the registry other than GraphQL: index, health and metrics."""

import re

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from agent import documents as agent
from agent.trusted_documents import get_text
from db.core.restart_limit import RestartLimit
from tests.support.api import beat, register, wait_for_revision
from tests.support.live_server import LiveServer, StartServer
from tests.support.waiting import wait_until


async def test_index_lists_the_service_and_its_links(server: LiveServer) -> None:
    response = await server.http.get("/")
    assert response.json() == {
        "service": "node-registry",
        "version": "0.1.0",
        "links": {
            "dashboard": "/dashboard",
            "graphql": "/graphql",
            "graphiql": "/graphql",
            "health": "/health",
            "metrics": "/metrics",
        },
    }


async def test_browser_gets_a_page_without_external_links(server: LiveServer) -> None:
    response = await server.http.get("/", headers={"accept": "text/html,*/*"})
    assert response.headers["content-type"].startswith("text/html")
    assert "0.1.0" in response.text
    assert not re.search(r"https?://", response.text)


async def test_health_reports_status_uptime_and_database(server: LiveServer) -> None:
    response = await server.http.get("/health")
    assert response.status_code == 200
    health = response.json()
    assert health["status"] == "healthy"
    assert health["service"] == "node-registry"
    assert health["environment"] == "development"
    assert health["uptime_seconds"] > 0
    assert health["database"]["connected"] is True
    assert health["database"]["database"].startswith("node_registry_test_")


async def test_health_is_503_while_the_database_is_unavailable_and_200_afterwards(
    server: LiveServer, postgres: URL, database_url: URL
) -> None:
    engine = create_async_engine(postgres, isolation_level="AUTOCOMMIT")
    name = database_url.database

    async def allow_connections(allowed: str) -> None:
        async with engine.connect() as connection:
            await connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}"))
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :n"),
                {"n": name},
            )

    await allow_connections("false")
    response = await server.http.get("/health")
    assert response.status_code == 503
    assert response.json()["status"] == "unhealthy"
    assert response.json()["database"]["connected"] is False
    body = await server.post("{ registry { revision } }")
    assert body["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
    assert body["errors"][0]["extensions"]["retryable"] is True
    assert (await server.http.get("/health/live")).status_code == 200
    metrics = (await server.http.get("/metrics")).text.splitlines()
    assert "node_registry_database_up 0.0" in metrics
    assert "node_registry_log_revision NaN" in metrics
    assert not [line for line in metrics if line.startswith("node_registry_nodes{")]
    await allow_connections("true")
    await engine.dispose()
    assert (await server.http.get("/health")).status_code == 200


async def test_failed_background_task_makes_health_unhealthy(server: LiveServer) -> None:
    async def fail() -> None:
        raise RuntimeError("as a test")

    server.services.background_tasks.make_limit = lambda: RestartLimit(max_short_runs=1)
    server.services.background_tasks.start("doomed", fail)
    await wait_until(lambda: server.services.background_tasks.failed)
    response = await server.http.get("/health")
    assert response.status_code == 503
    assert response.json()["failed_tasks"] == ["doomed"]


async def test_metrics_count_nodes_heartbeats_operations_and_subscribers(
    start_server: StartServer,
) -> None:
    async with start_server(sweep_interval_seconds=3600) as server:
        await register(server, "a")
        await beat(server, "a", 1)
        await server.post("query Broken { nothing }")
        await wait_for_revision(server, 3)
        metrics = (await server.http.get("/metrics")).text
    labels = '{operation="other",outcome="ok",type="mutation"}'
    for line in (
        'node_registry_nodes{status="online"} 1.0',
        'node_registry_nodes{status="offline"} 2.0',
        'node_registry_heartbeats_total{outcome="accepted"} 1.0',
        f"node_registry_operation_duration_seconds_count{labels} 2.0",
        'node_registry_subscribers{stream="status_changes"} 0.0',
        "node_registry_revision 3.0",
        "node_registry_pool_connections 0.0",
        "node_registry_connections 0.0",
    ):
        assert line in metrics.splitlines()


async def test_unknown_operation_names_are_counted_as_other(server: LiveServer) -> None:
    await server.execute(get_text(agent.REVISION))
    for number in range(30):
        await server.execute(f"query Name{number} {{ __typename }}")
        await server.post(f"query Revision {{ nothing{number} }}")
        await server.post(f'query Revision {{ node(nodeId: "{number}") {{ nodeId }} }}')
    metrics = (await server.http.get("/metrics")).text
    names = re.findall(r'_count\{operation="(\w+)",outcome="(\w+)",type="(\w+)"\} (\d+)', metrics)
    assert sorted(names) == [("Revision", "ok", "query", "1"), ("other", "ok", "query", "60")]
