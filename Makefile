# make demo: set up and train both regimes on embedded data.   make test: set up and pass the tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# nproc counts OMP_NUM_THREADS as the number of cores where it is set; the sweep gives each job one thread itself.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)
DEMO := results/demo

.PHONY: help install demo test lint format benchmark clean-demo data-cifar5m data-tiny-imagenet data-openwebtext data-text

help:
	@echo "make demo                 train both regimes on embedded data, then show the effects (about 3 minutes on 2 cores)"
	@echo "make test                 run the tests (under 10 minutes on 2 cores)"
	@echo "make lint | format        ruff and mypy | ruff format"
	@echo "make benchmark            every benchmark in benchmarks/, each prints ratios measured side by side"
	@echo "make reproduce-over-training [SCALE=micro] [SETTINGS='...']  every vision experiment, then tables and figures"
	@echo "make reproduce-under-training [SCALE=micro] [SETTINGS='...']  every language-model experiment, then tables and figures"
	@echo "make data-cifar5m FROM=FOLDER        CIFAR-5m's part0..5.npz -> data/cifar5m"
	@echo "make data-tiny-imagenet FROM=FOLDER  tiny-imagenet-200 -> data/tiny_imagenet"
	@echo "make data-openwebtext [FROM=FOLDER]  OpenWebText -> data/openwebtext"
	@echo "make data-text FROM=PATH [NAME=text] [ENCODING=bytes]  .txt, .jsonl, .parquet -> data/NAME"
	@echo "                          (both texts: BPE=FOLDER with any copy of GPT-2's vocab.bpe and encoder.json)"
	@echo "make sweep EXP=NAME [SCALE=micro LAUNCHER=local|slurm]   run all cells of an experiment; docs/cluster.md"
	@echo "make status [EXP=NAME]    waiting, running, completed, diverged, failed, stale"
	@echo "make watch [EXP=NAME]     the same, live: sparklines of loss, effective LR, Jacobian norm; q quits"
	@echo "make claims | figures | report   verdicts of all claims | every figure | both on one page, results/report.html"
	@echo "make gpu-check [PIECES=...]  is it right and fast on this machine's GPU | make gpu-bundle: what that needs where there is no network"
	@echo "make hunt                 thousands of faults and hostile inputs: nothing may be silently wrong (docs/reliability.md)"
	@echo "make verify CLAIM=KEY     run one claim again with fresh seeds at micro; does its verdict stand?"
	@echo "make test-cluster | soak  the same on a real one-node SLURM | 200 cells with random kills"
	@echo "Everything else is the command $(BIN)/weight-decay (try --help and --info)."

install: $(VENV)/.installed

# Newer than pyproject.toml means installed; a half-finished installation leaves no stamp and is made again.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: Python 3.11 to 3.13 is needed, $(PYTHON) is `$(PYTHON) --version`; name another with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/weight-decay experiment=demo_over_training scale=micro execution.results=$(DEMO) jobs=$(JOBS)
	$(BIN)/weight-decay experiment=demo_under_training scale=micro execution.results=$(DEMO) jobs=$(JOBS)
	@$(BIN)/weight-decay demo-report results=$(DEMO)

test: install
	$(BIN)/python -m pytest -n $(JOBS) --durations=10

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install
	@for file in benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

data-cifar5m: install
	@test -n "$(FROM)" || { echo "make data-cifar5m: say where part0.npz to part5.npz are: FROM=FOLDER" >&2; exit 2; }
	$(BIN)/python scripts/prepare_cifar5m.py "$(FROM)" data/cifar5m

data-tiny-imagenet: install
	@test -n "$(FROM)" || { echo "make data-tiny-imagenet: say where the folder tiny-imagenet-200 is: FROM=FOLDER" >&2; exit 2; }
	$(BIN)/python scripts/prepare_tiny_imagenet.py "$(FROM)" data/tiny_imagenet

data-openwebtext: install
	$(BIN)/python scripts/prepare_openwebtext.py --root data $(if $(FROM),--source "$(FROM)") $(if $(BPE),--bpe "$(BPE)")

data-text: install
	@test -n "$(FROM)" || { echo "make data-text: say which text: FROM=PATH" >&2; exit 2; }
	$(BIN)/python scripts/prepare_text.py --from "$(FROM)" --target data/$(or $(NAME),text) \
	  $(if $(BPE),--bpe "$(BPE)") $(if $(ENCODING),--encoding "$(ENCODING)")

clean-demo:
	rm -rf $(DEMO)

# Figures 1-5, 10-18 and Tables 2, 3. A cell that several figures need is run once; a finished one is not run again.
# Every experiment is tried even if one before it fails, and the failure is the exit status.
SCALE ?= micro
OVER_TRAINING := fig01_cifar5m_size fig02_cifar10 fig02_real_images fig02d_tiny_imagenet fig11b_resnet18 fig16_spectra \
  fig03_grid_tiny_imagenet fig10_grid_cifar10 fig05_finetune tab02_ensemble fig15_sphere fig13_similarity \
  fig11a_vgg fig11c_resnet34

