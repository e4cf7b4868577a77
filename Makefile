# make demo: the main job on the embedded dataset.  make test: all tests.  make bench: how fast, beside the published
# code; half an hour.  make gpu: what a card can do, tested and timed; half an hour.  make slurm: the grid on a Slurm that
# it installs, as root on Debian; seven minutes.  make site: the pages, below site/html/; a minute.  Each sets up .venv first
# where it must.
.PHONY: demo test slurm site bench gpu notebooks lint setup
BIN := $(CURDIR)/.venv/bin
DEMO := runs/01_train_sglr_demo.ipynb

demo: setup
	@mkdir -p runs
	$(BIN)/papermill --no-progress-bar --log-output notebooks/01_train_sglr.ipynb $(DEMO)
	@echo "Executed notebook: $(DEMO)"
	@echo "Figure:            runs/figures/01_train_sglr_digits_mini.png"

# Notebooks are tested with runs and figures of their own, so that nothing is loaded that should be computed. One process
# a core, of one thread each: where there are more, they wait for each other, and are slower by a factor of ten. The
# longest come first, and train what others share; a failed test does not keep the notebooks from being tested.
LONGEST := $(wildcard $(addprefix notebooks/,13_* 12_* 03_* 07_* 09_* 01_* 06_*))
NOTEBOOKS := $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard notebooks/*.ipynb)))
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout 3600
test: export SGLR_OUT := $(CURDIR)/.test
test: export OMP_NUM_THREADS := 1
test: export LOKY_MAX_CPU_COUNT := 1
test: setup lint
	rm -rf .test
	status=0; \
	$(BIN)/pytest -n auto --dist worksteal || status=1; \
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(NBVAL) $(NOTEBOOKS) || status=1; \
	exit $$status

slurm: export SGLR_SLURM := 1
slurm: export OMP_NUM_THREADS := 1
slurm: setup
	$(BIN)/pytest tests/test_slurm.py $(SLURM_OPTIONS)

site: setup
	$(BIN)/sphinx-build -q -W --keep-going -E -c docs . site/html
	cp site/html/README.html site/html/index.html
	@echo "Site: site/html/index.html"

# BENCH_OPTIONS = --compile climbs that rung of the ladder too; others: python -m benchmarks.speed --help.
# glibc keeps freed memory on both sides, as it does in a run, see keep_freed_memory() in sglrlib/device.py.
bench: export MALLOC_MMAP_MAX_ := 0
bench: export MALLOC_TRIM_THRESHOLD_ := 8589934592
bench: export MALLOC_TOP_PAD_ := 268435456
bench: export OMP_WAIT_POLICY := PASSIVE
bench: setup
	$(BIN)/python -m benchmarks.speed $(BENCH_OPTIONS)

# GPU_OPTIONS: see python -m benchmarks.gpu --help.
gpu: setup
	$(BIN)/python -m benchmarks.gpu $(GPU_OPTIONS)

# Execute every notebook in place with its defaults, and drop what differs between two equal executions.
notebooks: setup
	for notebook in notebooks/*.ipynb; do \
	    $(BIN)/papermill --no-progress-bar $$notebook $$notebook || exit 1; \
	    $(BIN)/nbstripout --keep-output --keep-count --keep-id --extra-keys "metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution" $$notebook; \
	done

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

setup: .venv/ready
# Debian's Python comes without ensurepip: the system's pip fills the environment.
.venv/ready: requirements.txt pyproject.toml
	python3 -m venv --without-pip .venv
	python3 -m pip --python $(BIN)/python install --quiet -r requirements.txt -e .
	touch $@
