# Everything a fresh machine needs beyond Python and a C++ compiler is set up by these targets.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
RUN = $(VENV)/bin/python -m
# Workers share the cores with what they start: a thread each, but where a test asks for two, of which
# none spins while it waits. A worker that is done takes tests of one that is not.
THREADS = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
WORKERS = -n $(JOBS) --dist worksteal
PYTEST = $(THREADS) $(RUN) pytest $(WORKERS)

SOURCES = $(wildcard csrc/*.* csrc/*/*.*) setup.py build_flags.py pyproject.toml

# Of `make fuzz`: random calls, and the seed that they are drawn from.
CALLS ?= 2000
SEED ?= 0
SANITIZED = build/sanitized
RUNTIMES = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)

# Of `make compat`: torch/triton, the oldest and the newest that are promised, and what is tested.
COMPAT ?= 2.11.0/3.6.0 2.14.1/3.8.0
COMPAT_TESTS ?= tests

# Of `make rehearsal`: torch/triton, those of the GPU machine.
REHEARSAL ?= 2.11.0/3.6.0

.PHONY: demo test check gates docs fuzz fuzz-sanitized compat rehearsal wheels bench clean

# The pinned torch first, then the package against it: an isolated build would fetch a second torch.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	@echo "Installing $(TORCH), a minute or more ..."
	$(RUN) pip install --quiet $(TORCH) $(TRITON) "setuptools>=77,<81" wheel ninja numpy
	touch $@

# What `make demo` needs: no tools, and the CPU kernels of this machine's instruction set alone.
$(VENV)/.demo: $(SOURCES) | $(VENV)/.torch
	@echo "Compiling the CPU kernels, a minute or two ..."
	RHOVAE_CPU_TARGETS=native $(RUN) pip install --quiet --no-build-isolation -e ".[vae]"
	touch $@

$(VENV)/.ready: $(SOURCES) | $(VENV)/.torch
	@echo "Compiling the kernels and installing the tools, some minutes ..."
	$(RUN) pip install --quiet --no-build-isolation -e ".[vae,test,check,bench]"
	touch $(VENV)/.demo $@

demo: $(VENV)/.demo
	$(VENV)/bin/rhovae demo
	@echo "rhovae is in $(VENV)/bin."

test: $(VENV)/.ready
	$(PYTEST) -m "not gate"

check: $(VENV)/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# What compilers make of the kernels for every GPU, what TorchDynamo makes of every flow and VAE, and
# what sanitizers and planted bugs show: minutes of compiling.
gates: $(VENV)/.ready
	$(PYTEST) -m gate

# What the extra `docs` names, by itself: installing the package with it would compile it once more.
$(VENV)/.docs: $(VENV)/.ready
	$(VENV)/bin/python -c "from importlib.metadata import requires; \
		print(*(r.split(';')[0] for r in requires('rhovae_kernels') if 'docs' in r.partition(';')[2]), sep='\n')" \
		| $(RUN) pip install --quiet -r /dev/stdin
	touch $@

# The site, in build/site: built, then checked.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet
	$(VENV)/bin/python tools/site/check.py build/site
	@echo "build/site/index.html; with search: python3 -m http.server -d build/site"

# Random calls of every op, the CPU kernels against the specification.
fuzz: $(VENV)/.ready
	PYTHONPATH=tests $(RUN) fuzz --seed $(SEED) --calls $(CALLS)

# The same on kernels that AddressSanitizer and UndefinedBehaviorSanitizer watch.
$(SANITIZED)/.ready: $(VENV)/.ready
	RHOVAE_SANITIZE=1 RHOVAE_CUDA=0 $(VENV)/bin/python setup.py --quiet build \
		--build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	touch $@

fuzz-sanitized: $(SANITIZED)/.ready
	cd $(SANITIZED) && LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=.:$(CURDIR)/tests $(abspath $(VENV))/bin/python -m fuzz --seed $(SEED) --calls $(CALLS)

# Builds and tests with the oldest and the newest torch, one line each.
compat:
	@failed=0; for pair in $(COMPAT); do \
		$(THREADS) .ci/compat $${pair%/*} $${pair#*/} $(WORKERS) $(COMPAT_TESTS) || failed=1; \
	done; exit $$failed

# What a GPU machine runs, on a stub of CUDA's runtime: the CUDA build, every launch, no result.
rehearsal:
	.ci/rehearsal $(subst /, ,$(REHEARSAL))

# A CPU wheel in dist/, tried with every Python that is here, one line each.
wheels: | $(VENV)/.torch
	.ci/wheels $(abspath $(VENV))/bin/python $(COMPAT)

bench: $(VENV)/.ready
	$(VENV)/bin/rhovae bench

clean:
	rm -rf $(VENV) build dist *.egg-info rhovae_kernels/_C*.so
