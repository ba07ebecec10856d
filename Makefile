# `make run` starts the registry, `make test` passes the tests; both need Python 3.11 or newer and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
NPM := $(shell command -v npm)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate --strip-extras --extra server

.PHONY: run router test test-unit check bench fleet soak format schema documents units lock clean
.DELETE_ON_ERROR:

run: .venv/run
	@NODE_REGISTRY_DEV_AGENT=$${NODE_REGISTRY_DEV_AGENT:-true} exec $(BIN)/node-registry serve

# The example of a router, beside `make run`, on http://127.0.0.1:9206.
router: .venv/run
	@exec $(BIN)/python -m examples.router

# Some machines forbid Python to keep what it compiles; the tests start it a hundred times. They wait for
# a third of their time: three at once keep two cores busy. In the order of their names the longest
# modules, which have few tests, do not all come last.
test: .venv/dev
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# The tests that need no PostgreSQL: an answer within seconds.
test-unit: .venv/dev
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest tests/unit --numprocesses 3 --dist worksteal

# Lints, types and architecture; the types of the dashboard's JavaScript where npm is installed.
check: .venv/dev $(if $(NPM),node_modules/.package-lock.json)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(if $(NPM),node_modules/.bin/tsc,@echo "npm is not installed: skipped the types of the dashboard's JavaScript.")

# make bench JSON=out.json also writes what it found.
bench: .venv/dev
	$(BIN)/python -m bench $(if $(JSON),--json $(JSON))

# A fleet of simulated agents, e.g. make fleet NODES=10000 SECONDS=600 OPTIONS=--restart
fleet: .venv/dev
	$(BIN)/python -m bench.fleet $(if $(NODES),--nodes $(NODES)) $(if $(SECONDS),--seconds $(SECONDS)) $(OPTIONS)

# Ten minutes at full load, for the memory's sake.
soak: .venv/dev
	$(BIN)/python -m bench.soak

format: .venv/dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

schema: .venv/dev
	$(BIN)/node-registry export-schema > schema.graphql

# What the agent and the client may ask for by its id.
documents: .venv/dev
	$(BIN)/python -m agent.trusted_documents > graph/execution/trusted_documents.json

# The newest versions that fit pyproject.toml, with hashes and without addresses.
lock: .venv/dev
	$(LOCK) --upgrade --extra embedded --extra otel --group dev --output-file requirements/dev.lock
	$(LOCK) --constraint requirements/dev.lock --extra embedded --group build --output-file requirements/run.lock
	$(LOCK) --constraint requirements/dev.lock --extra otel --output-file requirements/server.lock
	$(if $(NPM),$(NPM) install --loglevel=error --package-lock-only --save-dev --save-exact typescript@latest)

# What deploy/ has of what node-agent install writes.
units: .venv/dev
	$(BIN)/python -m agent.units deploy

clean:
	rm -rf .venv node_modules

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run: requirements/run.lock pyproject.toml | .venv/bin/python
	$(PIP) --require-hashes --requirement requirements/run.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements/dev.lock .venv/run
	$(PIP) --require-hashes --requirement requirements/dev.lock
	@touch $@

# npm writes this file itself; its time says when it last installed what the lock file names.
node_modules/.package-lock.json: package-lock.json
	$(NPM) ci --loglevel=error
	@node_modules/.bin/tsc --version > /dev/null  # npm ignores that it could not install the compiler for this platform
	@touch $@
