# Every target works on a machine that has git, GNU make and Python 3.11 to 3.13. `make` alone prints this help.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install report data kaggle colab test test-hosts lint format lab open app bench lock clean clean-runs

PYTHON ?= python3
STUDY ?= demo
DATA ?=
FORCE ?=
SMOKE ?=
V ?=
RUN ?=
FROM ?=
ADDRESS ?=
TO ?=
ACCELERATOR ?= tpu
PUSH ?=
RESUME ?=
HOURS ?=
DATASET ?=
SCHEDULE ?=
PORT ?=
BROWSE ?=
FULL ?=
# What a person gives is text, for make and for the shell: `value` keeps make from expanding it, and recipes read it from the
# environment, as "$$STUDY". A path with quotes, or `$(...)` in a name, is never run as a command.
GIVEN := PYTHON STUDY DATA FORCE SMOKE V RUN FROM ADDRESS TO ACCELERATOR PUSH RESUME HOURS DATASET SCHEDULE PORT BROWSE FULL
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)
VENV := .venv/.installed
BIN := .venv/bin
# `if` on the stripped value: FORCE=0 and FORCE= are no.
FORCED := $(filter-out 0 no false,$(strip $(FORCE)))
SMOKED := $(filter-out 0 no false,$(strip $(SMOKE)))
override VERBOSE := $(if $(filter-out 0 no false,$(strip $(V))),--verbose)
PUSHED := $(filter-out 0 no false,$(strip $(PUSH)))
SCHEDULED := $(filter-out 0 no false,$(strip $(SCHEDULE)))
BROWSED := $(filter-out 0 no false,$(strip $(BROWSE)))

help:  ## print this help
	@echo "pneumolib: from parameter files to pages"
	@awk -F ':.*## ' '/^##@ / {print "\n" substr($$0, 5)} /^##= / {printf "%16s%s\n", "", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Start
install: $(VENV)  ## build .venv from the lock; every other target does so first

report: $(VENV)  ## run what is due of STUDY and write reports/STUDY/index.html
##= STUDY=demo  DATA=<folder with train/ val/ test/>  FORCE=1  SMOKE=1 (small)  V=1 (shows each cell)
	@$(BIN)/python -m pneumolib report $(if $(DATA),--data "$$DATA") $(if $(FORCED),--force) $(if $(SMOKED),--smoke) $(VERBOSE) -- "$$STUDY"

##@ Research
data: $(VENV)  ## fetch the real radiographs into data/chest_xray
##= FROM=tfrecord|kaggle|<file.zip>  ADDRESS=<of the TFRecord files, or owner/name>  TO=data/chest_xray
	@$(BIN)/python -m pneumolib data $(if $(FROM),--from "$$FROM") $(if $(ADDRESS),--address "$$ADDRESS") $(if $(TO),--to "$$TO")

lab: $(VENV)  ## open JupyterLab; what notebooks write goes to runs/interactive/
	@$(BIN)/jupyter lab

open: $(VENV)  ## open a copy of RUN's notebook with its parameters injected
##= RUN=demo/03_baseline_cnn  DATA=...  SMOKE=1
	@test -n "$$RUN" || { echo "make open needs a run, such as RUN=demo/03_baseline_cnn" >&2; exit 2; }
	@$(BIN)/python -m pneumolib open $(if $(DATA),--data "$$DATA") $(if $(SMOKED),--smoke) -- "$$RUN"

app: $(VENV)  ## show a trained model on a page of this machine: drop images, read predicted classes
##= RUN=<study>/<run> (the last one trained)  PORT=8501  BROWSE=1 (opens a browser)
	@$(BIN)/python -m pneumolib app $(if $(PORT),--port "$$PORT") $(if $(BROWSED),--browse) $(if $(RUN),-- "$$RUN")

##@ Other machines
kaggle: $(VENV)  ## build one notebook that carries STUDY, in build/kaggle/
##= STUDY=demo  ACCELERATOR=tpu|gpu|none  HOURS=8.5  SMOKE=1  PUSH=1 (runs it there and fetches the reports)
##= RESUME=1|owner/notebook  DATASET=owner/name
	@$(BIN)/python -m pneumolib kaggle --accelerator "$$ACCELERATOR" $(if $(SMOKED),--smoke) $(if $(HOURS),--hours "$$HOURS") $(if $(PUSHED),--push) \
		$(if $(RESUME),--resume "$$RESUME") $(if $(DATASET),--dataset "$$DATASET") -- "$$STUDY"

