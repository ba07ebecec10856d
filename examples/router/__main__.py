"""The command `python -m examples.router [REGISTRY_URL]`: a router on http://127.0.0.1:9206."""

import os
import sys

import uvicorn

from examples.router.app import build_app

PORT = int(os.environ.get("ROUTER_PORT", "9206"))


def main() -> None:
    registry_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:9205"
    uvicorn.run(build_app(registry_url), host="127.0.0.1", port=PORT)


if __name__ == "__main__":
    main()
