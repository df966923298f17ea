# The verbs of this repository. `make demo` and `make test` need nothing set up by hand.
#
#   make demo    fetch, build, start a broker and promptd, ask the demo model by every door
#   make build   target/release/promptd and the libonnxruntime it needs
#   make test    every test
#   make test-models   models in other layouts, written by a script, answer as their originals; damaged ones are refused
#   make test-clients   real clients (openai, ollama, Node) against a built promptd; installs them into target/
#   make fuzz    what outsiders can send, damaged at random ten million times
#   make check   formatting, lints, documentation, licences and sources of dependencies
#   make install   as root, after make build: program, library, demo model, unit; DESTDIR is honoured
#   make faults N=10000 SEED=1   seeded histories with faults; goes on from any seed (docs/promises.md)
#   make defects   deliberate faults, each of which the tests must find
#   make eval-demo   the figures of models/demo/README.md, measured through promptd

CARGO ?= cargo
PYTHON ?= python3
# Where Cargo builds; the library lies beside the binaries, where they look for it.
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: demo build install test test-models test-clients fuzz faults defects check eval-demo runtime broker clean help

help:
	@sed -n 's/^#   //p' Makefile

build: runtime
	$(CARGO) build --release --locked

# What is already in /etc stays as it is.
install:
	@test -x $(TARGET)/release/promptd || { echo "there is no $(TARGET)/release/promptd: run \`make build\` first, without sudo"; exit 1; }
	install -D -m 755 -t $(DESTDIR)/usr/bin $(TARGET)/release/promptd
	install -D -m 644 -t $(DESTDIR)/usr/lib/promptd $(TARGET)/onnxruntime/libonnxruntime.so.*
	install -D -m 644 -t $(DESTDIR)/usr/share/promptd/models/demo $$(find models/demo -maxdepth 1 -type f)
	install -D -m 644 -t $(DESTDIR)/usr/lib/systemd/system systemd/promptd.service
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

# Material that is not part of this repository; without it there is nothing to write in other layouts.
MATERIAL ?= ../shared/material
MODELS_PYTHON := $(TARGET)/models-venv/bin/python

$(MODELS_PYTHON):
	$(PYTHON) -m venv $(TARGET)/models-venv
	$@ -m pip install --quiet --disable-pip-version-check onnx numpy

test-models: runtime
	@if test -d $(MATERIAL)/models; then $(MAKE) --no-print-directory written-models; \
	else echo "there is no $(MATERIAL)/models: no models are written in other layouts"; fi

.PHONY: written-models
written-models: $(MODELS_PYTHON)
	$(MODELS_PYTHON) tests/models/relayout.py $(MATERIAL)/models/stories260k-genai-fp32 \
		$(MATERIAL)/models/stories260k-plain-fp32 $(TARGET)/layouts
	rm -rf $(TARGET)/broken && mkdir -p $(TARGET)/broken
	$(PYTHON) $(MATERIAL)/tools/make_broken.py $(MATERIAL)/models/stories260k-genai-int4 $(TARGET)/broken
	PROMPTD_TEST_LAYOUTS=$(abspath $(TARGET)/layouts) PROMPTD_TEST_BROKEN=$(abspath $(TARGET)/broken) \
		$(CARGO) test --locked --test it -- model_

fuzz: runtime
	PROMPTD_FUZZ_RUNS=10000000 $(CARGO) test --locked --release --test it fuzz::

test-clients: build
	$(PYTHON) tests/with_promptd.py --promptd $(TARGET)/release/promptd -- \
		$(PYTHON) tests/clients/run.py --socket {socket} --into $(TARGET)/clients

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo "cargo-deny is not installed (cargo install cargo-deny --locked): licences not checked"; fi

N ?= 10000
SEED ?= 1
JOBS ?= 8

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
