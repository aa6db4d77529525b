# Thin on purpose: every command also runs bare from the root, with .venv/bin on PATH.
.DEFAULT_GOAL := help
BIN := .venv/bin
GVISOR := /usr/local/lib/sandfleet/gvisor
# The newest runsc that the set-up made comes before others on PATH; SANDFLEET_RUNSC__PATH outranks both.
export PATH := $(GVISOR)/bin:$(PATH)
OLD := SANDFLEET_RUNSC__PATH=$(GVISOR)/debian/runsc
# What depends on runsc: these tests run on both releases. No sandbox runs while images are unpacked or the starter is made, and
# it is the worker that needs descriptors for 128 spares.
RELEASE_TESTS := tests/sandbox tests/integration/test_exits.py \
	--ignore tests/sandbox/test_images_hostile.py \
	--deselect tests/sandbox/test_descriptors.py::test_the_usual_soft_limit_is_enough_for_64_jobs_at_once_and_128_spares \
	--deselect tests/sandbox/test_images.py::test_the_python_starter_comes_out_the_same_again
# Makes the starter images once for all runs of pytest that follow, in a folder that goes with the shell.
WITH_IMAGES := trap 'exit 130' INT TERM; [ -n "$$TEST_IMAGES_ROOT" ] || \
	{ export TEST_IMAGES_ROOT="$$(mktemp -d -t sandfleet-images-XXXXXX)"; trap 'rm -rf "$$TEST_IMAGES_ROOT"' EXIT; };
