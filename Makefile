# Every command of the project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The first Python that runs and is new enough.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
MODEL ?= demo
PORT ?= 3000
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv
STUBS := worker/millrace_worker/proto/worker_pb2.py
RUST := $(shell find router proto -name '*.rs' -o -name '*.toml' -o -name '*.proto' | grep -v /target/) Cargo.toml Cargo.lock
NATIVE := $(shell find worker/kernels worker/transport -name '*.rs' -o -name '*.toml' -o -name '*.pyi') Cargo.toml Cargo.lock
# One torch thread in tests: on few cores two threads per process run far slower than one.
# Processes for tests: the `conftest.py` at the top of each group of tests says which of them stay together.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --max-worker-restart 0 --dist loadgroup
ROUTER := --workspace --locked --exclude millrace-kernels --exclude millrace-kernels-core --exclude millrace-transport
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false MILLRACE_ROUTER=$(CURDIR)/target/debug/millrace-router

.PHONY: chaos check-aarch64 check-without-avx512 docs fuzz fuzz-api help sanitize setup serve test test-rust test-python check check-rust check-python fmt bench bench-worker bench-quantized bench-step bench-roofline bench-grammars bench-health bench-router bench-overload bench-tenants bench-peers models soak proto lock lock-peers clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "Millrace needs Python 3.11 or newer: install it, or name it with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# The Python side without the router program, editable: what tests and checks need.
$(VENV)/.python: $(BIN)/uv pyproject.toml constraints.txt proto/worker.proto proto/build_stubs.py
	$(UV) pip install --quiet -c constraints.txt $$($(BIN)/python .ci/requirements.py test check)
	$(UV) pip install --quiet --no-deps -e .
	@touch $@

# The router program, compiled in release mode and installed beside Python.
$(VENV)/.router: $(VENV)/.python $(RUST) router/pyproject.toml
	@command -v cargo >/dev/null || { echo "Millrace's router is compiled here: install Rust 1.90 or newer (rustup) first."; exit 1; }
	$(UV) pip install --quiet --no-deps --reinstall-package millrace-router ./router
	@touch $@

# The worker's Python modules in Rust, compiled in release mode: the CPU kernels, for every instruction set at once, and
# its gRPC server.
$(VENV)/.native: $(VENV)/.python $(NATIVE)
	@command -v cargo >/dev/null || { echo "Millrace's worker is compiled here in part: install Rust 1.90 or newer (rustup) first."; exit 1; }
	$(UV) pip install --quiet --no-deps --reinstall-package millrace-kernels ./worker/kernels
	$(UV) pip install --quiet --no-deps --reinstall-package millrace-transport ./worker/transport
	@touch $@

setup: $(VENV)/.python $(VENV)/.native $(VENV)/.router ## install router, launcher and worker into .venv

serve: setup ## serve MODEL (default: the demo model) on PORT (default 3000); ARGS="…" goes to the launcher
	$(BIN)/millrace-launcher --model-id $(MODEL) --port $(PORT) $(ARGS)

test: test-rust test-python ## every test of both languages

test-rust:
	cargo test $(ROUTER)
	cargo test --release --locked -p millrace-kernels-core  # as they are installed: compiled once for both

# Examples are as good as built; with them the programs have the tests' dependencies, which are not compiled again.
test-python: $(VENV)/.python $(VENV)/.native
	cargo build $(ROUTER) --bins --examples
	$(TEST_ENV) $(PYTEST) worker/tests launcher/tests benchmarks/tests
	$(TEST_ENV) $(PYTEST) --no-loadscope-reorder integration-tests

check: check-rust check-python ## format, lints, types, import boundaries, sizes

check-rust:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@test "$$(cargo tree --locked -p millrace-scheduler -e normal,build --prefix none | wc -l)" = 1 || { echo "router/scheduler must have no dependency"; exit 1; }

check-python: $(VENV)/.python
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports
	$(BIN)/python .ci/sizes.py
	$(BIN)/python .ci/dependencies.py

AARCH64 := aarch64-unknown-linux-gnu
check-aarch64: ## that the worker's Rust compiles for AArch64 (fetches rustup's standard library for it)
	rustup target add $(AARCH64)
	PYO3_NO_PYTHON=1 cargo check --locked -p millrace-kernels -p millrace-transport --target $(AARCH64)

