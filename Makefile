# Two commands are enough on a fresh machine: make demo, make test. Nothing is reinstalled while nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: demo dashboards test nightly check format unit sim integration services bench clean

demo: $(STAMP)
	$(BIN)/tidewarden demo $(ARGS)

# The JSON of Grafana's dashboards, from dashboards/*.py.
dashboards: $(STAMP)
	$(BIN)/python -m dashboards.build

# Real services are installed when this is root with apt; elsewhere their tests are skipped and listed.
# With CI=true a missing service is a failure.
test: $(STAMP) services
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -rs $(ARGS)

# What takes too long for every change: the long tests, every drill with a seed of the day, healthy days of large fleets.
SEED ?= $(shell date +1%j)
nightly: $(STAMP) services
	$(BIN)/python -m pytest -m nightly -rs $(ARGS)
	$(BIN)/python -m bench.drills --seed $(SEED) --jobs $(JOBS)
	$(BIN)/python -m bench.detect --part tune --purpose healthy --first $(SEED) --fleets 4 --no-baselines --cpu-gpus 0 --jobs $(JOBS)

# The benchmarks that need no data of their own, a minute or two together.
bench: $(STAMP)
	$(BIN)/python -m bench.detect --quick --jobs $(JOBS)
	$(BIN)/python -m bench.latency

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit tests/contract $(ARGS)

sim: $(STAMP)
	$(BIN)/python -m pytest tests/sim $(ARGS)

integration: $(STAMP) services
	$(BIN)/python -m pytest tests/integration -rs $(ARGS)

services:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then sh tests/integration/install.sh; \
	else echo "services: not root with apt-get; tests of services that are missing are skipped and listed"; fi

# Installed again only when what is to be installed changes; the package itself is used in place.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
