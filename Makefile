# Two commands do all the set-up on a machine with Python 3.11 and make: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
BASE := .venv/.base
INSTALLED := .venv/.installed
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-all soak check format schema bench parity results suites general figures clean

demo: $(BASE) ## train CartPole, evaluate it, draw its curve, film it
	rm -rf runs/demo
	$(BIN)/pgcli train configs/cartpole.yaml --run-dir runs/demo
	$(BIN)/pgcli eval runs/demo --video runs/demo/videos/agent.gif
	$(BIN)/pgcli plot runs/demo -o runs/demo/plots/return.png
	@echo
	@echo "the run:    runs/demo"
	@echo "its curve:  runs/demo/plots/return.png"
	@echo "the agent:  runs/demo/videos/agent.gif"

test: $(INSTALLED) ## the tests that are not marked slow, in parallel; minutes
	$(BIN)/pytest -n auto --dist worksteal -m "not slow"

test-slow: $(INSTALLED) ## the other tests
	$(BIN)/pytest -n auto --dist worksteal -m slow

test-all: $(INSTALLED) ## every test
	$(BIN)/pytest -n auto --dist worksteal

KILLS ?= 200
soak: $(INSTALLED) ## kill runs at KILLS=200 random instants (soak.json counts them); simulate the intervals; minutes
	$(BIN)/python tests/kills.py $(KILLS) soak.json
	$(BIN)/python tests/uncertainty.py

check: $(INSTALLED) ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED) ## fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(BASE) ## configs/schema.json and docs/config.md, from the config's schema
	$(BIN)/pgcli init --schema > configs/schema.json
	$(BIN)/python -c 'from pgcli.config.reference import markdown; print(markdown())' > docs/config.md

bench: $(INSTALLED) ## speed, as ratios in one run, against Stable-Baselines3 and rejax; minutes
	$(PIP) -e '.[bench]'
	$(BIN)/python tests/benchmarks/bench.py

parity: $(INSTALLED) ## docs/peers.md: one update compared with Stable-Baselines3, CleanRL, Spinning Up, Tianshou
	$(PIP) -e '.[bench]'
	$(BIN)/python tests/peers.py

results: $(INSTALLED) ## docs/results.md: train CONFIG="a b" (default: all) over ten seeds, where results are stale; hours
	$(BIN)/python tests/benchmarks/results.py $(CONFIG)

suites: $(INSTALLED) ## docs/suites.md: compare SUITES="classic box2d" (default: all); continues; two hours of CPU time
	$(BIN)/python tests/benchmarks/suites.py $(SUITES)

general: $(INSTALLED) ## docs/algorithms.md: train the configs for any environment on ten; continues; two hours of CPU time
	$(BIN)/python tests/benchmarks/general.py

figures: $(INSTALLED) ## docs/images: run the commands beside FIGURES="curve taxi" (default: all pictures; Pong takes an hour)
	$(BIN)/python tests/benchmarks/figures.py $(FIGURES)

clean: ## remove what these commands made, runs aside
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build/rejax build/figures

$(BASE): pyproject.toml constraints.txt
	@echo "installing pgcli into .venv: about a minute and 1.3 GB"
	$(PYTHON) -m venv .venv
	@$(PIP) -e .
	@touch $@

$(INSTALLED): $(BASE)
	@echo "installing what the tests need into .venv: about two minutes and 1.2 GB"
	@$(PIP) -e '.[dev]'
	@touch $@
