"""The detection of SQL that migrations must not execute."""

import pytest

from tests.support.migration_rules import find_incompatibilities


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE tokens",
        "ALTER TABLE nodes DROP COLUMN hostname",
        "DROP FUNCTION registry_now()",
        "ALTER TABLE nodes RENAME COLUMN last_heartbeat TO last_heartbeat_before",
        "ALTER TABLE nodes ALTER COLUMN hostname TYPE varchar(20)",
        "ALTER TABLE nodes ALTER hostname SET NOT NULL",
        "ALTER TABLE nodes ADD COLUMN rack int, ADD COLUMN shelf text NOT NULL",
        "ALTER TABLE nodes ALTER labels DROP DEFAULT",
        "REVOKE UPDATE ON nodes FROM node_registry",
        "ALTER TABLE nodes ADD CONSTRAINT named CHECK (hostname <> '')",
        "CREATE UNIQUE INDEX nodes_hostname_key ON nodes (hostname)",
        "CREATE INDEX nodes_hostname_idx\n  ON nodes (hostname)",
    ],
)
def test_sql_that_breaks_the_previous_version_is_found(sql: str) -> None:
    assert len(find_incompatibilities(sql)) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE racks (name text NOT NULL UNIQUE)",
        "ALTER TABLE nodes ADD COLUMN rack text",
        "ALTER TABLE nodes ADD COLUMN rack text NOT NULL DEFAULT ''",
        "CREATE INDEX CONCURRENTLY nodes_hostname_idx ON nodes (hostname)",
        "REVOKE ALL ON FUNCTION trim_racks() FROM PUBLIC",
    ],
)
def test_sql_that_the_previous_version_tolerates_is_allowed(sql: str) -> None:
    assert find_incompatibilities(sql) == []