colab: $(VENV)  ## build the same for Colab and print the commands that run it
##= STUDY=demo  ACCELERATOR=tpu|gpu|none  HOURS=...  SMOKE=1  SCHEDULE=1 (every week on Google Cloud)
	@$(BIN)/python -m pneumolib colab --accelerator "$$ACCELERATOR" $(if $(SMOKED),--smoke) $(if $(HOURS),--hours "$$HOURS") \
		$(if $(SCHEDULED),--schedule) -- "$$STUDY"

##@ Developers
test: $(VENV)  ## run the tests; those of pages in a browser are skipped without Chromium
	@$(BIN)/python -m pytest

test-hosts: $(VENV)  ## run the slow tests: whole notebooks, kills, bundles as on Kaggle, several devices, versions of Colab and Kaggle
	@$(BIN)/python -m pytest -m "hosts or slow"
	@$(BIN)/python tools/try_hosts.py

lint: $(VENV)  ## check style of code and notebooks, and that notebooks hold no outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify --extra-keys "$(NBSTRIPOUT_KEYS)" notebooks/*.ipynb

format: $(VENV)  ## put code and notebooks into shape, strip outputs
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/nbstripout --extra-keys "$(NBSTRIPOUT_KEYS)" notebooks/*.ipynb

bench: $(VENV)  ## measure speed, as ratios in one run of ten minutes; FULL=1: all parts and cells, in an hour
	@$(BIN)/python benchmarks/input_pipeline.py $(if $(FULL),,--rounds 2 --images 192)
	@$(BIN)/python benchmarks/data_audit.py
	@$(BIN)/python benchmarks/training.py $(if $(FULL),,--parts 1)
	@$(BIN)/python benchmarks/evaluation.py
	@$(BIN)/python benchmarks/coverage.py $(if $(FULL),--full)
	@$(BIN)/python benchmarks/prediction.py
	@$(BIN)/python benchmarks/scaling.py $(if $(FULL),,--rounds 2)

lock: $(VENV)  ## resolve the three locks anew and bring environment.yml in step
	@$(BIN)/uv pip compile pyproject.toml --extra cpu --extra lab --extra app --extra export --extra dev $(LOCKED) --output-file requirements.lock
	@for extra in kaggle snakemake; do sed -n "s/^$$extra = \[\"\(.*\)\"\]$$/\1/p" pyproject.toml | \
		$(BIN)/uv pip compile - --constraint requirements.lock $(LOCKED) --output-file requirements.$$extra.lock || exit; done
	@$(BIN)/python tools/environment.py

clean:  ## delete .venv, caches, drawn images and pages; results in runs/ are kept
	rm -rf .venv .cache build data/demo* data/smoke* reports/*/ reports/index.html
	rm -rf .pytest_cache .ruff_cache *.egg-info $$(find pneumolib tests benchmarks -name __pycache__)

clean-runs:  ## delete every result in runs/, hours of training among them
	rm -rf runs

LOCKED := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet --upgrade
NBSTRIPOUT_KEYS := metadata.papermill metadata.widgets metadata.kaggle metadata.colab cell.metadata.papermill

# uv fetches and compiles on all cores, in half of pip's time; pip itself installs it, by the lock's own hashes. It is asked for
# the index that pip is set to. Where it cannot install, pip does.
UV = awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' $< > .venv/uv.txt && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r .venv/uv.txt && \
	index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}} && \
	$${index:+env UV_DEFAULT_INDEX="$$index"} $(BIN)/uv pip install -q --python $(BIN)/python --cache-dir .venv/fetching \
		--compile-bytecode --require-hashes -r $<

# What pip prints: a line for every 25 packages, and all from an error on.
PACKAGES = awk '/^ *(ERROR|error|Traceback)/ {failed = 1} failed {print; next} /^(Collecting|Processing) / && ++n % 25 == 0 {print "  " n " packages fetched"; fflush()} \
	/^Installing collected/ {print "  all " n " packages fetched; unpacking them takes a minute or two"; fflush()}'
PIP = { $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --require-hashes -r $< 2>&1 \
	&& touch .venv/fetched; } | $(PACKAGES) && test -e .venv/fetched

# The stamp is a copy of the lock, written last: an install that was cut short is done again, and a lock that was only
# touched installs nothing.
$(VENV): requirements.lock
	@"$$PYTHON" -c 'import os, sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, %s is %d.%d. Name one: make PYTHON=python3.12 ..." % (os.environ["PYTHON"], *v))'
	@cmp -s $< $@ && touch $@ || { \
		rm -f $@ .venv/fetched && echo "Installing the locked packages into .venv (a few minutes, once)" && \
		"$$PYTHON" -m venv .venv && \
		{ { $(UV); } || { echo "  uv could not; pip takes longer" && $(PIP); }; } && rm -rf .venv/fetching && echo "  pneumolib itself" && \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e . && \
		$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (pneumolib)" >/dev/null && \
		cp $< $@; }
