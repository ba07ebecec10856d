"""The field extension that records rejected mutations in the audit log."""

from collections.abc import Mapping
from typing import Any

from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver

from db.core.errors import RegistryError, Unavailable
from db.core.token_format import redact_tokens
from graph.api.context import Info
from graph.core.visible_text import replace_invisible
from graph.live.rejection_log import Attempt

_ENUMS = {"role", "type"}
_MAX_LENGTH = 255


class AuditedField(FieldExtension):
    """An extension that records each rejection of the mutation it is attached to.

    All mutations except heartbeats have it. The statements of a mutation record its success
    themselves. `subject` names the input fields that identify what the mutation acts on. An outage
    of the database is not recorded, because it rejects nothing.
    """

    def __init__(self, action: str, *subject: str) -> None:
        self.action, self.subject = action, subject

    async def resolve_async(
        self, next_: AsyncExtensionResolver, source: Any, info: Info, **arguments: Any
    ) -> Any:
        try:
            return await next_(source, info, **arguments)
        except Unavailable:
            raise
        except RegistryError as error:
            values = {name: getattr(arguments["input"], name) for name in self.subject}
            context = info.context
            attempt = self.describe_attempt(values)
            await context.services.rejections.record(context.caller, error.code, [attempt])
            raise

    def describe_attempt(self, values: Mapping[str, object]) -> Attempt:
        """Return the attempt on the subject with these values, in the order of `subject`."""
        return Attempt(self.action, "/".join(map(_format_part, values, values.values())))


def _format_part(field: str, value: object) -> str:
    if not isinstance(value, str):
        return ""
    text = value.lower() if field in _ENUMS else value
    # A caller that revokes a token may have sent its whole secret instead of its id.
    return replace_invisible(redact_tokens(text))[:_MAX_LENGTH]
