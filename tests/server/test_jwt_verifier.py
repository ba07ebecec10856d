"""A server that accepts the JWTs of another issuer."""

import asyncio
import time
from pathlib import Path

from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    ROLES,
    sign,
)
from tests.support.live_server import StartServer


async def test_jwt_of_the_configured_issuer_is_accepted_until_it_expires(
    start_server: StartServer, jwks_file: Path
) -> None:
    jwt_settings = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_roles": ROLES}
    async with start_server(
        auth="required",
        jwt_jwks=str(jwks_file),
        key_check_seconds=0.05,
        jwt_leeway_seconds=0,
        **jwt_settings,
    ) as server:

        async def send_query(token: str) -> int:
            response = await server.http.post(
                "/graphql",
                json={"query": "{ registry { revision } }"},
                headers={"authorization": f"Bearer {token}"},
            )
            return response.status_code

        assert await send_query(sign()) == 200
        assert await send_query(sign(aud="elsewhere")) == 401
        assert await send_query(sign(roles=["nobody"])) == 403
        short_lived = sign(exp=int(time.time()) + 2)
        assert await send_query(short_lived) == 200
        async with asyncio.timeout(10):
            while await send_query(short_lived) != 401:
                await asyncio.sleep(0.1)
