# make demo: set up and train both regimes on embedded data.   make test: set up and pass the tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# nproc counts OMP_NUM_THREADS as the number of cores where it is set; the sweep gives each job one thread itself.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)
DEMO := results/demo

.PHONY: help install demo test test-wheels lint format docs release-check benchmark clean-demo data-cifar5m data-tiny-imagenet data-openwebtext data-text \
  sweep status watch claims figures report verify sync dashboard test-cluster soak hunt gpu-check gpu-bundle

help: ## this list, from the targets' own lines
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z0-9% -]*:.*## / { gsub(/ /, " | ", $$1); sub(/%/, "REGIME", $$1); printf "make %-26s %s\n", $$1, $$2 }' Makefile
	@echo "Everything else is the command $(BIN)/weight-decay (try --help and --info)."

install: $(VENV)/.installed ## the environment in .venv, which every target makes first

# Newer than pyproject.toml means installed; a half-finished installation leaves no stamp and is made again.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: Python 3.11 to 3.13 is needed, $(PYTHON) is `$(PYTHON) --version`; name another with PYTHON=..." >&2; exit 2; }
	@echo "Making $(VENV) first: torch and its companions, a few minutes and up to 6 GB; this happens once." >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install ## train both regimes on embedded data, then show the effects (about 4 minutes on 2 cores)
	@$(BIN)/weight-decay demo results=$(DEMO) jobs=$(JOBS)

# A file stays with one worker, so that what its tests share is made once; in their order, since xdist would put those
# with few tests last, which are the long ones. One worker more than there are cores works while others wait for a process.
test: install ## run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -n $(shell echo $$(( $(JOBS) + 1 ))) --dist loadfile --no-loadscope-reorder --durations=10

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## ruff format, and what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Its packages are installed here and not by make install: the tests need none of them.
docs: install ## the site, in site/: pages, every experiment, reference; strict, nothing fetched from elsewhere
	@$(BIN)/python -c 'import material, mkdocs, mkdocstrings' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict
	@echo "site/index.html; its search needs a server: $(BIN)/python -m http.server --directory site, then open localhost:8000"

release-check: docs ## is this ready to be released: version, wheel, metadata, licences, site, notebooks
	@$(BIN)/python scripts/release_check.py $(PIECES)

# Each Python gets an environment of its own, 6 GB; in WHEELS=FOLDER it stays for the next time.
test-wheels: install ## the wheel, installed with all extras for other Pythons and tested there: PYTHONS="python3.12 python3.13" [WHEELS=FOLDER]
	@test -n "$(PYTHONS)" || { echo 'make test-wheels: say which: PYTHONS="python3.12 python3.13"' >&2; exit 2; }
	@$(BIN)/python scripts/test_wheels.py $(PYTHONS) $(if $(WHEELS),--folder "$(WHEELS)")

benchmark: install ## every benchmark in benchmarks/, each prints ratios measured side by side
	@for file in benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

data-cifar5m: install ## CIFAR-5m's part0..5.npz -> data/cifar5m: FROM=FOLDER
	@test -n "$(FROM)" || { echo "make data-cifar5m: say where part0.npz to part5.npz are: FROM=FOLDER" >&2; exit 2; }
	$(BIN)/python scripts/prepare_cifar5m.py "$(FROM)" data/cifar5m

data-tiny-imagenet: install ## tiny-imagenet-200 -> data/tiny_imagenet: FROM=FOLDER
	@test -n "$(FROM)" || { echo "make data-tiny-imagenet: say where the folder tiny-imagenet-200 is: FROM=FOLDER" >&2; exit 2; }
	$(BIN)/python scripts/prepare_tiny_imagenet.py "$(FROM)" data/tiny_imagenet

data-openwebtext: install ## OpenWebText -> data/openwebtext: [FROM=FOLDER] [BPE=FOLDER, with any copy of GPT-2's vocab.bpe and encoder.json]
	$(BIN)/python scripts/prepare_openwebtext.py --root data $(if $(FROM),--source "$(FROM)") $(if $(BPE),--bpe "$(BPE)")

