# Everything a fresh machine needs beyond Python and a C++ compiler is set up by these targets.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
RUN = $(VENV)/bin/python -m

SOURCES = $(wildcard csrc/*.* csrc/*/*.*) setup.py build_flags.py pyproject.toml

.PHONY: demo test check bench clean

# The pinned torch first, then the package against it: an isolated build would fetch a second torch.
$(VENV)/.ready: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet $(TORCH) $(TRITON) "setuptools>=77,<81" wheel ninja "pybind11>=2.13" numpy
	$(RUN) pip install --quiet --no-build-isolation -e ".[vae,test,check,bench]"
	touch $@

demo: $(VENV)/.ready
	$(VENV)/bin/rhovae demo

test: $(VENV)/.ready
	$(RUN) pytest -n $(JOBS)

check: $(VENV)/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: $(VENV)/.ready
	$(VENV)/bin/rhovae bench

clean:
	rm -rf $(VENV) build *.egg-info rhovae_kernels/_C*.so
