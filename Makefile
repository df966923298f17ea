# The verbs of this repository. `make demo` and `make test` need nothing set up by hand.
#
#   make demo    fetch, build, start a broker and promptd, ask the demo model by every door
#   make build   target/release/promptd and the libonnxruntime it needs
#   make test    every test
#   make test-models   models in other layouts, written by a script, answer as their originals; damaged ones are refused
#   make test-families   models in the true shapes of the families, two layers each, answer as a plain ONNX Runtime loop does
#   make bench-peers     promptd beside llama.cpp and onnxruntime-genai on the same shape of model (docs/performance.md)
#   make test-clients   real clients (curl, socat, openai, ollama, LangChain, Node, Home Assistant's requests) against a built promptd; installs them into target/
#   make test-recipes   docs/recipes.md with packages from npm and pip: paho-mqtt, aiomqtt, MQTT.js, a Node-RED, and Home Assistant's core where HA_PYTHON (python3.13) is there
#   make test-frozen   a broker that hangs for a minute (SECONDS=N for others) and is back within seconds
#   make test-resets   a connection to the broker that is reset at every byte of a session
#   make overload    a hundred times the capacity for ten minutes (SECONDS=N for others), against the figures of docs/promises.md
#   make overhead    what socket and processes add to a request and to a token, and what eight quick streams cost (docs/performance.md)
#   make idle   context switches and processor time of a service that is asked nothing, for a minute
#   make overhead-mqtt   an answer through mosquitto beside a bare echo, in memory and on disk; prompts a second; the service's memory
#   make test-powercut   as root: power cuts at any write of a disk while promptd works on it (CUTS=N)
#   make test-schemas   every schema of the JSON-Schema test suite is enforced rightly or refused by name (docs/schemas.md)
#   make test-golden   the material's golden files, whole and streamed, with the material's own player
#   make test-schema   requests made of /openapi.json and of OpenAI's description; every answer is as described
#   make test-page   the built-in page in a headless Chromium
#   make fuzz    what outsiders can send, damaged at random ten million times (RUNS=N for other numbers, SEED=N for other damage)
#   make monitoring   the dashboard and alert rules, against promtool, a real Prometheus and a real promptd
#   make test-protocol   docs/asyncapi.json and the payloads' schemas against the meta-schemas of their standards
#   make fleet   three boards of different speed at one mosquitto: their throughput together against the sum (docs/fleet.md; MS=N: the quickest's service time)
#   make test-cluster   three boards at a clustered broker of three nodes, each at another; builds the broker, which needs cmake and protoc (docs/fleet.md)
#   make test-homeassistant   what Home Assistant is told, against the schemas in its source
#   make check   formatting, lints, documentation, licences and sources of dependencies, and advisories where their database can be reached
#   make deb     Debian packages for amd64 and arm64, a tarball of each, SBOM and notices, in target/packages; ARCHES=amd64 for one
#   make cross   target/…/release/promptd for aarch64 boards, built on x86-64
#   make test-systemd   as root: the package in a real systemd, from installation to purge (SUITE=trixie: in another Debian)
#   make test-arm   the arm64 package's program, library and model under qemu as the processors of a Pi 4, a Pi 5 and a newer board
#   make test-cuda LIBRARY=…/libonnxruntime.so.1.31.1   on a machine with an NVIDIA GPU: it says what the CPU says (BENCH_DIRS="DIR …" are measured as well)
#   make test-package   after make deb: what is in the packages, the SBOM against CycloneDX's schema, manual pages, completions, lintian, the tarballs,
#                       and by apt whether each Debian (and Ubuntu: UBUNTU_MIRROR=URL) can install them
#   make test-reproducible   the package built twice in two folders has the same bytes
#   make install   as root, after make build: program, library, demo model, unit; DESTDIR is honoured
#   make faults N=10000 SEED=1   seeded histories with faults; goes on from any seed (docs/promises.md)
#   make defects   deliberate faults, each of which the tests must find
#   make eval-demo   the figures of models/demo/README.md, measured through promptd

# Nothing is told to anybody: the official builds of ONNX Runtime send reports to their maker unless this says no.
export ORT_DISABLE_TELEMETRY := 1

