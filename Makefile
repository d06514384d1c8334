# Everything a newcomer needs: `make demo`, `make test`. Python 3.11 or later and make must be there, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where a processor-only torch comes from when there is no NVIDIA GPU (empty: from pip's own settings).
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Its two networks find the brain in heads with skull; what it needs beside them is not used.
DEEPBET := 1.0.2
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

.PHONY: demo wheel test test-cluster train-smoke check options image image-cpu bench clean

demo: $(VENV)/run.stamp ## environment, a synthetic subject, synthesis, scores, a picture
	$(BIN)/python -m app demo --output demo

wheel: $(VENV)/dev.stamp ## dist/tetrad-*.whl, the weights in it
	rm -rf build dist
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .

test: $(VENV)/dev.stamp ## the whole suite, shared out over the cores, with the memory settings that `python -m app` gives itself
	OMP_NUM_THREADS=1 GLIBC_TUNABLES="$$($(BIN)/python -c 'from app.core.startup import TUNABLES; print(TUNABLES)')" \
		$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not cluster"

test-cluster: $(VENV)/dev.stamp ## Ray, Slurm, Kubernetes and training over machines; what cannot be installed is skipped
	$(BIN)/pip install -q -r requirements-cluster.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster

CODE := app tests benchmarks setup.py
SMOKE := smoke-run
train-smoke: $(VENV)/dev.stamp ## the whole training loop, export and a synthesis, on phantoms
	rm -rf $(SMOKE)
	$(BIN)/python -m app phantom --output $(SMOKE)/data --count 2
	$(BIN)/python -m app phantom --output $(SMOKE)/unseen --seed 9
	$(BIN)/python -m app train segmenter --data $(SMOKE)/data --run $(SMOKE)/segmenter --cache $(SMOKE)/cache \
		--set schedule.steps=3 --set schedule.batch_size=2 --set data.min_brain_pixels=1000 \
		--set 'data.views=["axial"]' --set 'data.axial=[96,96]' --device cpu
	$(BIN)/python -m app export $(SMOKE)/segmenter --data $(SMOKE)/data --weights $(SMOKE)/weights --model segmenter \
		--score-on $(SMOKE)/unseen --device cpu
	$(BIN)/python -m app train smoke --data $(SMOKE)/data --run $(SMOKE)/run --cache $(SMOKE)/cache --validation $(SMOKE)/unseen \
		--weights $(SMOKE)/weights --device cpu
	$(BIN)/python -m app train smoke --data $(SMOKE)/data --run $(SMOKE)/run --cache $(SMOKE)/cache --validation $(SMOKE)/unseen \
		--weights $(SMOKE)/weights --device cpu --resume --set schedule.steps=8
	$(BIN)/python -m app export $(SMOKE)/run --data $(SMOKE)/data --cache $(SMOKE)/cache --weights $(SMOKE)/weights \
		--model smoke --score-on $(SMOKE)/unseen --device cpu
	$(BIN)/python -m app dropout --input $(SMOKE)/unseen --output $(SMOKE)/dropped
	$(BIN)/python -m app synthesize --input $(SMOKE)/dropped --output $(SMOKE)/made --weights $(SMOKE)/weights \
		--model smoke --on-error stop --device cpu
	$(BIN)/python -m app evaluate --prediction $(SMOKE)/made --reference $(SMOKE)/unseen
	$(BIN)/python -m app train tissnet_compact --data $(SMOKE)/data --run $(SMOKE)/tissnet --cache $(SMOKE)/cache --device cpu \
		--set schedule.steps=8 --set schedule.budget_minutes=0 --set tissnet.perceptibility_steps=3 --set 'data.patch=[32,32,16]'
	$(BIN)/python -m app export $(SMOKE)/tissnet --data $(SMOKE)/data --cache $(SMOKE)/cache --weights $(SMOKE)/weights \
		--model tissnet --score-on $(SMOKE)/unseen --device cpu
	$(BIN)/python -m app phantom --output $(SMOKE)/unpaired --seed 5
	rm $(SMOKE)/unpaired/*/*-t1c.nii.gz
	$(BIN)/python -m app train ds3net_compact --data $(SMOKE)/data --unpaired $(SMOKE)/unpaired --run $(SMOKE)/ds3net \
		--cache $(SMOKE)/range-ds3net --device cpu --set schedule.steps=6 --set schedule.budget_minutes=0 \
		--set 'data.axial=[96,96]' --set data.min_brain_pixels=1000 --set schedule.batch_size=2 --set optimizer.ema=0.5
	$(BIN)/python -m app export $(SMOKE)/ds3net --data $(SMOKE)/data --cache $(SMOKE)/range-ds3net --weights $(SMOKE)/weights \
		--model ds3net --score-on $(SMOKE)/unseen --device cpu
	$(BIN)/python -m app atlas --data $(SMOKE)/data --output $(SMOKE)/atlas.safetensors
	for recipe in cgsamr ucgsamr; do \
		$(BIN)/python -m app train $${recipe}_compact --data $(SMOKE)/data --run $(SMOKE)/$$recipe --cache $(SMOKE)/range --device cpu \
			--set cgsamr.preset=tiny --set 'data.axial=[96,96]' --set data.min_brain_pixels=1000 --set schedule.batch_size=2 \
			--set schedule.steps=25 --set schedule.budget_minutes=0 --set optimizer.ema=0.5 \
			--set data.atlas=$(SMOKE)/atlas.safetensors \
		&& $(BIN)/python -m app export $(SMOKE)/$$recipe --data $(SMOKE)/data --cache $(SMOKE)/range --weights $(SMOKE)/weights \
			--model $$recipe --score-on $(SMOKE)/unseen --device cpu \
		&& $(BIN)/python -m app simulate --lesions $(SMOKE)/unseen --output $(SMOKE)/exams-$$recipe --weights $(SMOKE)/weights \
			--model $$recipe --count 2 --scale 0.5..2 --mirror --move --device cpu || exit 1; \
	done
	$(BIN)/python -m app train segmenter --data $(SMOKE)/data --run $(SMOKE)/mixed --cache $(SMOKE)/cache --simulated $(SMOKE)/exams-cgsamr \
		--set data.simulated_share=0.5 --set schedule.steps=3 --set schedule.batch_size=2 --set data.min_brain_pixels=1000 \
		--set 'data.views=["axial"]' --set 'data.axial=[96,96]' --device cpu
	$(BIN)/python -m app segment --input $(SMOKE)/dropped --output $(SMOKE)/tumours --weights $(SMOKE)/weights \
		--model tissnet --on-error stop --device cpu
	$(BIN)/python -m app evaluate --reference $(SMOKE)/unseen --predicted-segmentations $(SMOKE)/tumours

check: $(VENV)/dev.stamp ## style, types, and who may import whom
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

options: $(VENV)/run.stamp ## the documentation's pages on the options of `synthesize` and on names
	$(BIN)/python -c 'from app.cli.options import options_page; print(options_page(), end="")' >docs/options.md
	$(BIN)/python -c 'from app.cli.names_page import names_page; print(names_page(), end="")' >docs/names.md

bench: $(VENV)/dev.stamp ## time and memory per subject, each step beside the released peer's way of running (half an hour)
	$(BIN)/python -m benchmarks speed --json bench.json
	$(BIN)/python -m benchmarks memory --preset half
	$(BIN)/python -m benchmarks batch

image: ## the container, for CUDA GPUs and processors
	docker build -t tetrad .

image-cpu: ## the container for processors only
	docker build -t tetrad:cpu --build-arg VARIANT=cpu .

clean:
	rm -rf $(VENV) demo $(SMOKE) build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Tetrad needs Python 3.11 or later; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "This Python cannot make environments; install its venv package (Debian: python3-venv)."; exit 1; }

# Without a GPU the CUDA libraries (2 GB) are left out; onnxruntime-gpu runs on processors as it is.
$(VENV)/requirements.txt: requirements.txt $(VENV)/bin/python
ifeq ($(GPU),yes)
	cp requirements.txt $@
else
	sed 's/^onnxruntime-gpu\[cuda,cudnn\]/onnxruntime-gpu/' requirements.txt >$@
	grep '^torch==' $@ >$(VENV)/torch.txt
	$(BIN)/pip install -q --retries 1 $(if $(CPU_INDEX),--extra-index-url $(CPU_INDEX)) -r $(VENV)/torch.txt
endif

$(VENV)/run.stamp: $(VENV)/requirements.txt
	$(BIN)/pip install -q -r $(VENV)/requirements.txt
	@touch $@

# The extras `train` and `dev`: not by `pip install .[dev]`, which would bring the CUDA libraries too.
EXTRAS = import tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(p for name in ("train", "dev") for p in extras[name] if not p.startswith("tetrad")), sep="\n")

$(VENV)/dev.stamp: $(VENV)/run.stamp pyproject.toml
	@$(BIN)/python -c '$(EXTRAS)' >$(VENV)/requirements-dev.txt
	$(BIN)/pip install -q -r $(VENV)/requirements.txt -r $(VENV)/requirements-dev.txt
	$(BIN)/pip install -q --no-deps deepbet==$(DEEPBET)
	@touch $@
