# `make run` starts the registry, `make test` runs the tests; both need only Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
NPM := $(shell command -v npm)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate --strip-extras
SERVER := pyproject.toml --extra server

.PHONY: run router test test-unit check bench fleet fuzz soak format schema documents units lock sbom dist audit clean
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

# Searches for inputs that break a promise, e.g. make fuzz TARGET=messages SECONDS=600
fuzz: .venv/dev
	$(BIN)/python -m tests.fuzz $(or $(TARGET),http) $(CORPUS) --seconds $(or $(SECONDS),60)

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

# The newest versions that fit pyproject.toml, with hashes and without addresses. What is written from
# the lock files comes last, with the licences of what they installed.
lock: .venv/dev
	$(LOCK) --upgrade $(SERVER) --extra embedded --extra otel --group dev --output-file requirements/dev.lock
	$(LOCK) --constraint requirements/dev.lock $(SERVER) --extra embedded --output-file requirements/run.lock
	$(LOCK) --constraint requirements/dev.lock $(SERVER) --extra otel --output-file requirements/server.lock
	$(LOCK) --constraint requirements/dev.lock --group build --output-file requirements/build.lock
	$(LOCK) --upgrade --group audit --output-file requirements/audit.lock
	$(if $(NPM),$(NPM) install --loglevel=error --package-lock-only --save-dev --save-exact typescript@latest)
	$(MAKE) sbom

# What the lock files pin: the SBOM that the wheel carries, and the versions in docs/dependencies.md.
sbom: .venv/dev
	$(BIN)/python -m release.sbom
	$(BIN)/python -m release.dependency_table

# The wheel, with its SBOM, and the source archive, in dist/.
dist: .venv/run
	$(BIN)/hatchling build

# Known vulnerabilities of the locked versions. Status 1: there are some; 75: the database was not asked.
# make itself ends with 2 for both, and shows which.
audit: .venv/run .venv/audit/bin/pip-audit
	@$(BIN)/python -m release.audit .venv/audit/bin/pip-audit requirements/*.lock

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

.venv/run: requirements/run.lock requirements/build.lock pyproject.toml | .venv/bin/python
	$(PIP) --require-hashes --requirement requirements/run.lock --requirement requirements/build.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements/dev.lock .venv/run
	$(PIP) --require-hashes --requirement requirements/dev.lock
	@touch $@

# An environment of its own, so that its many libraries constrain no other.
.venv/audit/bin/pip-audit: requirements/audit.lock | .venv/bin/python
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

# npm writes this file when it has installed what the lock file names.
node_modules/.package-lock.json: package-lock.json
	$(NPM) ci --loglevel=error
	@node_modules/.bin/tsc --version > /dev/null  # npm reports no error when the compiler has no build for this platform
	@touch $@
