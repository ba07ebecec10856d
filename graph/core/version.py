"""Which program this is, and since when it runs."""

from datetime import UTC, datetime
from importlib.metadata import version

SERVICE_NAME = "node-registry"
VERSION = version("dagi-node-registry")
STARTED_AT = datetime.now(UTC)