CONFORMANCE := tests/sandbox/test_conformance.py tests/sandbox/test_prepared_row.py
# What needs neither runsc nor a worker.
FAST_TESTS := tests/unit $(wildcard tests/integration/*producer_*) --ignore tests/integration/producer_redis/test_encoders.py \
	$(addprefix tests/docs/test_,contributing.py identifiers.py links.py measures.py reference.py)

.PHONY: help setup native demo demo-night test test-fast test-releases test-upgrade test-retries test-big test-store test-images test-languages test-redis test-compose test-conformance test-vm check docs renew bench hosts soak clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## Install what is missing on this machine and make .venv (idempotent)
	@scripts/setup.sh

native: ## Compile the job's init again if its source is newer
	@$(BIN)/python worker/hatch_build.py

demo: ## Run a batch of good and bad programs through the whole product and check each outcome
	@scripts/setup.sh --without-test-servers
	@$(BIN)/python demo/demo.py

demo-night: setup ## A night's batch of 500 cases in minutes: a producer and a worker are killed; ARGS="--cases 200" is a short one
	@$(BIN)/python demo/night.py $(ARGS)

test: setup ## Run all tests, then those that depend on runsc once more on the release of 2024; ARGS="-k name" goes to pytest
	@$(WITH_IMAGES) $(BIN)/python -m pytest $(ARGS) \
	$(if $(ARGS)$(SANDFLEET_RUNSC__PATH),,&& $(OLD) $(BIN)/python -m pytest $(RELEASE_TESTS))

test-fast: setup ## Run the tests of the parts, and of producer and contract on a real Redis, in less than a minute
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(FAST_TESTS) -k "not sandbox_fleet and not sample_jobs and not killed and not pyright_strict" $(ARGS)

test-releases: setup ## Run a thousand jobs on each of three releases of runsc, then the tests that depend on it on that of 2025
	@gvisor/build.sh $(GVISOR) 20250503 >/dev/null
	@$(WITH_IMAGES) $(BIN)/python tests/chaos/compare_releases.py --images "$$TEST_IMAGES_ROOT" $(ARGS) && \
	SANDFLEET_RUNSC__PATH=$(GVISOR)/release-20250503.0/runsc $(BIN)/python -m pytest $(RELEASE_TESTS)

test-upgrade: setup ## Let workers and producers of an earlier commit and of this one share a Redis, in minutes; ARGS="--commit abc1234"
	@$(WITH_IMAGES) $(BIN)/python tests/chaos/mixed_releases.py --images "$$TEST_IMAGES_ROOT" $(ARGS)

test-retries: setup ## A batch of 100,000 jobs of which two producers run 25,000 again at the same moment
	@TEST_RETRIED_BATCH=100000 $(BIN)/python -m pytest tests/integration/test_runs.py -k quarter --timeout 7200 -s

test-big: setup ## The table of a batch of a million jobs in each format, and a history of a million runs: killed, compared, measured; an hour
	@TEST_HISTORY_ROWS=1000000 TEST_HISTORY_JOBS=100000 TEST_HISTORY_KILLS=200 $(BIN)/python -m pytest -s tests/integration/history tests/integration/pages/test_large_history.py \
	-k "big or killed or 300_ms" --timeout 3600 $(ARGS)
	@TEST_RESULTS_JOBS=1000000 $(BIN)/python -m pytest -s tests/integration/producer_redis/test_results.py -k killed --timeout 1800 $(ARGS)
	@TEST_PAGES_JOBS=100000 $(BIN)/python -m pytest -s tests/integration/pages/test_real_redis.py -k count_the_same --timeout 1800 $(ARGS)

test-store: setup ## The store with 1 GB and its races many times; 1,000 jobs that share 100 MB, and 100 with 64 MiB in and out each; half an hour
	@$(WITH_IMAGES) TEST_STORE_BYTES=1000000000 TEST_STORE_ROUNDS=20 TEST_STORE_LARGE=1 TEST_TRANSFERS=100 \
	$(BIN)/python -m pytest tests/unit/test_store_settings.py tests/integration/store tests/integration/test_large_files.py \
	tests/sandbox/test_transfer_memory.py --timeout 1800 $(ARGS)

test-images: setup ## Refuse images of a million files and more; build each ready recipe twice, run its language, and draw 500 charts: downloads 500 MB, 40 minutes
	@root=$$(mktemp -d -t sandfleet-recipes-XXXXXX); trap 'rm -rf "$$root"' EXIT; trap 'exit 130' INT TERM; \
	TEST_READY_RECIPES="$$root" $(BIN)/python -m pytest -s -m images tests/sandbox tests/integration/test_charts_ready.py $(ARGS)

test-languages: setup ## Compile and run programs of nine languages over a real fleet; builds their images in TEST_LANGUAGES_ROOT: downloads 500 MB
	@root="$${TEST_LANGUAGES_ROOT:-$$(mktemp -d -t sandfleet-languages-XXXXXX)}"; trap 'exit 130' INT TERM; \
	[ -n "$$TEST_LANGUAGES_ROOT" ] || trap 'rm -rf "$$root"' EXIT; \
	TEST_LANGUAGES_ROOT="$$root" $(BIN)/python -m pytest -s -m images tests/integration/test_languages_ready.py $(ARGS)

test-redis: setup ## Fail Redis over again and again while batches run: a primary, two replicas, three sentinels; ten minutes; ARGS="--rounds 3"
	@$(WITH_IMAGES) $(BIN)/python tests/chaos/fail_overs.py --images "$$TEST_IMAGES_ROOT" $(ARGS)

test-compose: setup ## Start docker-compose.yml on a Docker engine of its own: a batch on three workers, one is killed, one drained; ten minutes
	@tests/compose/run.sh

test-conformance: setup ## Run 750 programs and some of CPython's own tests cold and prepared, on each Python here and each release of runsc, and 1,000 prepared jobs in a row; an hour
	@$(WITH_IMAGES) export TEST_CONFORMANCE=all TEST_PREPARED_JOBS=1000; \
	$(BIN)/python -m pytest -m "not images and not vm" tests/conformance $(CONFORMANCE) $(ARGS) && \
	$(OLD) $(BIN)/python -m pytest $(CONFORMANCE) $(ARGS)

test-vm: setup ## The tests of what cgroups decide, on a host of cgroup v2: Debian 13 in qemu; a quarter of an hour; ARGS="tests/sandbox/test_limits.py"
	@tests/vm/run.sh $(ARGS)

check: setup ## Lint, format, types, and the walls between the packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

docs: setup ## Build the docs site in build/docs; a dead link, a missing anchor or an orphan page fails it
	@$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

renew: ## Make again what is made from the code: tables of the reference, and the lists of what is not run, too long or to be renamed
	@for program in scripts/*_table.py scripts/*_page.py scripts/*_pages.py tests/support/pages.py tests/support/identifiers.py \
	tests/support/measures.py; do $(BIN)/python "$$program" --write || exit 1; done

bench: setup ## Measure jobs side by side with bare runsc and stock Celery, in minutes; ARGS="--quick" for a glance
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -m pip install -qq --group bench -c constraints.txt
	@$(BIN)/python benchmarks/bench.py $(ARGS)
	@$(if $(filter-out --quick,$(ARGS)),,$(BIN)/python benchmarks/command_line.py $(ARGS))
	@$(if $(filter-out --quick,$(ARGS)),,$(BIN)/python benchmarks/hosts.py $(ARGS))
	@$(if $(ARGS),,$(BIN)/python benchmarks/redis_use.py)

hosts: setup ## The last part of it: one batch on one, two and three hosts (network namespaces)
	@$(BIN)/python benchmarks/hosts.py $(ARGS)

soak: setup ## Break workers, sandboxes, connections and Redis at random for minutes, some workers of an earlier commit; ARGS="--minutes 10 --seed 7"
	@$(BIN)/python tests/chaos/soak.py --earlier e5bcdee $(ARGS)

clean: ## Remove .venv, caches and compiled binaries; what the system got stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	rm -f worker/sandfleet_worker/sandbox/native/init worker/sandfleet_worker/sandbox/native/launch
	find config producer worker web tests -name __pycache__ -type d -prune -exec rm -rf {} +