.PHONY: reproduce-over-training
reproduce-over-training: install
	@failed=; for experiment in $(OVER_TRAINING); do \
	  $(BIN)/weight-decay experiment=$$experiment scale=$(SCALE) jobs=$(JOBS) $(SETTINGS) || failed="$$failed $$experiment"; \
	done; \
	$(BIN)/weight-decay collect $(OVER_TRAINING) && $(BIN)/weight-decay figures || failed="$$failed tables-and-figures"; \
	if [ -n "$$failed" ]; then echo "not complete:$$failed" >&2; exit 1; fi

# -- sweeps and clusters: docs/cluster.md ------------------------------------------------------------------------
# make sweep EXP=fig03_grid SCALE=small LAUNCHER=slurm [PARTITION= GPUS= HOURS= JOBS_PER_GPU= CELLS_PER_JOB= SET="key=value ..."]
.PHONY: gpu-check gpu-bundle sweep status watch sync dashboard claims figures report test-cluster soak

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

sweep: install
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

status: install
	@$(BIN)/weight-decay status $(EXP) results=$(RESULTS)

watch: install
	@$(BIN)/weight-decay watch $(EXP) results=$(RESULTS)

# From the tables alone, so also in a fresh clone.
claims figures report: install
	@$(BIN)/weight-decay $@ results=$(RESULTS)

# Fresh seeds of the runs behind one claim, in a folder of their own, then whether its verdict stands.
.PHONY: verify
verify: install
	@test -n "$(CLAIM)" || { echo "make verify: say which claim: CLAIM=lower_end (the first column of results/tables/claims.csv)" >&2; exit 2; }
	@told=$$($(BIN)/weight-decay verify $(CLAIM) results=$(RESULTS)) && echo "$$told" | tail -n +2 && \
	  set -- $$(echo "$$told" | head -1) && \
	  $(BIN)/weight-decay experiment=$$1 scale=micro seeds=$$2 jobs=$(JOBS) tracking=disabled execution.results=$(RESULTS)/verify && \
	  $(BIN)/weight-decay collect $$1 results=$(RESULTS)/verify drop=yes && \
	  $(BIN)/weight-decay verify $(CLAIM) results=$(RESULTS) fresh=$(RESULTS)/verify

sync: install
	$(BIN)/weight-decay sync $(EXP) results=$(RESULTS)

dashboard: install
	$(BIN)/weight-decay dashboard entity=$(ENTITY)

# Root on Debian; elsewhere it says why not and passes, so that CI can always call it.
test-cluster: install
	@scripts/one_node_slurm.sh install || { test $$? = 3 && exit 0; exit 1; }; \
	  WEIGHT_DECAY_CLUSTER=1 $(BIN)/python -m pytest -s -rs tests/cluster/test_slurm.py

# Faults in folders, disks, processes, clocks, command lines and data; docs/reliability.md. [SHARE=0.1] [SEED=0]
.PHONY: hunt
hunt: install
	$(BIN)/python tests/hunt share=$(or $(SHARE),1.0) seed=$(or $(SEED),0)

# 200 cells, two workers, random kills for 10 minutes.
soak: install
	WEIGHT_DECAY_SOAK=1 $(BIN)/python -m pytest -s tests/cluster/test_soak.py

# -- every language-model experiment: the runs of Fig 6 first, which most others share ----------------------------
UNDER_TRAINING := fig06_language_model fig23_averaging fig07_effective_lr fig08_bfloat16_divergence \
  fig19_generalisation_gap fig20_layernorm_decay fig21_l2_penalty fig22_sgd_momentum constant_lr slower_decay \
  bfloat16_decay_lost bfloat16_replay effective_lr_matching

.PHONY: reproduce-under-training
reproduce-under-training: install
	@failed=; for experiment in $(UNDER_TRAINING); do \
	  $(BIN)/weight-decay experiment=$$experiment scale=$(SCALE) jobs=$(JOBS) $(SETTINGS) || failed="$$failed $$experiment"; \
	done; \
	$(BIN)/weight-decay collect $(UNDER_TRAINING) && $(BIN)/weight-decay figures || failed="$$failed tables-and-figures"; \
	if [ -n "$$failed" ]; then echo "not complete:$$failed" >&2; exit 1; fi

# -- a GPU: docs/gpu.md -------------------------------------------------------------------------------------------
# The pieces one by one, each under ten minutes: make gpu-check PIECES="environment runs" (--list names them).
PYTHON_VERSION ?= 3.12
BUNDLE ?= gpu-bundle

gpu-check: install
	@$(BIN)/python scripts/gpu_check $(PIECES)

# A folder of wheels without torch, for: python scripts/gpu_check --bundle gpu-bundle, where there is only Python and torch.
gpu-bundle: install
	@$(BIN)/python scripts/gpu_check/bundle.py $(BUNDLE) --python $(PYTHON_VERSION)