data-text: install ## .txt, .jsonl, .parquet -> data/NAME: FROM=PATH [NAME=text] [ENCODING=bytes] [BPE=FOLDER]
	@test -n "$(FROM)" || { echo "make data-text: say which text: FROM=PATH" >&2; exit 2; }
	$(BIN)/python scripts/prepare_text.py --from "$(FROM)" --target data/$(or $(NAME),text) \
	  $(if $(BPE),--bpe "$(BPE)") $(if $(ENCODING),--encoding "$(ENCODING)")

clean-demo: ## remove the demo's results
	rm -rf $(DEMO)

# reproduce-over-training: Figures 1-5, 10-18, Tables 2, 3; reproduce-under-training: Figures 6-8, 19-26 and ours on bfloat16.
# A cell that several figures need is run once; a finished one is not run again. Every experiment is tried even if one
# before it fails, and the failure is the exit status.
reproduce-%: install ## every experiment of over-training or under-training, then tables, figures: [SCALE=micro] [SETTINGS='...']
	@experiments=$$($(BIN)/weight-decay experiments $* reproduce | tr '\n' ' ') && test -n "$$experiments" || exit 2; failed=; \
	for experiment in $$experiments; do \
	  $(BIN)/weight-decay experiment=$$experiment scale=$(SCALE) jobs=$(JOBS) $(SETTINGS) || failed="$$failed $$experiment"; \
	done; \
	$(BIN)/weight-decay collect $$experiments && $(BIN)/weight-decay figures || failed="$$failed tables-and-figures"; \
	if [ -n "$$failed" ]; then echo "not complete:$$failed" >&2; exit 1; fi

# -- sweeps and clusters: docs/cluster.md ------------------------------------------------------------------------
# make sweep EXP=fig03_grid SCALE=small LAUNCHER=slurm [PARTITION= GPUS= HOURS= JOBS_PER_GPU= CELLS_PER_JOB= SET="key=value ..."]

SCALE ?= micro
LAUNCHER ?= local
RESULTS ?= results
GPUS ?= $(if $(filter micro,$(SCALE)),0,1)
HOURS ?= 4
JOBS_PER_GPU ?= 1
NODES_PER_CELL ?= 1
SWEEP = experiment=$(EXP) scale=$(SCALE) execution.results=$(RESULTS) $(SET)
# Cells at a time in one SLURM job: JOBS_PER_GPU on each of its GPUs, or that many on its cores where it has none.
AT_A_TIME = $(if $(GPUS_PER_CELL),1,$(shell echo $$(( $(JOBS_PER_GPU) * ($(GPUS) > 0 ? $(GPUS) : 1) ))))
# One cell over several GPUs: as many processes train it, one for each GPU, on one node or several.
RANKS_OF_A_NODE = $(shell echo $$(( $(GPUS_PER_CELL) / $(NODES_PER_CELL) )))
GPUS_OF_A_NODE = $(if $(filter 0,$(GPUS)),0,$(if $(GPUS_PER_CELL),$(RANKS_OF_A_NODE),$(GPUS)))

sweep: install ## run all cells of an experiment: EXP=NAME [SCALE=micro LAUNCHER=local|slurm]; docs/cluster.md
	@test -z "$(GPUS_PER_CELL)" || [ $$(( $(GPUS_PER_CELL) % $(NODES_PER_CELL) )) = 0 ] \
	  || { echo "make sweep: GPUS_PER_CELL=$(GPUS_PER_CELL) does not divide among NODES_PER_CELL=$(NODES_PER_CELL) nodes" >&2; exit 2; }
	@test -n "$(EXP)" || { echo "make sweep: say which experiment: EXP=NAME ($(BIN)/weight-decay --info lists them)" >&2; exit 2; }
ifeq ($(LAUNCHER),slurm)
	$(BIN)/weight-decay -m hydra/launcher=slurm $(SWEEP) jobs=$(AT_A_TIME) $(if $(CELLS_PER_JOB),cells_per_job=$(CELLS_PER_JOB)) \
	  hydra.launcher.cpus_per_task=$(AT_A_TIME) hydra.launcher.timeout_min=$$(awk 'BEGIN { printf "%d", 60 * $(HOURS) + 0.5 }') \
	  $(if $(PARTITION),hydra.launcher.partition=$(PARTITION)) $(if $(filter-out 0,$(GPUS_OF_A_NODE)),hydra.launcher.gpus_per_node=$(GPUS_OF_A_NODE)) \
	  $(if $(GPUS_PER_CELL),hydra.launcher.nodes=$(NODES_PER_CELL) hydra.launcher.tasks_per_node=$(RANKS_OF_A_NODE))
