# syntax=docker/dockerfile:1
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /build && python -m venv /opt/node-registry
# The dependencies come first: they change rarely, so this layer stays in the build cache.
COPY requirements/ requirements/
RUN /build/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.lock \
 && /opt/node-registry/bin/pip install --no-cache-dir --require-hashes --requirement requirements/server.lock
COPY pyproject.toml README.md ./
COPY agent/ agent/
COPY db/ db/
COPY graph/ graph/
COPY migrations/ migrations/
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist . \
 && /opt/node-registry/bin/pip install --no-cache-dir --no-deps /dist/*.whl \
 && /opt/node-registry/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim
# A new volume mounted here starts with this owner and mode: database access, and tokens.
RUN useradd --system --user-group --no-create-home --shell /usr/sbin/nologin noderegistry \
 && install --directory --owner=noderegistry --mode=0700 /var/lib/node-registry \
 && install --directory --owner=noderegistry --mode=0755 /keys
COPY --from=build /opt/node-registry /opt/node-registry
ENV PATH=/opt/node-registry/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NODE_REGISTRY_ENV=production \
    NODE_REGISTRY_HTTP_HOST=0.0.0.0
USER noderegistry
EXPOSE 9205
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"NODE_REGISTRY_HTTP_PORT\", 9205)}/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["node-registry"]
CMD ["serve"]
