# The commands a newcomer needs. All of them install what they need first.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# uv installs the locked environment. Where it is missing, a pinned one goes into .venv, beside what it installs.
UV_VERSION := 0.13.8
PYTHON ?= $(firstword $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p; done))
UV := $(shell command -v uv 2>/dev/null || echo .venv/bin/uv)
WHARF := .venv/bin/wharf
SYNC := VIRTUAL_ENV= $(UV) sync --frozen --inexact --quiet
# A uv that lives in .venv must not replace the environment that it runs from.
BASE := $(if $(filter .venv/%,$(UV)),.venv/bin/python,$(PYTHON))

.PHONY: help up down clean demo cluster cluster-down test test-cluster check fmt bench bench-cluster

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

up: .venv/ready ## start the local platform and carry the models through the loop
	@$(WHARF) up

down: ## stop all that `make up` started
	@test ! -x $(WHARF) || $(WHARF) down

clean: ## stop everything and forget the local state (.wharf)
	@test ! -x $(WHARF) || $(WHARF) down --clean

demo: .venv/ready ## send shifted traffic, find the drift, propose a challenger
	@$(WHARF) demo

cluster: .venv/ready ## the same on Kubernetes and Argo CD (kind, or a node of its own)
	@$(WHARF) up --target cluster

cluster-down: ## remove the cluster and all that it made
	@test ! -x $(WHARF) || $(WHARF) down --target cluster

# The end-to-end file is the longest, so it starts first; its tests are one story and stay on one worker.
test: .venv/ready-dev ## run all tests that need no root and no cluster
	@.venv/bin/pytest tests/e2e tests -n 2 --dist loadfile --no-loadscope-reorder -m 'not cluster'

# One process: the tests share one cluster, on which they are a story. CLONE=FOLDER keeps it for the next run.
test-cluster: .venv/ready-dev ## run the tests on a real cluster: as root on Debian, or with kind
	@.venv/bin/pytest tests/cluster -m cluster $(if $(CLONE),--clone $(CLONE))

check: .venv/ready-dev ## format, lint and types
	@.venv/bin/ruff format --check --quiet . && .venv/bin/ruff check --quiet . && .venv/bin/pyright --level error

fmt: .venv/ready-dev ## format and mend what can be mended
	@.venv/bin/ruff format --quiet . && .venv/bin/ruff check --fix --quiet .

bench: .venv/ready-dev ## print the figures of docs/benchmarks.md (about ten minutes)
	@.venv/bin/python -m tests.bench

# COLD=1 brings it up with empty caches first, which takes half an hour more.
bench-cluster: .venv/ready-dev ## print the figures of the cluster (about half an hour)
	@.venv/bin/python -m tests.bench.cluster $(if $(COLD),--cold) $(if $(CLONE),--clone $(CLONE))

.venv/ready: pyproject.toml uv.lock
	@test -n "$(PYTHON)" || { echo 'ERROR  no Python 3.11 or newer on the PATH' >&2; \
		echo 'TIP    install one, or name it: make up PYTHON=/path/to/python3' >&2; exit 2; }
	@command -v uv >/dev/null || test -x .venv/bin/uv || { echo '  installing uv $(UV_VERSION)' >&2; \
		$(PYTHON) -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); }
	@echo '  installing the locked environment' >&2; begun=$$SECONDS; $(SYNC) --python "$(BASE)" && touch $@ && \
		echo "  ✓ environment  $$((SECONDS - begun))s" >&2

.venv/ready-dev: .venv/ready
	@$(SYNC) --python .venv/bin/python --group dev && touch $@
