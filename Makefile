# Two commands are enough: make run, make test.
# Pinned versions stand in requirements*.txt, with hashes; make requirements renews them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
INSTALL := $(PIP) install --no-warn-script-location

.PHONY: run test check format requirements python3-venv debian clean

run: $(VENV)/run.installed  ## serve on http://localhost:8080 with an embedded PostgreSQL
	@LOG_FORMAT=$${LOG_FORMAT:-console} exec $(BIN)/python -m itemstore serve

test: check debian  ## everything: lint, types, all tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile
	TEST_LOOP=asyncio $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(ON_BOTH_LOOPS)

# What waits for sockets; these run on uvloop, as the server does, and on the loop of the library.
ON_BOTH_LOOPS := tests/web tests/hostile/test_slow.py tests/test_lease.py tests/test_races.py

check: $(VENV)/dev.installed  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/run.installed: requirements-embedded.txt pyproject.toml | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements-embedded.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.installed: requirements-dev.txt pyproject.toml | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements-dev.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/run.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory python3-venv
	$(PYTHON) -m venv $(VENV)

python3-venv:
	@[ "$$(id -u)" = 0 ] || { echo "Python's venv is missing. As root: apt-get install python3-venv"; exit 1; }
	apt-get -qq update && apt-get -qq install -y python3-venv

# The tests also run on Debian's PostgreSQL 15 and through PgBouncer, paste the documents' curl
# commands, have Prometheus scrape a store and try the alarms, make system calls fail, put mistakes in, and run the benchmark against Redis and Webdis.
# Where these are missing and cannot be installed, the tests that need them are skipped and say so.
debian:
	@missing=""; \
	[ -x /usr/lib/postgresql/15/bin/postgres ] || missing="postgresql-15"; \
	[ -x /usr/sbin/pgbouncer ] || missing="$$missing pgbouncer"; \
	for tool in curl strace patch redis-server webdis wrk; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $$missing >/dev/null \
	    || echo "Could not install $$missing; some tests are skipped."; \
	else echo "Some tests are skipped. To run them, as root: apt-get install $$missing"; fi

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --custom-compile-command 'make requirements' pyproject.toml

requirements: $(VENV)/dev.installed  ## renew the pinned versions
	$(COMPILE) --upgrade -o requirements.txt
	$(COMPILE) --upgrade --extra embedded --group build -o requirements-embedded.txt
	$(COMPILE) --upgrade --extra embedded --group dev -o requirements-dev.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
