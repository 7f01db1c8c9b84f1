# All commands of the project. `make` alone lists the targets. Needed: Python 3.11 or newer, and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARCHIVES := model_store/archives
DEMO_MODELS := demo_classify demo_detect demo_segment
# Test processes. A file runs in one process from start to end, so that its servers start once.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-train serve models images check check-tests test test-all lint types format proto docs monitoring lock lock-images audit bench hold hold-full clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(STAMP) ## create the virtual environment in .venv (other targets do this when needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11. Choose another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) cannot create virtual environments. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing pinned packages into $(VENV) (torch is large: this takes minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[models]' --group dev
	@touch $@

demo: $(STAMP) ## build the demo models, serve them, send real pictures, show the replies, stop
	@$(BIN)/mobilevision demo

models: $(STAMP) ## build all archives that are missing or outdated
	@$(BIN)/mobilevision models build --all --out $(ARCHIVES)

demo-train: $(STAMP) ## train the demo checkpoints again (hours on one core); resumes after Ctrl-C
	@$(BIN)/mobilevision models demo-train

serve: $(STAMP) ## serve the demo models until Ctrl-C
	@$(BIN)/mobilevision models build $(DEMO_MODELS) --out $(ARCHIVES)
	@$(BIN)/mobilevision serve $(DEMO_MODELS) --archives $(ARCHIVES)

images: $(STAMP) ## build the images with the demo models: REGISTRY=... names them (docker, podman or buildah; see deploy/docker/build.sh)
	@$(BIN)/mobilevision models build $(DEMO_MODELS) --out $(ARCHIVES)
	@deploy/docker/build.sh gateway torchserve server

check: $(STAMP) ## lint, types, unit and contract tests, side by side: two minutes, before every commit
	@$(MAKE) --no-print-directory -j 3 lint types check-tests

check-tests: $(STAMP)
	@$(PYTEST) tests/architecture tests/docs tests/unit tests/contract

test: lint types ## all of `check`, and integration with a real TorchServe: what CI runs (ten minutes)
	@$(PYTEST)

test-all: lint types ## all tests for all models, with new random examples (an hour; tests/README.md lists what it adds)
	@$(PYTEST) -m "" --hypothesis-profile random

lint: $(STAMP) ## style, imports between rooms, proto
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@cd proto && ../$(BIN)/buf lint

types: $(STAMP) ## static types (mypy --strict; cached in build/mypy_cache)
	@$(BIN)/mypy

format: $(STAMP) ## format the code, and fix what ruff can fix
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

proto: $(STAMP) ## generate service/pb from proto/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iservice/pb=proto -Iproto --python_out=. --mypy_out=quiet:. \
	  --grpc_python_out=. --mypy_grpc_out=quiet:. proto/mobilevision/v1/*.proto proto/torchserve/*.proto

docs: $(STAMP) ## generate the tables in docs/
	@$(BIN)/python -m service.core.settings > docs/settings.md
	@$(BIN)/python -m model_store.zoo > docs/models.md
	@$(BIN)/python -m benchmarks.pages
	@$(BIN)/python -m benchmarks.hold.report > docs/reliability.md
	@$(BIN)/python tests/checkpoint_table.py

RUNBOOK_URL ?=
monitoring: $(STAMP) ## generate rules and dashboards in deploy/monitoring; RUNBOOK_URL=... is the address of your runbook
	@$(BIN)/python -m deploy.monitoring.generate --runbook-url '$(RUNBOOK_URL)'

lock: ## renew constraints.txt: the newest versions on the package index
	@rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/python -m pip install --quiet --upgrade pip
	@build/lock/bin/python -m pip install --quiet torch==2.13.0 -e '.[models]' --group dev
	@build/lock/bin/python -m pip freeze --all --exclude-editable --exclude mobilevision | sed 's/+cpu//' > constraints.txt
	@$(MAKE) --no-print-directory lock-images

LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28
lock-images: $(STAMP) ## renew the hashes of what the images install, for the versions in constraints.txt
	@mkdir -p build
	@$(BIN)/python deploy/docker/requirements.py serve tracing signing > build/gateway.txt
	@$(LOCK) -c constraints.txt build/gateway.txt --output-file deploy/docker/gateway.lock
	@$(LOCK) -c constraints.txt deploy/docker/tools.txt --output-file deploy/docker/tools.lock
	@sed -i '1i # `make lock-images` generates this file: the versions of constraints.txt, each file by its hash.' \
	  deploy/docker/gateway.lock deploy/docker/tools.lock

audit: $(STAMP) ## ask for known vulnerabilities of the pinned packages; fails with "not reachable" if nobody answers
	@$(BIN)/python -m deploy.audit

bench: $(STAMP) ## measure serving against the in-process limit and other servers (see benchmarks/README.md)
	@$(BIN)/python -m benchmarks.serving

hold: $(STAMP) ## show that the server holds: faults, attackers, fuzzing, load; writes docs/reliability.md (ten minutes)
	@$(BIN)/python -m benchmarks.hold

hold-full: $(STAMP) ## the long form of `hold`, with an hour of load (hours)
	@$(BIN)/python -m benchmarks.hold --full

clean: ## remove built files; the virtual environment stays
	rm -rf build dist $(ARCHIVES)
