"""What processes tell one another of the rates that they count; nothing of it is kept."""

from collections.abc import Sequence

from sqlalchemy import Text, func, select
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.ext.asyncio import AsyncSession

CHANNEL = "node_registry_rates"
MAX_PAYLOAD_BYTES = 7500
"""Of one payload: PostgreSQL takes less than 8,000."""


async def send_rates(session: AsyncSession, payloads: Sequence[str]) -> None:
    """All processes that listen, this one included."""
    each = func.unnest(array(payloads, type_=ARRAY(Text))).column_valued("payload")
    await session.execute(select(func.pg_notify(CHANNEL, each)))
