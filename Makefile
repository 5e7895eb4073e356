# Conclave. `make help` lists what can be asked for.
#
# Every cargo command here uses the one release profile: RocksDB is built once, in about ten minutes, and a second
# profile, other flags or another target would build it again. CARGO_TARGET_DIR is respected. Nothing here writes to
# the source tree.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)
BIN := $(TARGET)/release
CARGO := cargo
# Options for `conclave demo`, as in `make demo DEMO=--fast`.
DEMO ?=
# How long `make fuzz` runs, and its options, as in `make fuzz FOR=10m FUZZ='--only receipt'`.
FOR ?= 1m
FUZZ ?=
# Options for the micro-benchmarks, as in `make bench BENCH=engine`.
BENCH ?=

# What `make siege` runs, as in `make siege SIEGE="traitor --attack silent"`.
SIEGE ?= kill --for 10m

# What `make sim` runs, as in `make sim SIM="run --seed 7 --trace trace.txt"`.
SIM ?= hunt --for 10m

.PHONY: help build test demo bench fuzz sim siege tools

## help: this list
help:
	echo "Usage: make TARGET"
	sed -n 's/^## \([a-z]*\): \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

## build: both binaries, optimized
build:
	.ci/tools build
	$(CARGO) build --release --locked --workspace
	echo "built $(BIN)/conclave-node and $(BIN)/conclave"

## test: what CI runs: format, build, lints, tests, documentation, licences
test:
	.ci/tools test
	.ci/gate

## demo: four organizations, one story: faults, recovery and proofs, in about a minute
demo: build
	.ci/tools demo
	exec "$(BIN)/conclave" demo $(DEMO)

## bench: micro-benchmarks (criterion); for a cluster's throughput see `conclave bench`
bench:
	.ci/tools build
	$(CARGO) bench --profile release --locked -p conclave-benches -- $(BENCH)

## fuzz: broken inputs for every decoder, as long as FOR says (make fuzz FOR=10m)
fuzz:
	.ci/tools build
	$(CARGO) build --release --locked -p conclave-tests --bin conclave-fuzz
	exec "$(BIN)/conclave-fuzz" --for $(FOR) --save "$(TARGET)/failing-input" $(FUZZ)

## sim: attacks a simulated cluster for ten minutes: liars, lost power, split networks
sim:
	.ci/tools build
	$(CARGO) build --release --locked -p conclave-tests --features simulation --bin conclave-sim
	exec "$(BIN)/conclave-sim" $(SIM)

## siege: attacks a real cluster of this machine: kills, partitions, full disks, floods, liars
siege:
	.ci/tools build
	$(CARGO) build --release --locked --workspace
	exec "$(BIN)/conclave-siege" $(SIEGE)

## tools: checks for what the build needs, and installs what it may
tools:
	.ci/tools test
