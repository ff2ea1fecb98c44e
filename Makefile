# make up     install what is needed and serve          make test   run the tests (ARGS="-k name")
# make check  format, lint, types, layers               make format rewrite what a machine can
# make bench  measure                                   make torture  crash it and check the record
# make test-cli  the real coding CLIs, from npm         (CLIS=all: the proprietary and the large, too)
# make fuzz   mutated input at the decoders              make lock   resolve the dependencies again (uv)
# make clean  remove everything installed here

PYTHON ?= python3
ARGS ?=
UV ?= uv
CLIS ?= codex gemini

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SELF := install --no-deps --no-build-isolation --editable .
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	pyproject.toml --group build

# One environment, three stamps: it exists; it holds the run lock; it holds the development lock,
# a superset of the run lock. A stamp is older than its lock only when the lock changed.
CREATED := $(VENV)/.created
RUN := $(VENV)/.run
DEV := $(VENV)/.dev

.PHONY: up test test-cli check format bench torture fuzz lock clean
.DELETE_ON_ERROR:

up: $(RUN)
	@exec $(BIN)/retinue serve $(ARGS)

test: $(DEV)
	@$(BIN)/python -m pytest $(ARGS)

# The CLIs come from npm, into .clis; without it this fails, and says so.
test-cli: $(DEV)
	@$(BIN)/python -m tests.live.programs $(CLIS)
	@RETINUE_CLIS="$(CLIS)" $(BIN)/python -m pytest tests/live $(ARGS)

check: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench torture fuzz: $(DEV)
	@test -f $@/__main__.py || { echo "make $@: this checkout has no $@/ directory." >&2; exit 1; }
	@$(BIN)/python -m $@ $(ARGS)

lock:
	$(LOCK) --output-file requirements/run.txt
	$(LOCK) --group dev --constraints requirements/run.txt --output-file requirements/dev.txt

clean:
	rm -rf $(VENV) .venv-bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || \
		{ echo "make: $(PYTHON) is not installed; Retinue needs Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "make: Retinue needs Python 3.11 or newer; %s is %d.%d. Name another one: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot create environments: its venv module is a package of its own here" \
		"(Debian, Ubuntu: python3-venv; openSUSE: python3-base; Alpine: py3-pip)." >&2; exit 1; }
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUN): $(CREATED) requirements/run.txt
	$(PIP) install --require-hashes -r requirements/run.txt
	$(PIP) $(SELF)
	@touch $@

$(DEV): $(CREATED) requirements/run.txt requirements/dev.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) $(SELF)
	@touch $(RUN) $@
