"""The roles and types of nodes, and the words for them in the settings."""

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
    """None if the word is a role alone."""

    @property
    def word(self) -> str:
        return "-".join(part.lower() for part in self if part)


def parse_role(word: str) -> RoleAndType:
    """Return the role and type of a word such as `production` or `production-router`, in any case.

    Raises: ValueError: the word is not allowed; the message names the allowed ones.
    """
    role, dash, node_type = word.strip().partition("-")
    try:
        return RoleAndType(NodeRole(role.upper()), NodeType(node_type.upper()) if dash else None)
    except ValueError:
        raise ValueError(
            f"expected {_join_words(NodeRole)}, alone or with {_join_words(NodeType)}"
            " after a dash, as in production-router"
        ) from None


def parse_type(word: str) -> NodeType:
    """Return the type of a word such as `router`, in any case.

    Raises: ValueError: the word is not allowed; the message names the allowed ones.
    """
    try:
        return NodeType(word.strip().upper())
    except ValueError:
        raise ValueError(f"expected {_join_words(NodeType)}") from None


def _join_words(words: type[StrEnum]) -> str:
    *most, last = (word.value.lower() for word in words)
    return f"{', '.join(most)} or {last}"
