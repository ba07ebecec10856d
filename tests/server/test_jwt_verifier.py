"""A server knows whom another issuer vouches for."""

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


async def test_a_server_knows_whom_the_issuer_vouches_for_until_the_token_ends(
    start_server: StartServer, jwks_file: Path
) -> None:
    told = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_roles": ROLES}
    async with start_server(
        auth="required",
        jwt_jwks=str(jwks_file),
        key_check_seconds=0.05,
        jwt_leeway_seconds=0,
        **told,
    ) as server:

        async def status(token: str) -> int:
            response = await server.http.post(
                "/graphql",
                json={"query": "{ registry { revision } }"},
                headers={"authorization": f"Bearer {token}"},
            )
            return response.status_code

        assert await status(sign()) == 200
        assert await status(sign(aud="elsewhere")) == 401
        assert await status(sign(roles=["nobody"])) == 403
        brief = sign(exp=int(time.time()) + 2)
        assert await status(brief) == 200
        async with asyncio.timeout(10):
            while await status(brief) != 401:
                await asyncio.sleep(0.1)
