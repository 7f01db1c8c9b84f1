# Everything a person runs. `make` alone lists the targets. Needs Python 3.11+ and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARCHIVES := model_store/archives
DEMO_MODELS := demo_classify demo_detect demo_segment

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-train serve models images test test-all lint types format proto docs monitoring lock bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## make the virtual environment in .venv (the other targets do it when needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing pinned packages into $(VENV) (torch is large; minutes on a slow line)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[models]' --group dev
	@touch $@

demo: $(STAMP) ## build, serve, answer real pictures, show the results, stop
	@$(BIN)/mobilevision demo

models: $(STAMP) ## build the archives that are not up to date
	@$(BIN)/mobilevision models build --all --out $(ARCHIVES)

demo-train: $(STAMP) ## train the demo checkpoints anew (hours of one core); goes on after Ctrl-C
	@$(BIN)/mobilevision models demo-train

serve: $(STAMP) ## the same models as the demo, until Ctrl-C
	@$(BIN)/mobilevision models build $(DEMO_MODELS) --out $(ARCHIVES)
	@$(BIN)/mobilevision serve $(DEMO_MODELS) --archives $(ARCHIVES)

images: $(STAMP) ## the container images with the demo models, by docker, podman or buildah (see deploy/docker/build.sh)
	@$(BIN)/mobilevision models build $(DEMO_MODELS) --out $(ARCHIVES)
	@deploy/docker/build.sh

test: lint types ## set up, check, test: what CI runs
	@$(BIN)/python -m pytest

test-all: lint types ## the same, with every check for every model
	@$(BIN)/python -m pytest -m ""

lint: $(STAMP) ## style, imports, proto
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@cd proto && ../$(BIN)/buf lint

types: $(STAMP) ## mypy --strict
	@$(BIN)/mypy

format: $(STAMP) ## let ruff format and mend what it can
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

proto: $(STAMP) ## generate service/pb from proto/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iservice/pb=proto --python_out=. --mypy_out=quiet:. \
	  --grpc_python_out=. --mypy_grpc_out=quiet:. proto/mobilevision/v1/*.proto proto/torchserve/*.proto

docs: $(STAMP) ## generate the tables in docs/
	@$(BIN)/python -m service.settings > docs/settings.md
	@$(BIN)/python -m model_store.zoo > docs/models.md
	@$(BIN)/python -m benchmarks.report > docs/performance.md

RUNBOOK_URL ?= docs/runbook.md
monitoring: $(STAMP) ## generate rules and dashboards in deploy/monitoring; RUNBOOK_URL=... says where people read it
	@$(BIN)/python -m deploy.monitoring.generate --runbook-url $(RUNBOOK_URL)

lock: ## renew constraints.txt from what the index has now
	@rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/python -m pip install --quiet --upgrade pip
	@build/lock/bin/python -m pip install --quiet torch==2.13.0 -e '.[models]' --group dev
	@build/lock/bin/python -m pip freeze --all --exclude-editable --exclude mobilevision | sed 's/+cpu//' > constraints.txt

bench: $(STAMP) ## serving against the in-process limit and other servers (benchmarks/README.md has the rest)
	@$(BIN)/python -m benchmarks.serving

clean: ## remove what was built; the virtual environment stays
	rm -rf build dist $(ARCHIVES)
