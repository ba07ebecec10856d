"""The schema of profile configs by profile type: known keys are checked, other keys are accepted.

Every key may be absent or null: a node's own profile is a patch (RFC 7396) of its role's profile,
and null removes a key. `node-registry profile schema` prints the same rules as JSON Schema.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from db.core.enums import ProfileType
from db.core.errors import BadInput
from db.registry.profiles import ProfileContent
from graph.core import validation

Name = Annotated[str, Field(min_length=1, max_length=255)]
Endpoint = Annotated[
    str, Field(pattern=r"^https?://\S+$", max_length=2000, description="An http or https URL.")
]
Count = Annotated[int, Field(ge=0)]


class _Config(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class LlmConfig(_Config):
    """A language model and how to reach it."""

    model: Name | None = None
    provider: Name | None = Field(None, description="The server of the model, e.g. ollama or vllm.")
    endpoint: Endpoint | None = None
    quantization: Name | None = None
    context_tokens: Count | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    system_prompt: str | None = None


class ServiceConfig(_Config):
    """A service that the node runs."""

    endpoint: Endpoint | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    protocol: Name | None = Field(None, description="E.g. http, grpc or nats.")
    health_path: Annotated[str, Field(pattern=r"^/\S*$")] | None = None
    replicas: Count | None = None
    environment: dict[str, str | None] | None = None


class CapabilityConfig(_Config):
    """Any other capability of the node."""

    version: Name | None = None
    requires: list[Name] | None = Field(None, description="Names of other profiles.")
    limits: dict[str, float | None] | None = Field(
        None, description="Limits by name, e.g. max_jobs."
    )


CONFIG_MODELS: Mapping[ProfileType, type[BaseModel]] = {
    ProfileType.LLM: LlmConfig,
    ProfileType.SERVICE: ServiceConfig,
    ProfileType.CAPABILITY: CapabilityConfig,
}


def parse_content(
    path: str, name: str, profile_type: ProfileType, config: object, *, enabled: bool
) -> ProfileContent:
    """Return the checked content of a profile.

    Raises: BadInput: a value is wrong; `field` is its path, which begins with `path`.
    """
    document = validation.check_document(f"{path}.config", config)
    return ProfileContent(
        name=validation.check_name(f"{path}.name", name),
        type=profile_type,
        config=check_config(f"{path}.config", profile_type, document),
        enabled=enabled,
    )


def check_config(
    field: str, profile_type: ProfileType, config: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the config unchanged.

    Raises: BadInput: a value is wrong; `field` is the path of the first one.
    """
    try:
        CONFIG_MODELS[profile_type].model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
        )
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise BadInput(f"{field}{path}", problem) from error
    return config
