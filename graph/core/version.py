"""The name and version of this program, and the time at which it started."""

from datetime import UTC, datetime
from importlib.metadata import version

SERVICE_NAME = "node-registry"
VERSION = version("dagi-node-registry")
STARTED_AT = datetime.now(UTC)