# Kernels as one would have them who never wrote AVX-512. The levels that are left say so, and so do the instructions.
WITHOUT_AVX512 := target/without-avx512
check-without-avx512: $(VENV)/.python $(VENV)/.native ## the tests of the kernels, built without AVX-512 (on x86-64, with objdump)
	CARGO_TARGET_DIR=$(WITHOUT_AVX512) cargo test --release --locked -p millrace-kernels-core --features without-avx512
	rm -rf $(WITHOUT_AVX512)/wheel
	CARGO_TARGET_DIR=$(CURDIR)/$(WITHOUT_AVX512) MATURIN_PEP517_ARGS="--locked --features without-avx512" \
		$(UV) pip install --quiet --no-deps --no-cache --target $(WITHOUT_AVX512)/wheel ./worker/kernels
	objdump -d $(WITHOUT_AVX512)/wheel/millrace_kernels/*.so | awk '/%[zxy]mm(1[6-9]|2[0-9]|3[01])|%zmm|%k[0-7]/ { print; exit 1 }'
	PYTHONPATH=$(WITHOUT_AVX512)/wheel $(BIN)/python -c 'from millrace_kernels import Machine; assert not [each for each in Machine.levels() if "512" in each]'
	$(TEST_ENV) PYTHONPATH=$(CURDIR)/$(WITHOUT_AVX512)/wheel $(PYTEST) worker/tests/kernels

fmt: $(VENV)/.python ## format everything
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: setup ## speed through HTTP against the in-process floor and `transformers serve`, into benchmarks/results/
	$(UV) pip install --quiet -c constraints.txt accelerate fastapi uvicorn
	$(BIN)/python -m benchmarks.serving $(ARGS)

# Peers live under target/peers, each in an environment of its own; `make bench-peers PEERS="openvino llama"` takes some.
PEERS ?= openvino vllm llama
PEERS_AT := target/peers
PEER = $(PEERS_AT)/$*

bench-peers: setup ## speed through HTTP against PEERS (openvino vllm llama), which it installs, into benchmarks/results/
	@for peer in $(sort $(patsubst openvino%,openvino,$(PEERS))); do \
		$(MAKE) --no-print-directory $(PEERS_AT)/$$peer/.installed || echo "$$peer is skipped: it could not be installed"; done
	$(BIN)/python -m benchmarks.peers $(ARGS) --peers $(PEERS)

$(PEERS_AT)/%/.environment: benchmarks/peers/%.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(PEER)
	$(BIN)/uv pip install --quiet --python $(PEER)/bin/python --no-deps -r $<
	@touch $@

$(PEERS_AT)/openvino/.installed: $(PEERS_AT)/openvino/.environment
	@touch $@

# The CPU build goes by another name than the one under which vLLM asks for its own version.
$(PEERS_AT)/vllm/.installed: $(PEERS_AT)/vllm/.environment
	$(@D)/bin/python benchmarks/peers/name_vllm.py
	@touch $@

# The source distribution of its Python bindings brings llama.cpp with its server, which is built for this machine.
$(PEERS_AT)/llama/.installed: $(PEERS_AT)/llama/.environment benchmarks/peers/llama-source.txt
	rm -rf $(@D)/download $(@D)/source && mkdir $(@D)/source
	$(@D)/bin/python -m pip download --quiet --no-deps --no-binary :all: -r benchmarks/peers/llama-source.txt -d $(@D)/download
	tar -xzf $(@D)/download/llama_cpp_python-*.tar.gz -C $(@D)/source --strip-components=3 --wildcards '*/vendor/llama.cpp'
	PATH=$(CURDIR)/$(@D)/bin:$$PATH $(@D)/bin/cmake -S $(@D)/source -B $(@D)/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
		-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >$(@D)/build.log 2>&1
	PATH=$(CURDIR)/$(@D)/bin:$$PATH $(@D)/bin/cmake --build $(@D)/build --target llama-server --parallel >>$(@D)/build.log 2>&1
	cp $(@D)/build/bin/llama-server $(@D)/bin/
	@touch $@

bench-worker: setup ## the worker's own work per step, and the seconds until the demo is ready
	$(BIN)/python -m benchmarks.worker_host_work
	$(BIN)/python -m benchmarks.startup

bench-step: setup ## where the time of a decoding step goes: kernels, Python, what lies between worker and client
	$(BIN)/python -m benchmarks.step_profile $(ARGS)

bench-roofline: setup ## decoding one row of the 1B shape against a plain read of memory, the two in turn
	$(BIN)/python -m benchmarks.roofline $(ARGS)

bench-quantized: setup ## linear layers of 8 and 4 bits against bfloat16, in this CPU's kernels
	$(BIN)/python -m benchmarks.quantized_linear $(ARGS)

bench-grammars: setup ## what grammars cost: masks, compilations, and 16 streams of `mid` with one against 16 without
	$(BIN)/python -m benchmarks.grammars $(ARGS)

bench-health: setup ## how fast health is answered while 256 rows compute and conversations of 500 messages are tokenized
	$(BIN)/python -m benchmarks.health $(ARGS)

bench-router: setup ## the router alone, with a worker that answers at once; and how long prompts take to make, cold and from memory; compile times of grammars
	cargo build --release --locked -p millrace-client --bin millrace-fake-worker
	$(BIN)/python -m benchmarks.router_alone $(ARGS)
	cargo run --release --locked -p millrace-router --example chat_prompts -- launcher/millrace_launcher/demo
	$(BIN)/python -m worker.tests.grammar.schemas | cargo run --quiet --release --locked -p millrace-router --example compile_grammars -- --times

