# One word per task. Each makes .venv first if it is not there: with uv where it is found,
# with venv and pip where it is not (tools/setup_env.py). The tests need more packages than the
# notebooks: those are added to it when tests are first run.
#
#   make figures ARGS="--only 02 04"     only these notebooks
#   make test ARGS="-k recorder"         only these tests
#   make test PYTHON=python3.12          another Python than python3
#   make test INSTALLER=pip              pip although uv is there

PYTHON ?= python3
INSTALLER ?= auto
ARGS ?=
RUN := .venv/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help figures test test-fast test-elsewhere lab notebooks claims env clean
.PHONY: env-figures

help:
	@echo "make figures    run all notebooks; figures and their numbers in figures/fashion_small/"
	@echo "make test       ruff, the tests, and every notebook against its stored outputs"
	@echo "make test-fast  ruff, and the tests that are not slow: two minutes, while you write"
	@echo "make test-elsewhere  every notebook as three other processors would run it (an hour)"
	@echo "make lab        open JupyterLab on the notebooks"
	@echo "make notebooks  run all notebooks and store their outputs in notebooks/"
	@echo "make claims     write the claims of figures/fashion_small/ into CLAIMS.md"
	@echo "make env        make .venv only (6 GB); every other command makes it if needed"
	@echo "make clean      remove .venv and what the tools left; data/ and figures/ stay"

figures: env-figures
	$(RUN) memlens reproduce $(ARGS)

# one pytest for all three, so that a failure anywhere fails it and hides nothing after it
test: env
	$(RUN) ruff check .
	$(RUN) pytest memlens tests notebooks --doctest-modules \
	  --nbval-lax --nbval-current-env --color=no --durations=20 $(ARGS)

# while you write: no notebook runs, nothing is killed, and no other process trains
test-fast: env
	$(RUN) ruff check .
	$(RUN) pytest memlens tests --doctest-modules -m "not slow" --color=no --durations=10 $(ARGS)

test-elsewhere: env
	$(RUN) tools.elsewhere $(ARGS)

lab: env-figures
	JUPYTER_PREFER_ENV_PATH=1 $(RUN) jupyterlab notebooks $(ARGS)

notebooks: env-figures
	$(RUN) memlens reproduce --save $(ARGS)

claims: env-figures
	$(RUN) memlens claims --write $(ARGS)

env env-figures:
	@command -v $(PYTHON) >/dev/null || { echo "memlens needs Python 3.11 or newer; there is no $(PYTHON)"; exit 1; }
	@$(PYTHON) tools/setup_env.py --installer $(INSTALLER) --for $(if $(findstring figures,$@),figures,test)

clean:
	rm -rf .venv .venv.lock .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find memlens tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
