# Each target makes the virtual environment that it needs and installs into it, once: nothing else is to be done first.
#
#   make venv                   .venv with the package (editable) and the tools of development
#   make demo [FAMILY=bert]     what pretraining is worth, on the built-in corpus; FAMILY is bert, gpt, t5 or all
#   make test                   the tests of every day
#   make test-second            of those, what depends on versions, with a second Python
#   make test-reference         models and exports against torch and transformers, and data sets of Hugging Face, in an
#                               environment of its own
#   make test-slow              long trainings, launches, kills: what make test leaves out, sampled
#   make test-full              everything but test-reference: all cases, also those that no sample holds
#   make test-faults            break the code in twenty-five places and see the tests turn red
#   make lint                   ruff and mypy
#   make bench                  speed and memory beside PyTorch and transformers: one table, in under 25 minutes on two cores;
#                               in the environment of test-reference; RESULTS=folder for its files, ROUNDS=3 for more
#   make bench-gpu [RUNS=G1,G4] training steps on one GPU beside PyTorch, after a comparison with CPU: under four minutes a run
#   make bench-tpu [RUNS=G1]    the same on one TPU, without a rival
#   make constraints            resolve the versions anew for PYTHON and write its file in constraints/
#
# PYTHON=python3.12 chooses the Python of .venv, SECOND_PYTHON=… the one of test-second.

SHELL := /bin/sh
# Some containers set it, and without bytecode each process compiles all that it imports: six seconds before JAX is there.
unexport PYTHONDONTWRITEBYTECODE
FAMILY ?= bert
RESULTS ?= benchmarks/results
# One process a core, and one more: some test always waits, for a process that it started or a launcher that polls. Five
# take all the memory that a laptop can spare.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN || echo 2); [ $$cores -lt 4 ] || cores=4; expr $$cores + 1)
PYTEST := -m pytest -n $(WORKERS) --dist worksteal --durations 12
PYTHON ?= $(shell .ci/find-python 3.13 3.12 3.14 3.11 3)
# What is imported is compiled then; compiling all that is installed takes longer than installing it.
PIP_FLAGS ?= --quiet --disable-pip-version-check --no-compile

.PHONY: venv venv-second venv-reference demo test test-slow test-full test-faults test-second test-reference lint \
    bench bench-gpu bench-tpu constraints
.NOTPARALLEL:

venv: .venv/installed

venv-reference: .venv-reference/installed

# The constraints in force follow the Python that the environment holds. Sources are editable, so they are no prerequisite.
# $(1) is the Python that makes the environment where there is none yet, $(2) the extra that is installed.
define install
@test -x $(@D)/bin/pip || test -n "$(1)" || \
    { echo "no Python 3.11 or newer with venv found: install one, or give PYTHON=/path/to/python" >&2; exit 1; }
@test -x $(@D)/bin/pip || { echo "making $(@D) with $(1)"; $(1) -m venv --clear $(@D); }
@version=$$($(@D)/bin/python -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12")'); \
    echo "installing jaxformer and its tools into $(@D) (constraints/python$$version.txt)"; \
    $(@D)/bin/python -m pip install $(PIP_FLAGS) --constraint constraints/python$$version.txt --editable '.[$(2)]'
@touch $@
endef

VERSIONS := pyproject.toml constraints/python3.11.txt constraints/python3.12.txt

.venv/installed: $(VERSIONS)
	$(call install,$(PYTHON),dev)

.venv-%/installed: $(VERSIONS)
	$(call install,$(SECOND_PYTHON),dev)

.venv-reference/installed: $(VERSIONS)
	$(call install,$(PYTHON),reference)

demo: .venv/installed
	.venv/bin/jaxformer demo --family=$(FAMILY)

test: .venv/installed
	.venv/bin/python $(PYTEST) -m "not slow"

test-slow: .venv/installed
	.venv/bin/python $(PYTEST) -m "slow and not full"

test-full: .venv/installed
	.venv/bin/python $(PYTEST)

test-faults: .venv/installed
	.venv/bin/python tests/faults.py

test-reference: .venv-reference/installed
	.venv-reference/bin/python $(PYTEST) tests/test_live_*.py tests/test_huggingface_sources.py

# Evaluated when these run, by which time .venv is there. No line both calls make and tests: make -n obeys.
FIRST = $(shell .venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
SECOND_PYTHON ?= $(shell .ci/find-python $(filter-out $(FIRST),3.11 3.12 3.13 3.14))
SECOND = $(shell $(SECOND_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

venv-second: .venv/installed
	$(if $(SECOND_PYTHON),$(MAKE) .venv-$(SECOND)/installed,@echo "NO SECOND PYTHON beside $(FIRST): its tests are left out" >&2)

test-second: venv-second
	$(if $(SECOND_PYTHON),.venv-$(SECOND)/bin/python $(PYTEST) -m "versions and not slow")

bench: .venv-reference/installed
	.venv-reference/bin/python benchmarks/run.py --output $(RESULTS) $(if $(ROUNDS),--rounds $(ROUNDS))

# Where JAX finds its accelerator: BENCH_PYTHON=python, say, in a container that has JAX, PyTorch and this package.
BENCH_PYTHON ?= .venv-reference/bin/python

bench-gpu bench-tpu: bench-%: $(if $(filter .venv-reference/%,$(BENCH_PYTHON)),.venv-reference/installed)
	$(BENCH_PYTHON) benchmarks/accelerators.py --device $* --output $(RESULTS) $(if $(RUNS),--runs $(RUNS))

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Once with Python 3.11 and once with the newest that is supported.
constraints:
	$(PYTHON) -m venv --clear .venv-constraints
	.venv-constraints/bin/python -m pip install $(PIP_FLAGS) --editable '.[dev,docs,huggingface,reference]'
	version=$$(.venv-constraints/bin/python -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12")'); \
	    { echo "# Made by make constraints, extras dev, docs, huggingface and reference, on $$(.venv-constraints/bin/python --version)."; \
	    .venv-constraints/bin/python -m pip freeze --exclude-editable; } > constraints/python$$version.txt
	rm -rf .venv-constraints
