"""The statements that a migration must not use while the previous version runs."""

import re

INCOMPATIBLE = {
    "what is dropped, the version before still uses": (
        r"\bDROP\s+(TABLE|COLUMN|FUNCTION|PROCEDURE|SEQUENCE|VIEW)\b"
    ),
    "what is renamed, the version before calls by its old name": r"\bRENAME\b",
    "the version before writes another type": r"\bALTER\s+(COLUMN\s+)?\w+\s+(SET\s+DATA\s+)?TYPE\b",
    "the version before may leave it out": r"\bSET\s+NOT\s+NULL\b",
    "the version before knows no column without a default": (
        r"\bADD\s+COLUMN\s+(IF\s+NOT\s+EXISTS\s+)?\w+(?!.*\bDEFAULT\b)[^,;]*\bNOT\s+NULL\b"
    ),
    "it takes a default that the version before relies on": r"\bDROP\s+DEFAULT\b",
    "it takes rights that the version before needs": r"\bREVOKE\b(?!.*\bFROM\s+PUBLIC\b)",
    "the version before may write what it refuses": (
        r"\bADD\s+(CONSTRAINT\s+\w+\s+)?(CHECK|UNIQUE|FOREIGN|EXCLUDE)\b|\bCREATE\s+UNIQUE\s+INDEX\b"
    ),
    "it locks a table that heartbeats write for as long as it is built": (
        r"\bCREATE\s+INDEX\s+(?!CONCURRENTLY)\w+\s+ON\s+(ONLY\s+)?(nodes|heartbeat_log)\b"
    ),
}


def find_incompatibilities(sql: str) -> list[str]:
    """Why the version before could not work, or would have to wait, beside this statement."""
    flat = " ".join(sql.split())
    return [why for why, pattern in INCOMPATIBLE.items() if re.search(pattern, flat, re.IGNORECASE)]
