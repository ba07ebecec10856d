"""The token that the agent sends to the registry: its node token, else the configured one.

A registration with an enrolment token brings the node token, which is rotated before it expires.
It is kept in `node_key.json` in the directory of the node id, readable only by its owner.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gql import GraphQLRequest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.alias_generators import to_camel

from agent.identity import StateError, read_text, write_atomically
from agent.replies import ReplyT
from agent.settings import Token
from agent.transport import RegistryTransport

CREDENTIAL_FILE = "node_key.json"
# The share of a token's life after which it is rotated. The rest is left for failed attempts, and
# nodes that enrolled together do not rotate together.
ROTATE_FROM, ROTATE_BY = 0.60, 0.73
MAX_RETRY_SECONDS = 3600.0


class NodeToken(BaseModel):
    """A node token and its life. Its times are the registry's: this machine's clock may be wrong.

    `obtained_at` is None until the first heartbeat brings the registry's time; `expires_at` is
    None for a token that never expires.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    token: Token = Field(alias="key")
    obtained_at: AwareDatetime | None
    expires_at: AwareDatetime | None


def read_node_token(directory: Path) -> NodeToken | None:
    """Return the node token in the directory, None if there is none.

    Raises: StateError: the file is damaged or cannot be read.
    """
    text = read_text(directory / CREDENTIAL_FILE)
    if text is None:
        return None
    try:
        return NodeToken.model_validate_json(text)
    except ValidationError:
        problem = "is damaged; revoke the node's token and delete the file to enrol again"
        raise StateError(directory / CREDENTIAL_FILE, problem) from None


def save_node_token(directory: Path, node_token: NodeToken) -> None:
    document = node_token.model_dump(mode="json", by_alias=True)
    document["key"] = node_token.token.get_secret_value()
    write_atomically(directory / CREDENTIAL_FILE, json.dumps(document) + "\n", mode=0o600)


class Credentials:
    """The tokens of one agent, and which of them it uses.

    Raises: StateError: the file of the node token is damaged or cannot be read.
    """

    def __init__(
        self,
        directory: Path,
        token: SecretStr | None,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._directory = directory
        self._configured_token = token
        self._uniform = uniform
        self._node_token = read_node_token(directory)
        self._uses_node_token = self._node_token is not None
        self._rotation_share = uniform(ROTATE_FROM, ROTATE_BY)
        self._failures = 0
        self._not_before: datetime | None = None

    @property
    def bearer(self) -> str | None:
        token = self._configured_token
        if self._node_token and self._uses_node_token:
            token = self._node_token.token
        return token.get_secret_value() if token else None

    @property
    def has_fallback(self) -> bool:
        return self._node_token is not None and self._configured_token is not None

    def use_node_token(self) -> None:
        self._uses_node_token = self._node_token is not None

    def use_configured_token(self) -> bool:
        """Switch to the configured token; return False if there is none or it is in use already."""
        if not self.has_fallback or not self._uses_node_token:
            return False
        self._uses_node_token = False
        return True

    def save_node_token(
        self, token: SecretStr, expires_at: datetime | None, obtained_at: datetime | None = None
    ) -> None:
        """Write the node token to disk, then use it instead of the former token.

        Raises: StateError: the file cannot be written; the former token stays in use.
        """
        node_token = NodeToken(token=token, obtained_at=obtained_at, expires_at=expires_at)
        save_node_token(self._directory, node_token)
        self._node_token, self._uses_node_token = node_token, True
        self._failures, self._not_before = 0, None

    def update_expiry(self, expires_at: datetime | None) -> None:
        """Set when the token in use expires.

        The registry brings this forward when a rotation has begun.
        """
        if self._node_token and self._uses_node_token:
            self._node_token = self._node_token.model_copy(update={"expires_at": expires_at})

    def is_rotation_due(self, now: datetime) -> bool:
        """Return whether the node token is in use and has to be rotated.

        `now` is the registry's time, from the reply to a heartbeat. For a token without
        `obtained_at` it is saved as that.
        """
        node_token = self._node_token
        if node_token is None or not self._uses_node_token or node_token.expires_at is None:
            return False  # a configured token may be shared, so whoever configured it rotates it
        if node_token.obtained_at is None:
            self._node_token = node_token.model_copy(update={"obtained_at": now})
            with suppress(StateError):  # if it cannot be saved, the next start counts from then
                save_node_token(self._directory, self._node_token)
        obtained_at = node_token.obtained_at or now
        return now >= (
            self._not_before
            or obtained_at + self._rotation_share * (node_token.expires_at - obtained_at)
        )

    def postpone_rotation(self, now: datetime, at_least_seconds: float) -> float:
        """Postpone the rotation after a failure and return by how many seconds.

        The delay grows with each failure, to at most an hour or a tenth of the time left.
        """
        self._failures += 1
        ceiling = min(2.0 ** min(self._failures, 30), MAX_RETRY_SECONDS)
        if self._node_token and self._node_token.expires_at:
            left_seconds = (self._node_token.expires_at - now).total_seconds()
            ceiling = min(ceiling, max(left_seconds / 10, 1.0))
        seconds = max(at_least_seconds, self._uniform(ceiling / 2, ceiling))
        self._not_before = now + timedelta(seconds=seconds)
        return seconds


class AuthenticatedTransport:
    """A transport that reconnects when the credentials switch to another token.

    It carries one request at a time. `connect` opens a transport with the given token.
    """

    def __init__(
        self, credentials: Credentials, connect: Callable[[str | None], RegistryTransport]
    ) -> None:
        self._credentials = credentials
        self._connect = connect
        self._bearer = credentials.bearer
        self._transport = connect(self._bearer)

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply_type: type[ReplyT]
    ) -> ReplyT:
        """Send the document as `RegistryTransport.execute` does."""
        if self._bearer != (bearer := self._credentials.bearer):
            await self._transport.aclose()
            self._transport, self._bearer = self._connect(bearer), bearer
        return await self._transport.execute(document, variables, reply_type)

    async def aclose(self) -> None:
        await self._transport.aclose()
