# Everything works on a machine with Python 3.11 and make: the first call sets up .venv, later ones are fast.
#
#   make demo                              the node on a rendered flight through a room; picture in out/demo
#   make demo BAG=path IMAGE_TOPIC=/topic  the same on a bag of yours
#   make test                              lint, types, tests
#   make fuzz N=50000 SEED=1               damaged messages for everything that reads messages
#   make soak MINUTES=30                   the node, treated badly for a while
#   make bench                             every engine and model beside ORB and SIFT; report in out/bench
#   make lock | sbom                       requirements.lock anew; what is installed, as out/sbom.json (CycloneDX)
#   make mutants                           are faults in the core seen by its tests? hours; see CONTRIBUTING.md
#   make setup | lint | test-slow | clean | distclean
#
# PYTHON=python3.12 chooses the interpreter, PIP_ARGS="..." is passed to pip.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
OUT ?= out
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
ROOM := $(OUT)/demo/room
ROOM_BAG := $(OUT)/demo/room_bag

# ROS comes from wheels in the venv and finds its share folders there; a sourced /opt/ros would be mixed with it.
export AMENT_PREFIX_PATH := $(abspath $(VENV))
ifneq ($(READY),)
unexport PYTHONPATH LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE ROS_DISTRO RMW_IMPLEMENTATION COLCON_PREFIX_PATH
endif

.PHONY: help setup demo test test-slow fuzz soak bench lock sbom mutants lint clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

