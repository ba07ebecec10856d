"""The roles and types a node may have, and the words people write for them."""

from enum import StrEnum
from typing import NamedTuple


class NodeRole(StrEnum):
    PRODUCTION = "PRODUCTION"
    DEVELOPMENT = "DEVELOPMENT"
    BACKUP = "BACKUP"


class NodeType(StrEnum):
    ROUTER = "ROUTER"
    GATEWAY = "GATEWAY"
    WORKER = "WORKER"


class RoleAndType(NamedTuple):
    role: NodeRole
    type: NodeType | None
    """None: the word names a role alone."""

    @property
    def word(self) -> str:
        return "-".join(part.lower() for part in self if part)


def parse_role(word: str) -> RoleAndType:
    """Reads `production` and `production-router`, in any case.

    Raises ValueError with a sentence that names what is allowed.
    """
    role, dash, node_type = word.strip().partition("-")
    try:
        return RoleAndType(NodeRole(role.upper()), NodeType(node_type.upper()) if dash else None)
    except ValueError:
        raise ValueError(
            f"write {_join_words(NodeRole)}, alone or with {_join_words(NodeType)}"
            " behind a dash, as in production-router"
        ) from None


def parse_type(word: str) -> NodeType:
    """Raises ValueError with a sentence that names what is allowed."""
    try:
        return NodeType(word.strip().upper())
    except ValueError:
        raise ValueError(f"write {_join_words(NodeType)}") from None


def _join_words(words: type[StrEnum]) -> str:
    *most, last = (word.value.lower() for word in words)
    return f"{', '.join(most)} or {last}"
