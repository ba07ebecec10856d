"""The channel on which processes send one another the rates they count; nothing is stored."""

from collections.abc import Sequence

from sqlalchemy import Text, func, select
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.ext.asyncio import AsyncSession

CHANNEL = "node_registry_rates"
MAX_PAYLOAD_BYTES = 7500
"""Size limit of one payload: PostgreSQL takes less than 8,000 bytes."""


async def send_rates(session: AsyncSession, payloads: Sequence[str]) -> None:
    """Send the payloads to all processes that listen, this one included, at the commit."""
    payload = func.unnest(array(payloads, type_=ARRAY(Text))).column_valued("payload")
    await session.execute(select(func.pg_notify(CHANNEL, payload)))
