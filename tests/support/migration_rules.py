"""The statements that a migration must not use while the previous version runs."""

import re

INCOMPATIBLE = {
    "the previous version still uses what is dropped": (
        r"\bDROP\s+(TABLE|COLUMN|FUNCTION|PROCEDURE|SEQUENCE|VIEW)\b"
    ),
    "the previous version uses the old name": r"\bRENAME\b",
    "the previous version writes another type": (
        r"\bALTER\s+(COLUMN\s+)?\w+\s+(SET\s+DATA\s+)?TYPE\b"
    ),
    "the previous version may omit the value": r"\bSET\s+NOT\s+NULL\b",
    "the previous version does not write the new column, which has no default": (
        r"\bADD\s+COLUMN\s+(IF\s+NOT\s+EXISTS\s+)?\w+(?!.*\bDEFAULT\b)[^,;]*\bNOT\s+NULL\b"
    ),
    "the previous version relies on the default": r"\bDROP\s+DEFAULT\b",
    "the previous version needs the privileges": r"\bREVOKE\b(?!.*\bFROM\s+PUBLIC\b)",
    "the previous version may write rows that the constraint rejects": (
        r"\bADD\s+(CONSTRAINT\s+\w+\s+)?(CHECK|UNIQUE|FOREIGN|EXCLUDE)\b|\bCREATE\s+UNIQUE\s+INDEX\b"
    ),
    "building the index locks a table that heartbeats write": (
        r"\bCREATE\s+INDEX\s+(?!CONCURRENTLY)\w+\s+ON\s+(ONLY\s+)?(nodes|heartbeat_log)\b"
    ),
}


def find_incompatibilities(sql: str) -> list[str]:
    """Return why the previous version would fail or wait while this statement is executed."""
    line = " ".join(sql.split())
    return [
        reason
        for reason, pattern in INCOMPATIBLE.items()
        if re.search(pattern, line, re.IGNORECASE)
    ]