CARGO ?= cargo
PYTHON ?= python3
# Where Cargo builds; the library lies beside the binaries, where they look for it.
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: bench-models bench-peers broker build check clean cross deb defects demo docs eval-demo faults fleet fuzz help idle install monitoring overhead overhead-mqtt overload runtime test test-arm test-clients test-cluster test-cuda test-families test-frozen test-golden test-homeassistant test-models test-package test-page test-powercut test-protocol test-recipes test-reproducible test-resets test-schema test-schemas test-systemd written-models

help:
	@sed -n 's/^#   //p' Makefile

build: runtime
	$(CARGO) build --release --locked

# Man pages and completions, made from the program's own command line and configuration.
docs:
	$(CARGO) run --quiet --locked --example docs -- $(TARGET)/docs

cross:
	@cross/build.sh aarch64 $(CROSS_FLAGS)
	@$(PYTHON) cross/fetch-onnxruntime.py $(TARGET)/cross/onnxruntime-aarch64 --arch aarch64

# amd64 is built in the same way, so that it runs with an old glibc too.
ARCHES ?= amd64 arm64
deb: docs
	@for arch in $(ARCHES); do packaging/build.sh $$arch || exit 1; done

# Two packages that differ in their version only: the second is the upgrade. Any program that runs in that Debian will do; what this
# machine's own linker made needs a C library as new as this machine's.
SUITE ?= bookworm
DEB_PROGRAM ?= $(TARGET)/release/promptd
test-systemd: docs $(if $(filter $(TARGET)/release/promptd,$(DEB_PROGRAM)),build,runtime)
	@sh tests/support/install-systemd-tools.sh
	@for version in 0.0.1 0.0.2; do \
		PROMPTD_PACKAGE_QUICKLY=1 packaging/build.sh amd64 --program $(DEB_PROGRAM) --version $$version --no-tarball \
			--out $(TARGET)/systemd-test/debs || exit 1; done
	$(PYTHON) tests/systemd/run.py --work $(TARGET)/systemd-test --deb $(TARGET)/systemd-test/debs/promptd_0.0.1_amd64.deb \
		--newer $(TARGET)/systemd-test/debs/promptd_0.0.2_amd64.deb --suite $(SUITE) $(if $(ONLY),--only $(ONLY))

test-arm: docs runtime
	@test -x $(TARGET)/release/promptd || $(CARGO) build --locked --quiet
	@rm -rf $(TARGET)/arm-test && PROMPTD_PACKAGE_QUICKLY=1 packaging/build.sh arm64 --no-tarball --out $(TARGET)/arm-test
	@$(PYTHON) tests/arm/run.py --target $(TARGET) --deb $(TARGET)/arm-test/promptd_*_arm64.deb \
		$(if $(wildcard $(MATERIAL)/golden),--material $(MATERIAL)) $(if $(CPU),--cpu $(CPU))

