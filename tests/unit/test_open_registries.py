"""The settings with which a registry may serve without authentication."""

from typing import Any

import pytest

from graph.core.settings import ConfigurationError, load_settings
from graph.server.listener import require_safe_access


@pytest.mark.parametrize(
    ("arguments", "required"),
    [
        ({}, False),
        ({"http_host": "localhost"}, False),
        ({"http_host": "::1"}, False),
        ({"http_host": "0.0.0.0"}, True),  # noqa: S104  # the setting under test
        ({"env": "production"}, True),
        ({"auth": "required"}, True),
        ({"env": "production", "auth": "off"}, False),
    ],
)
def test_authentication_is_required_except_in_development_on_loopback(
    arguments: dict[str, Any],
    required: bool,  # noqa: FBT001  # a row of the table
) -> None:
    assert load_settings(**arguments).is_authentication_required is required


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"env": "production", "auth": "off"}, "production requires authentication"),
        (
            {"env": "production", "auth": "off", "let_anyone_do_anything": True},
            "production requires authentication",
        ),
        ({"http_host": "0.0.0.0", "auth": "off"}, "LET_ANYONE_DO_ANYTHING"),  # noqa: S104
    ],
)
def test_a_registry_open_to_all_does_not_start(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        require_safe_access(load_settings(**arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"http_host": "0.0.0.0"},  # noqa: S104
        {"http_host": "0.0.0.0", "auth": "off", "let_anyone_do_anything": True},  # noqa: S104
        {"env": "production"},
    ],
)
def test_a_registry_with_safe_or_explicitly_allowed_access_starts(
    arguments: dict[str, Any],
) -> None:
    require_safe_access(load_settings(**arguments))
