# `make` lists the targets. All targets except `make docs` write only to .venv/, dist/ and the tools' caches.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PYTEST_ARGS ?=
REPORT ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

MANIFESTS := pyproject.toml constraints.txt
QUIX := $(VENV)/quix
QUIX_REQUIREMENTS := tests/benchmarks/rivals/requirements-quix.txt
SOURCES := services tests

# The part that `venv`, `venv-test` and `venv-bench` share; $(1) is what pip installs under the constraints.
define install
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "twinlens needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is $$($(PYTHON) -V 2>/dev/null || echo missing): name another one, as in 'make venv PYTHON=python3.12'." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: install the venv module of this Python (on Debian: apt-get install python3-venv)." >&2; exit 1; }
	@echo "installing twinlens into $(VENV), this takes a few minutes the first time"
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '$(1)'
	@touch $@
	@echo "installed"
endef

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(VENV)/.installed ## install what twinlens needs to run, into .venv

.PHONY: venv-test
venv-test: $(VENV)/.installed-test ## also install what the tests need

.PHONY: venv-bench
venv-bench: $(VENV)/.installed-bench $(QUIX)/.installed ## also install what the benchmarks need

$(VENV)/.installed: $(MANIFESTS)
	$(call install,.)

$(VENV)/.installed-test: $(MANIFESTS)
	$(call install,.[test])
	@touch $(VENV)/.installed

$(VENV)/.installed-bench: $(MANIFESTS)
	$(call install,.[bench])
	@touch $(VENV)/.installed $(VENV)/.installed-test

# Quix Streams cannot be installed together with twinlens. It has its own virtual environment, which takes all other
# packages from that of twinlens.
$(QUIX)/.installed: $(VENV)/.installed-bench $(QUIX_REQUIREMENTS)
	@echo "installing Quix Streams into $(QUIX)"
	@$(BIN)/python -m venv --clear $(QUIX)
	@grep -v '^pydantic' constraints.txt > $(QUIX)/constraints.txt
	@$(QUIX)/bin/python -m pip install -qq --constraint $(QUIX)/constraints.txt -r $(QUIX_REQUIREMENTS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(QUIX)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/twinlens-packages.pth"
	@touch $@

.PHONY: demo
demo: venv ## run the whole stream on this machine; options in ARGS, for example ARGS='--help'
	@$(BIN)/twinlens demo $(ARGS)

.PHONY: lint
lint: venv-test ## ruff and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy --strict services

.PHONY: test
test: lint ## lint, then the quick tests; options in PYTEST_ARGS, for example PYTEST_ARGS='-k sketch'
	$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: venv-test ## the slower tests: killed replicas and rebalances on a real Kafka, fuzzing, a short chaos run
	$(BIN)/pytest --hypothesis-profile=full -m '(slow or chaos or hypothesis) and not testcontainers' $(PYTEST_ARGS)

.PHONY: chaos
chaos: venv-test ## half an hour of faults while tweets stream; needs KAFKA_HOME; REPORT=FILE writes the results
	TWINLENS_CHAOS_TWEETS=$(or $(TWINLENS_CHAOS_TWEETS),300000) TWINLENS_CHAOS_FAULTS=$(or $(TWINLENS_CHAOS_FAULTS),200) \
	TWINLENS_CHAOS_REPORT='$(REPORT)' TWINLENS_REQUIRE_KAFKA=1 $(BIN)/pytest tests/chaos -m chaos -s $(PYTEST_ARGS)

.PHONY: bench
bench: venv-bench ## run the benchmarks; most of them need KAFKA_HOME
	$(BIN)/pytest tests/benchmarks -m benchmark -s -p no:randomly $(PYTEST_ARGS)

.PHONY: docs
docs: venv ## write docs/schemas and docs/asyncapi.json again from the record types
	$(BIN)/python -m twinlens.schemas docs

.PHONY: wheel
wheel: venv ## build dist/twinlens-*.whl
	@$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist .
	@ls dist/*.whl

.PHONY: clean
clean: ## remove .venv, dist and the tools' caches
	rm -rf $(VENV) dist build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
