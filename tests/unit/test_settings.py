"""Settings from the file that NODE_REGISTRY_SETTINGS_FILE names."""

from pathlib import Path

import pytest

from graph.core.settings import ConfigurationError, load_settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "settings.env"
    monkeypatch.setenv("NODE_REGISTRY_SETTINGS_FILE", str(file))
    return file


def test_settings_are_read_from_the_file(file: Path) -> None:
    file.write_text(
        "# As init-database writes it\n"
        "NODE_REGISTRY_DB_NAME='registry 1'\n"
        "NODE_REGISTRY_DB_PASSWORD=a-b_c\n"
        """NODE_REGISTRY_ALLOWED_ORIGINS='["https://dashboard.example"]'\n"""
    )
    settings = load_settings()
    assert (settings.db_name, settings.db_password) == ("registry 1", "a-b_c")
    assert settings.allowed_origins == ["https://dashboard.example"]


def test_environment_overrides_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("NODE_REGISTRY_DB_NAME=a\nNODE_REGISTRY_DB_USER=a\n")
    monkeypatch.setenv("NODE_REGISTRY_DB_NAME", "b")
    settings = load_settings()
    assert (settings.db_name, settings.db_user) == ("b", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NODE_REGISTRY_HTTP_PORT=high", "NODE_REGISTRY_HTTP_PORT: "),
        ("NODE_REGISTRY_HTTP_PROT=9205", "there is no setting NODE_REGISTRY_HTTP_PROT"),
    ],
)
def test_mistake_in_the_file_is_reported_with_its_setting(
    file: Path, text: str, message: str
) -> None:
    file.write_text(f"{text}\n")
    with pytest.raises(ConfigurationError, match=message):
        load_settings()


def test_missing_file_is_an_error(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"SETTINGS_FILE: there is no file {file}"):
        load_settings()