$(PY):
	@test -n "$(PYTHON)" || { echo "make: no python3.11 or python3 found; name one by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "make: $(PYTHON) is not Python 3.11 or 3.12; name one by PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# the stamp is written last: a set-up that was cut off is done again
$(READY): requirements.lock setup.py | $(PY)
	@echo "setting up $(VENV); the first time downloads a few gigabytes"
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --require-hashes --no-deps -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

ifdef BAG
demo: $(READY)
	$(PY) -m samfeat_ros.replay.demo "$(BAG)" --output $(OUT)/demo $(if $(IMAGE_TOPIC),--image-topic $(IMAGE_TOPIC)) $(DEMO_ARGS)
else
demo: $(READY) $(ROOM_BAG)/metadata.yaml
	$(PY) -m samfeat_ros.replay.demo $(ROOM_BAG) --output $(OUT)/demo $(DEMO_ARGS)
endif

$(ROOM)/rendered.json: training/data/scenes.py training/render_sequence.py | $(READY)
	@rm -f $@
	$(PY) -m training.render_sequence --output $(ROOM) --scene room

$(ROOM_BAG)/metadata.yaml: $(ROOM)/rendered.json samfeat_ros/replay/sequence_to_bag.py | $(READY)
	$(PY) -m samfeat_ros.replay.sequence_to_bag $(ROOM) $(ROOM_BAG) --overwrite

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -q -m "not slow and not gpu"

test-slow: $(READY)
	$(PY) -m pytest -q -m "slow or gpu"

# every package with its hashes, for Linux on x86_64; Python 3.12 takes the same versions. After a change of requirements
lock: $(PY)
	$(PY) -m uv pip compile --quiet --no-config --default-index https://pypi.org/simple --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
		$(LOCK_ARGS) requirements-dev.txt --output-file requirements.lock

sbom: $(READY)
	@mkdir -p $(OUT)
	$(PY) -m cyclonedx_py environment --output-reproducible --output-file $(OUT)/sbom.json $(PY)

N ?= 50000
SEED ?= 1
fuzz: $(READY)
	$(PY) test/fuzz.py -n $(N) --seed $(SEED)

MINUTES ?= 30
soak: $(READY)
	$(PY) test/soak.py --minutes $(MINUTES) --seed $(SEED) --output $(OUT)/soak

# BENCH_ARGS="--peer module:function" measures one of yours in the same run
bench: $(READY)
	$(PY) benchmarks/bench.py --output $(OUT)/bench $(BENCH_ARGS)

# MUTANTS="NAME ..." takes some of them; * stands for anything
mutants: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m mutmut run $(MUTANTS)
	@$(PY) -m mutmut results --all true | sed 's/.*: //' | sort | uniq -c

clean:
	rm -rf $(OUT) mutants build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# ---- training: docs/training.md ----
# A machine that has PyTorch and no registry runs its own Python: make train-samfeat PY=python3 READY=

# Configurations take the data's folder from SAMFEAT_DATA: docs/data.md
ifdef DATA
export SAMFEAT_DATA := $(DATA)
else
DATA := $(or $(SAMFEAT_DATA),../shared/data)
endif
RUNS ?= runs
TRAIN := $(PY) -m training.train
TEACHER = --set data.teacher=$(OUT)/teacher
PREPARED = $(TEACHER) --set 'data.pairs=[$(OUT)/pairs/kitchen,$(OUT)/pairs/scenes]'

.PHONY: teach teach-sam megadepth train-paper-megadepth labels features pairs train-samfeat train-paper train-nano train-nano-distilled ablation evaluate-runs

teach: $(READY)
	$(PY) -m training.teach annotations $(DATA)/photos $(DATA)/segments $(OUT)/teacher

# SAM=checkpoint, and MEGADEPTH=folder SCENE_INFO=folder of its photographs and pairs
SAM_MODEL ?= vit_h
teach-sam: $(READY)
	for photos in $(DATA)/photos $(MEGADEPTH); do $(PY) -m training.teach sam "$$photos" $(OUT)/teacher_sam \
		--checkpoint $(SAM) --model $(SAM_MODEL) $(TEACH_ARGS) || exit; done

megadepth: $(READY)
	$(PY) -m training.pairs megadepth --root $(MEGADEPTH) --scene-info $(SCENE_INFO) --output $(OUT)/pairs/megadepth

train-paper-megadepth: teach-sam megadepth labels
	$(TRAIN) --config config/train/samfeat_paper.yaml --output $(RUNS)/paper_megadepth \
		--set data.teacher=$(OUT)/teacher_sam --set data.labels=$(OUT)/labels --set 'data.pairs=[$(OUT)/pairs/megadepth]' \
		--set data.parallax=0.75 $(TRAIN_ARGS)

EXTRACTOR ?= samfeat=$(RUNS)/samfeat/best.safetensors
features: $(READY)
	$(PY) -m training.label features $(DATA)/photos $(OUT)/features --extractor $(EXTRACTOR)

pairs: $(READY)
	$(PY) -m training.pairs posed --folder $(DATA)/posed/kitchen_rgbd --kinect --pairs 200 --output $(OUT)/pairs/kitchen
	$(PY) -m training.pairs scenes --textures $(DATA)/photos --pairs 400 --output $(OUT)/pairs/scenes

train-samfeat: $(READY)
	$(TRAIN) --config config/train/samfeat.yaml --output $(RUNS)/samfeat $(PREPARED) $(TRAIN_ARGS)

# Keypoint labels are for the paper's L_det, which no other configuration uses.
labels: $(READY)
	$(PY) -m training.label photos $(DATA)/photos $(OUT)/labels --base shi-tomasi

train-paper: labels
	$(TRAIN) --config config/train/samfeat_paper.yaml --output $(RUNS)/paper $(TEACHER) \
		--set data.labels=$(OUT)/labels $(TRAIN_ARGS)

train-nano: $(READY)
	$(TRAIN) --config config/train/samfeat_nano.yaml --output $(RUNS)/nano $(PREPARED) $(TRAIN_ARGS)

train-nano-distilled: $(READY)
	$(TRAIN) --config config/train/samfeat_nano_distilled.yaml --output $(RUNS)/nano_distilled $(PREPARED) \
		--set data.features=$(OUT)/features $(TRAIN_ARGS)

ablation: $(READY)
	$(PY) -m training.ablate --config config/train/samfeat_nano.yaml --output $(RUNS)/ablation $(PREPARED) $(TRAIN_ARGS)

evaluate-runs: $(READY)
	$(PY) -m training.evaluate --data $(DATA)/eval --output $(OUT)/evaluation $(foreach run,$(wildcard $(RUNS)/*/best.safetensors),\
		--extractor $(if $(findstring nano,$(run)),samfeat-nano,$(if $(findstring scfeat,$(run)),scfeat,samfeat))=$(run))