else ifeq ($(LAUNCHER),local)
	$(if $(GPUS_PER_CELL),$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node=$(GPUS_PER_CELL) -m weight_decay $(SWEEP),$(BIN)/weight-decay $(SWEEP) jobs=$(JOBS))
else
	@echo "make sweep: LAUNCHER must be local or slurm, got $(LAUNCHER)" >&2; exit 2
endif

status: install ## waiting, running, completed, diverged, failed, stale: [EXP=NAME]
	@$(BIN)/weight-decay status $(EXP) results=$(RESULTS)

watch: install ## the same, live, with sparklines of loss, effective LR, Jacobian norm: [EXP=NAME]; q quits
	@$(BIN)/weight-decay watch $(EXP) results=$(RESULTS)

# From the tables alone, so also in a fresh clone.
claims figures report: install ## verdicts of all claims | every figure | both on one page, results/report.html
	@$(BIN)/weight-decay $@ results=$(RESULTS)

# Fresh seeds of the runs behind one claim, in a folder of their own, then whether its verdict stands.
verify: install ## run one claim again with fresh seeds at micro; does its verdict stand? CLAIM=KEY
	@test -n "$(CLAIM)" || { echo "make verify: say which claim: CLAIM=lower_end (the first column of results/tables/claims.csv)" >&2; exit 2; }
	@told=$$($(BIN)/weight-decay verify $(CLAIM) results=$(RESULTS)) && echo "$$told" | tail -n +2 && \
	  set -- $$(echo "$$told" | head -1) && \
	  $(BIN)/weight-decay experiment=$$1 scale=micro seeds=$$2 jobs=$(JOBS) tracking=disabled execution.results=$(RESULTS)/verify && \
	  $(BIN)/weight-decay collect $$1 results=$(RESULTS)/verify drop=yes && \
	  $(BIN)/weight-decay verify $(CLAIM) results=$(RESULTS) fresh=$(RESULTS)/verify

sync: install ## send runs that were logged offline to W&B: [EXP=NAME]
	$(BIN)/weight-decay sync $(EXP) results=$(RESULTS)

dashboard: install ## make the W&B report: ENTITY=NAME
	$(BIN)/weight-decay dashboard entity=$(ENTITY)

# Root on Debian; elsewhere it says why not and passes, so that CI can always call it.
test-cluster: install ## SLURM on this one machine, tested as on a cluster
	@scripts/one_node_slurm.sh install || { test $$? = 3 && exit 0; exit 1; }; \
	  WEIGHT_DECAY_CLUSTER=1 $(BIN)/python -m pytest -s -rs tests/cluster/test_slurm.py

# Faults in folders, disks, processes, clocks, command lines and data; docs/reliability.md. [SHARE=0.1] [SEED=0]
hunt: install ## thousands of faults and hostile inputs: nothing may be silently wrong (docs/reliability.md) [SHARE=0.1] [SEED=0]
	$(BIN)/python tests/hunt share=$(or $(SHARE),1.0) seed=$(or $(SEED),0)

# 200 cells, two workers, random kills for 10 minutes.
soak: install ## 200 cells, two workers, random kills for 10 minutes
	WEIGHT_DECAY_SOAK=1 $(BIN)/python -m pytest -s tests/cluster/test_soak.py

# -- a GPU: docs/gpu.md -------------------------------------------------------------------------------------------
# The pieces one by one, each under ten minutes: make gpu-check PIECES="environment runs" (--list names them).
PYTHON_VERSION ?= 3.12
BUNDLE ?= gpu-bundle

gpu-check: install ## is it right and fast on this machine's GPU? [PIECES=...]; docs/gpu.md
	@$(BIN)/python scripts/gpu_check $(PIECES)

# A folder of wheels without torch, for: python scripts/gpu_check --bundle gpu-bundle, where there is only Python and torch.
gpu-bundle: install ## what gpu-check needs where there is no network
	@$(BIN)/python scripts/gpu_check/bundle.py $(BUNDLE) --python $(PYTHON_VERSION)
