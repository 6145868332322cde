# make train | train-arm | train-lift | train-pusht | test | test-all | lint | docs | clean. All but the last set up .venv when needed.
#   make train ARGS="--seed 1 --run-dir runs/maze-1"      pass flags on
#   make test ARGS="tests/test_fields.py -k energy"        some of the tests
#   make test PYTHON=/path/to/python3.12                  choose the interpreter of .venv (make clean first)
#   make test EXTRAS=rl,dev                               choose the parts; by default robomimic only where cmake and g++ are

comma := ,
COMPILES := $(shell command -v cmake >/dev/null 2>&1 && command -v g++ >/dev/null 2>&1 && echo robomimic$(comma))
EXTRAS ?= rl,$(COMPILES)dev
PYTHON ?=
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
SET_UP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: train train-arm train-lift train-pusht test test-all lint format docs clean

train: $(SET_UP)
	$(RUN) -m wgflow_rl.train $(ARGS)

train-arm: $(SET_UP)
	$(RUN) -m wgflow_rl.train --env cube-single-play-singletask-task2-v0 --method dfp-ml-energy-no-topk $(ARGS)

train-lift: $(SET_UP)
	$(RUN) -m wgflow_rl.train --env lift-mh-low_dim $(ARGS)

train-pusht: $(SET_UP)
	$(RUN) -m wgflow_rl.train --env pusht --film $(ARGS)

# One process per core. test-all adds the tests marked slow: kills, fuzzing, builds and whole programs.
PYTEST := $(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: $(SET_UP)
	$(PYTEST) $(ARGS)

test-all: $(SET_UP)
	$(PYTEST) -m "" $(ARGS)

lint: $(SET_UP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(RUN)

format: $(SET_UP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(SET_UP)
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html $(ARGS)
	@echo "open docs/_build/html/index.html"

$(SET_UP): pyproject.toml constraints.txt
	PYTHON="$(PYTHON)" EXTRAS="$(EXTRAS)" VENV="$(VENV)" sh .ci/setup
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build docs/gallery docs/generated .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