bench-overload: setup ## ten times what a server can do, for five minutes: throughput, latency of the admitted, refusals, memory
	$(BIN)/python -m benchmarks.overload $(ARGS)

bench-tenants: setup ## one tenant floods the server: what that costs another
	$(BIN)/python -m benchmarks.tenants $(ARGS)
	$(BIN)/python -m benchmarks.tenants --long-prompts $(ARGS)

# The kernels as Python calls them. The sanitizer's library and C++'s are loaded before all others.
SANITIZED := target/sanitized
SANITIZE_ENV = PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)"
sanitize: $(VENV)/.python $(VENV)/.native ## the worker's tests over kernels under the address sanitizer (Linux, gcc)
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=$(SANITIZED) \
		cargo build --release --locked -p millrace-kernels --target $$(rustc -vV | sed -n 's/^host: //p')
	cp $(SANITIZED)/*/release/libmillrace_kernels.so $(SANITIZED)/millrace_kernels.abi3.so
	$(TEST_ENV) $(SANITIZE_ENV) PYTHONPATH=$(CURDIR)/$(SANITIZED) $(PYTEST) worker/tests/kernels worker/tests/models/test_parity.py worker/tests/sampling

models: $(VENV)/.python $(VENV)/.native ## parity of every architecture, native and through transformers, on 1 and 2 ranks, into docs/models.md
	$(TEST_ENV) $(BIN)/python -m worker.tests.models.table $(ARGS)

soak: $(VENV)/.python $(VENV)/.native ## long runs: a change of every tensor of every model, memory refused at every operator of a step, 10^7 scheduler operations, kernels under the address sanitizer (in Rust and as Python calls them) and without AVX-512, 10,000 requests with memory held flat, a step of more than 30 s with health held true
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions" cargo test --release --locked -p millrace-kernels-core --target $$(rustc -vV | sed -n 's/^host: //p')
	$(MAKE) sanitize
	$(MAKE) check-without-avx512
	$(MAKE) check-aarch64
	$(TEST_ENV) MILLRACE_SOAK=1 $(PYTEST) worker/tests/models/test_sensitivity.py
	$(TEST_ENV) MILLRACE_SOAK_FAULTS=100000 $(PYTEST) worker/tests/models/test_shortage.py
	MILLRACE_SOAK_OPS=10000000 cargo test --release --locked -p millrace-scheduler -- --nocapture random
	cargo build --locked --bins
	$(TEST_ENV) MILLRACE_SOAK=1 $(BIN)/python -m pytest integration-tests -k soak -s

SCALE ?= 1
chaos: setup ## killed and stopped ranks, drains, rolling updates, disconnects: long runs with their figures, about half an hour (SCALE=0.1 shortens it, SHOWS="kills drain" takes some)
	OMP_NUM_THREADS=1 SCALE=$(SCALE) $(BIN)/python integration-tests/chaos/must_show.py $(SHOWS)

docs: $(VENV)/.python ## the pages of docs/ that are made from tables: flags.md, migrating-from-tgi.md
	$(BIN)/python -m millrace_launcher.flags_doc docs/flags.md
	$(BIN)/python -m millrace_launcher.migrating_doc docs/deviations.json docs/migrating-from-tgi.md

SECONDS ?= 300
fuzz-api: $(VENV)/.python $(VENV)/.native ## requests made up from the OpenAPI document, for SECONDS (default 300)
	cargo build --locked --bins
	$(TEST_ENV) $(BIN)/python integration-tests/fuzzing.py $(SECONDS)

CASES ?= 200000
fuzz: $(VENV)/.python $(VENV)/.native ## every parser on CASES inputs (default 200000) made from the kept corpus
	CASES=$(CASES) cargo test --locked -p millrace-client --test fuzz
	CASES=$(CASES) cargo test --locked -p millrace-router --lib -- http::tests::fuzz template_fuzz grammar::fuzz
	CASES=$$(($(CASES) / 100)) $(TEST_ENV) $(BIN)/python -m pytest worker/tests/engine/test_plan_fuzz.py

proto: $(BIN)/uv ## generate the Python stubs of proto/worker.proto
	$(UV) run --quiet --no-project --isolated --with grpcio-tools==1.76.0 python proto/build_stubs.py

lock: $(BIN)/uv ## resolve constraints.txt and Cargo.lock anew
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--no-emit-package millrace-router --no-emit-package millrace-kernels --no-emit-package millrace-transport -c constraints.in pyproject.toml -o constraints.txt
	cargo update

lock-peers: $(BIN)/uv ## resolve benchmarks/peers/*.txt anew
	for peer in openvino vllm llama; do $(BIN)/uv pip compile --quiet --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --overrides benchmarks/peers/overrides.txt benchmarks/peers/$$peer.in -o benchmarks/peers/$$peer.txt; done

clean: ## remove what was built
	rm -rf target $(VENV)