PACKAGES ?= $(wildcard $(TARGET)/packages/*.deb)
test-package:
	@test -n "$(PACKAGES)" || { echo "there is no package in $(TARGET)/packages: run \`make deb\` first"; exit 1; }
	$(PYTHON) -m venv $(TARGET)/package-venv
	$(TARGET)/package-venv/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-python-lib[json-validation]'
	$(TARGET)/package-venv/bin/python tests/package/check.py $(PACKAGES)
	tests/package/installable.sh $(PACKAGES)

test-reproducible:
	@packaging/twice.sh

# What is already in /etc stays as it is.
install:
	@test -x $(TARGET)/release/promptd || { echo "there is no $(TARGET)/release/promptd: run \`make build\` first, without sudo"; exit 1; }
	install -D -m 755 -t $(DESTDIR)/usr/bin $(TARGET)/release/promptd
	install -D -m 644 -t $(DESTDIR)/usr/lib/promptd $(TARGET)/onnxruntime/libonnxruntime.so.*
	install -D -m 644 -t $(DESTDIR)/usr/share/promptd/models/demo $$(find models/demo -maxdepth 1 -type f)
	install -D -m 644 -t $(DESTDIR)/usr/lib/systemd/system systemd/promptd.service systemd/promptd.socket systemd/promptd-lines.socket
	install -D -m 644 -t $(DESTDIR)/usr/share/doc/promptd/examples systemd/drop-ins/*.conf
	install -D -m 644 systemd/promptd.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/promptd.conf
	install -D -m 644 systemd/promptd.sysusers $(DESTDIR)/usr/lib/sysusers.d/promptd.conf
	test -e $(DESTDIR)/etc/promptd/promptd.toml || install -D -m 644 -t $(DESTDIR)/etc/promptd systemd/promptd.toml

runtime:
	@$(PYTHON) cross/fetch-onnxruntime.py $(TARGET)/onnxruntime

broker:
	@sh tests/support/install-mosquitto.sh

demo: build broker
	@$(PYTHON) tests/demo.py --promptd $(TARGET)/release/promptd

test: runtime broker
	$(CARGO) test --locked
	$(CARGO) test --locked --features defects --test faults -- defects --quick --jobs $(JOBS)

# Material that is not part of this repository; without it there is nothing to write in other layouts.
MATERIAL ?= ../shared/material
MODELS_PYTHON := $(TARGET)/models-venv/bin/python

$(MODELS_PYTHON):
	$(PYTHON) -m venv $(TARGET)/models-venv
	$@ -m pip install --quiet --disable-pip-version-check onnx numpy onnxruntime

test-models: runtime
	@if test -d $(MATERIAL)/models; then $(MAKE) --no-print-directory written-models; \
	else echo "there is no $(MATERIAL)/models: no models are written in other layouts"; fi

written-models: $(MODELS_PYTHON)
	$(MODELS_PYTHON) tests/models/relayout.py $(MATERIAL)/models/stories260k-genai-fp32 \
		$(MATERIAL)/models/stories260k-plain-fp32 $(MATERIAL)/models/stories260k-genai-int4 $(TARGET)/layouts
	rm -rf $(TARGET)/broken && mkdir -p $(TARGET)/broken
	$(PYTHON) $(MATERIAL)/tools/make_broken.py $(MATERIAL)/models/stories260k-genai-int4 $(TARGET)/broken
	PROMPTD_TEST_LAYOUTS=$(abspath $(TARGET)/layouts) PROMPTD_TEST_BROKEN=$(abspath $(TARGET)/broken) \
		$(CARGO) test --locked --test it -- model_ reuse::

# Takes half an hour and four gigabytes of disk; FAMILIES names some of them.
FAMILIES ?=
test-families: runtime $(MODELS_PYTHON)
	$(MODELS_PYTHON) -m pip install --quiet --disable-pip-version-check tokenizers
	$(MODELS_PYTHON) tests/models/families.py --into $(TARGET)/families $(if $(FAMILIES),--only $(FAMILIES)) -- \
		$(CARGO) test --locked --test it -- model_families

# Models of a LLaMA's shape with random weights, written by scripts that are not part of this repository. `SHAPE=7b` takes 20 GB
# of disk and 16 GB of memory.
BENCH ?= ../shared/bench
BENCH_MODELS ?= /var/tmp/promptd-bench
SHAPE ?= 1.1b
PASSES ?= 5
SHAPE_1.1b := --hidden 2048 --inter 5632 --layers 22 --heads 32 --kv-heads 4 --vocab 32000 --ctx 2048
SHAPE_7b := --hidden 4096 --inter 11008 --layers 32 --heads 32 --kv-heads 32 --vocab 32000 --ctx 4096
PEERS := $(TARGET)/peers-venv/bin/python

$(PEERS):
	$(PYTHON) -m venv $(TARGET)/peers-venv
	$@ -m pip install --quiet --disable-pip-version-check onnx onnxruntime onnxruntime-genai tokenizers gguf
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF" $@ -m pip install --disable-pip-version-check llama-cpp-python

bench-peers: build $(PEERS)
	@if test -d $(BENCH); then $(MAKE) --no-print-directory bench-models; \
	else echo "there is no $(BENCH): nothing can write the models"; exit 1; fi
	$(TARGET)/release/promptd model prepare $(BENCH_MODELS)/llama-$(SHAPE) --store $(BENCH_MODELS)/store
	$(PEERS) tests/bench/peers.py --promptd $(TARGET)/release/promptd --store $(BENCH_MODELS)/store \
		--onnx $(BENCH_MODELS)/llama-$(SHAPE) --gguf $(BENCH_MODELS)/llama-$(SHAPE).gguf --passes $(PASSES) \
		--json $(TARGET)/peers-$(SHAPE).json
	$(PYTHON) tests/bench/chart.py $(TARGET)/peers-$(SHAPE).json > $(TARGET)/peers-$(SHAPE).svg

bench-models:
	@mkdir -p $(BENCH_MODELS)
	test -e $(BENCH_MODELS)/llama-$(SHAPE)/genai_config.json || $(PEERS) $(BENCH)/make_llama_onnx.py $(SHAPE_$(SHAPE)) \
		--block 128 --embed int4 --kv-bits 8 --prune-lm-head --out $(BENCH_MODELS)/llama-$(SHAPE)
	test -e $(BENCH_MODELS)/vocab.gguf || $(PEERS) tests/bench/empty_vocab.py $(BENCH_MODELS)/vocab.gguf
	test -e $(BENCH_MODELS)/llama-$(SHAPE).gguf || $(PEERS) $(BENCH)/make_llama_gguf.py $(SHAPE_$(SHAPE)) \
		--vocab-gguf $(BENCH_MODELS)/vocab.gguf --out $(BENCH_MODELS)/llama-$(SHAPE).gguf

test-cuda: build
	$(PYTHON) tests/cuda/run.py --promptd $(TARGET)/release/promptd --library $(LIBRARY) --material $(MATERIAL) --work $(TARGET)/cuda \
		$(foreach dir,$(BENCH_DIRS),--bench $(dir))

monitoring: runtime
	@sh tests/support/fetch-prometheus.sh $(TARGET)/prometheus
	$(CARGO) test --locked --test it -- monitoring

test-protocol:
	mkdir -p $(TARGET)/protocol
	cd $(TARGET)/protocol && npm pack --silent @asyncapi/specs@6.11.1 && tar xzf asyncapi-specs-6.11.1.tgz
	$(PYTHON) -m venv $(TARGET)/protocol/venv
	$(TARGET)/protocol/venv/bin/pip install --quiet --disable-pip-version-check jsonschema
	$(TARGET)/protocol/venv/bin/python tests/protocol/validate.py $(TARGET)/protocol/package

# A clustered broker of its own dependencies, in a folder of its own; the build takes half an hour on two cores and two gigabytes.
CLUSTER_JOBS ?= 2
CLUSTER := $(TARGET)/cluster

test-cluster: runtime
	@command -v cmake >/dev/null && command -v protoc >/dev/null || { echo "the broker's build needs cmake and protoc: apt-get install cmake protobuf-compiler"; exit 1; }
	CARGO_TARGET_DIR=$(CLUSTER) $(CARGO) build --release --locked --jobs $(CLUSTER_JOBS) --manifest-path tests/cluster/Cargo.toml
	PROMPTD_TEST_CLUSTER=$(abspath $(CLUSTER)/release/cluster-node) $(CARGO) test --locked --test it -- mqtt_cluster --nocapture

# Home Assistant 2024.12 and newer know device discovery; they need Python 3.12 or newer.
HA_PYTHON ?= python3.13
test-homeassistant: runtime
	$(HA_PYTHON) -m venv $(TARGET)/homeassistant
	$(TARGET)/homeassistant/bin/pip install --quiet --disable-pip-version-check homeassistant paho-mqtt hassil home-assistant-intents
	PROMPTD_TEST_DISCOVERY=$(abspath $(TARGET))/discovery.json $(CARGO) test --locked --test it home_assistant
	$(TARGET)/homeassistant/bin/python tests/protocol/discovery.py $(TARGET)/discovery.json

# Optimised, with overflow checks and debug assertions on. Compiling a grammar is slow: that target goes on for hours after the others.
RUNS ?= 10000000

fuzz: runtime
	PROMPTD_FUZZ_RUNS=$(RUNS) PROMPTD_FUZZ_SEED=$(SEED) CARGO_PROFILE_DEV_OPT_LEVEL=2 \
		$(CARGO) test --locked --lib -- fuzz --nocapture

SECONDS ?= 600

overload: broker
	$(CARGO) test --locked --release --test load -- overload --seconds $(SECONDS)

overhead-mqtt: broker
	$(CARGO) test --locked --release --test load -- broker --seconds 60

idle: runtime
	$(CARGO) test --locked --release --test load -- idle --seconds 60

overhead: runtime
	$(CARGO) test --locked --release --test load -- overhead --seconds 15

MS ?= 400

fleet: runtime broker
	PROMPTD_FLEET_MS=$(MS) $(CARGO) test --locked --test it -- three_boards --nocapture

test-frozen: broker
	PROMPTD_TEST_FROZEN_SECONDS=$(if $(filter command line,$(origin SECONDS)),$(SECONDS),60) $(CARGO) test --locked --test it -- hangs_for_long --nocapture

test-resets: broker
	PROMPTD_TEST_EVERY_BYTE=1 $(CARGO) test --locked --test it -- a_reset_anywhere --nocapture

CUTS ?= 200

test-powercut:
	program=$$($(CARGO) test --locked --test load --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\/load-[^"]*\)".*/\1/p') && \
	$(PYTHON) tests/powercut/powercut.py --program "$$program" --cuts 12 --histories 1 --lies 3 && \
	$(PYTHON) tests/powercut/powercut.py --program "$$program" --cuts $(CUTS)

test-clients: build
	$(PYTHON) tests/with_promptd.py --promptd $(TARGET)/release/promptd -- \
		$(PYTHON) tests/clients/run.py --socket {socket} --lines {lines} --tcp {tcp} --key {key} --into $(TARGET)/clients
	$(PYTHON) tests/clients/hidden_model.py models/demo $(TARGET)/clients/hidden
	$(PYTHON) tests/with_promptd.py --promptd $(TARGET)/release/promptd --model $(TARGET)/clients/hidden -- \
		$(PYTHON) tests/clients/run.py --socket {socket} --into $(TARGET)/clients --vectors

test-recipes: build broker
	HA_PYTHON=$(HA_PYTHON) $(PYTHON) tests/recipes/run.py --promptd $(TARGET)/release/promptd --into $(TARGET)/recipes $(if $(ONLY),--only $(ONLY))

# The suite is no part of this repository.
test-schemas:
	@if test -d $(MATERIAL)/json-schema/JSON-Schema-Test-Suite; then $(CARGO) test --locked --lib -- schema_suite --nocapture; \
	else echo "there is no $(MATERIAL)/json-schema/JSON-Schema-Test-Suite: nothing to hold schemas against"; exit 1; fi
test-golden: build
	@if test -d $(MATERIAL)/golden; then $(PYTHON) tests/golden.py --promptd $(TARGET)/release/promptd --material $(MATERIAL); \
	else echo "there is no $(MATERIAL)/golden: nothing is played"; fi

test-schema: build
	$(PYTHON) tests/with_promptd.py --promptd $(TARGET)/release/promptd --context 64 -- \
		$(PYTHON) tests/clients/schema.py --tcp {tcp} --key {key} --into $(TARGET)/clients \
		--openai $(MATERIAL)/openai/openapi-chat-completions-models.json

test-page: build
	$(PYTHON) tests/with_promptd.py --promptd $(TARGET)/release/promptd --socket-line 'tcp_page = true' -- \
		$(PYTHON) tests/page.py --tcp {tcp} --key {key}

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then \
		$(CARGO) deny check licenses bans sources && \
		if timeout 120 $(CARGO) deny fetch db 2>/dev/null; then $(CARGO) deny check --disable-fetch advisories; \
		else echo "the database of advisories cannot be reached: advisories not checked"; fi; \
	else echo "cargo-deny is not installed (cargo install cargo-deny --locked): licences and advisories not checked"; fi

N ?= 10000
SEED ?= 1
JOBS ?= 16

faults: broker
	$(CARGO) test --locked --test faults -- ledger --seed $(SEED) --runs $(N) --jobs $(JOBS)

defects: broker
	$(CARGO) test --locked --features defects --test faults -- defects --jobs $(JOBS)

eval-demo: build
	$(PYTHON) tests/with_promptd.py --promptd $(TARGET)/release/promptd -- \
		$(PYTHON) models/demo/train/evaluate.py --socket {socket} --schema models/demo/command.schema.json
	$(PYTHON) tests/with_promptd.py --promptd $(TARGET)/release/promptd -- $(PYTHON) models/demo/train/evaluate.py --socket {socket}

clean:
	$(CARGO) clean
