"""The services, networks and secrets of deploy/compose.yaml."""

import re
from typing import Any

import pytest
import yaml

from graph.core.settings import ENV_PREFIX, Settings
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT_SERVICES = {"database", "metrics-key"}

every_service = pytest.mark.parametrize("name", SERVICES)


@every_service
def test_image_has_a_fixed_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.search(
        r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$|:\$\{NODE_REGISTRY_VERSION:-\d+\.\d+\.\d+\}$", image
    )


def test_database_is_postgresql_18() -> None:
    assert SERVICES["db"]["image"].startswith("postgres:18.")


@every_service
def test_service_has_a_health_check_and_resource_limits(name: str) -> None:
    service = SERVICES[name]
    assert {"mem_limit", "cpus", "pids_limit", "restart"} <= service.keys()
    assert "no-new-privileges:true" in service["security_opt"]
    if name in ONE_SHOT_SERVICES:
        assert service["healthcheck"] == {"disable": True}
        assert service["restart"].startswith("on-failure:")
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


def test_only_the_port_of_the_registry_is_published_on_an_internal_address() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"registry": ["${NODE_REGISTRY_ADDRESS:-127.0.0.1}:9205:9205"]}
    assert "network_mode" not in {key for service in SERVICES.values() for key in service}


def test_services_other_than_the_registry_are_on_internal_networks() -> None:
    internal = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
    for name, service in SERVICES.items():
        assert service["networks"], name
        assert name == "registry" or set(service["networks"]) <= internal


@every_service
def test_environment_contains_no_secret(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY|SETTINGS", variable):
            assert variable.endswith("_FILE")
            assert value.startswith(("/run/secrets/", "/var/lib/node-registry/"))


def test_secrets_are_files_that_are_not_committed() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", ())}
    assert used == set(COMPOSE["secrets"])
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    assert "deploy/secrets/" in (DEPLOY.parent / ".gitignore").read_text().splitlines()


@every_service
def test_dependencies_and_volumes_exist(name: str) -> None:
    service = SERVICES[name]
    for other, condition in service.get("depends_on", {}).items():
        expected = (
            "service_completed_successfully" if other in ONE_SHOT_SERVICES else "service_healthy"
        )
        assert condition == {"condition": expected}
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert (
            (DEPLOY / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
        )


def test_environment_of_the_registry_contains_only_its_settings() -> None:
    for name in ("database", "metrics-key", "registry"):
        for variable in SERVICES[name]["environment"]:
            assert variable.removeprefix(ENV_PREFIX).lower() in {
                *Settings.model_fields,
                "settings_file",
            }
