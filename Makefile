# `make run` starts the registry, `make test` runs the tests; both need only Python 3.11 or newer.
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

# The example router on http://127.0.0.1:9206, for a registry started by `make run`.
router: .venv/run
	@exec $(BIN)/python -m examples.router

# The tests start Python a hundred times, so unset the variable by which some machines turn off its
# bytecode cache. Tests wait for a third of their time, so three processes keep two cores busy. Without
# reordering, the modules run in the order of their names, and the longest, which have few tests, are not
# all last.
test: .venv/dev
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# The tests that need no PostgreSQL, which take seconds.
test-unit: .venv/dev
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest tests/unit --numprocesses 3 --dist worksteal

# Lints, types and architecture; the types of the dashboard's JavaScript where npm is installed.
check: .venv/dev $(if $(NPM),node_modules/.package-lock.json)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(if $(NPM),node_modules/.bin/tsc,@echo "npm is not installed: skipped the types of the dashboard's JavaScript.")

# make bench JSON=out.json also writes the results as JSON.
bench: .venv/dev
	$(BIN)/python -m bench $(if $(JSON),--json $(JSON))

# A fleet of simulated agents, e.g. make fleet NODES=10000 SECONDS=600 OPTIONS=--restart
fleet: .venv/dev
	$(BIN)/python -m bench.fleet $(if $(NODES),--nodes $(NODES)) $(if $(SECONDS),--seconds $(SECONDS)) $(OPTIONS)

# Ten minutes at full load, to see whether the memory grows.
soak: .venv/dev
	$(BIN)/python -m bench.soak

format: .venv/dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

schema: .venv/dev
	$(BIN)/node-registry export-schema > schema.graphql

# The documents that the agent and the client may send by id.
documents: .venv/dev
	$(BIN)/python -m agent.trusted_documents > graph/execution/trusted_documents.json

# The newest versions that fit pyproject.toml, with hashes and without addresses.
lock: .venv/dev
	$(LOCK) --upgrade --extra embedded --extra otel --group dev --output-file requirements/dev.lock
	$(LOCK) --constraint requirements/dev.lock --extra embedded --group build --output-file requirements/run.lock
	$(LOCK) --constraint requirements/dev.lock --extra otel --output-file requirements/server.lock
	$(if $(NPM),$(NPM) install --loglevel=error --package-lock-only --save-dev --save-exact typescript@latest)

# The units in deploy/ that `node-agent install` would write.
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

# npm writes this file when it has installed what the lock file names.
node_modules/.package-lock.json: package-lock.json
	$(NPM) ci --loglevel=error
	@node_modules/.bin/tsc --version > /dev/null  # npm reports no error when the compiler has no build for this platform
	@touch $@
