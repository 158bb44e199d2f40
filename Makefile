.PHONY: run down test fuzz bench cluster cluster-down sim generate image fmt lint

# Runs the samples on this machine. Ctrl-C stops them; `make down` removes what they made.
run:
	@hack/run.sh

down:
	@target/debug/perch down --data-dir "$${PERCH_DATA_DIR:-$(CURDIR)/perch-data}"

# Sets up what the tests need (see hack/test.sh) and runs all of them.
test:
	@hack/test.sh

# Gives bytes that nobody meant to what reads bytes of clients and servers; `make test` does it too, for
# four seconds each. FUZZ_SECONDS says how long for each of the four targets.
FUZZ_SECONDS ?= 300
fuzz:
	PERCH_FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --release --lib gateway::tests::fuzz -- --nocapture

# Starts a real Kubernetes with one node on this machine and prints the path of its kubeconfig; see
# docs/testing-cluster.md. LEVEL=control-plane or LEVEL=workloads starts less of it.
LEVEL ?= node
CLUSTER_DIR ?= $(CURDIR)/target/cluster/main
cluster:
	@hack/cluster-tools.sh --level $(LEVEL)
	@cargo build --quiet --example test-cluster
	@target/debug/examples/test-cluster up --level $(LEVEL) --dir $(CLUSTER_DIR)

cluster-down:
	@target/debug/examples/test-cluster down --dir $(CLUSTER_DIR)

# How often releases are rolled back, rightly and wrongly, and how soon: two minutes.
sim:
	cargo run --release --quiet --example canary-sim

# Measures speed and memory and writes docs/benchmarks.md.
bench:
	@hack/bench.sh

# Makes crds/ and the chart's copy, docs/api.md and docs/cli.md from the source, and
# manifests/install.yaml from the chart.
generate:
	PERCH_REGENERATE=1 cargo test --quiet --test generated
	hack/manifests.sh

# Builds perch.local/perch for Docker and clusters, without an image registry.
image:
	@hack/image.sh

fmt:
	cargo fmt

lint:
	cargo clippy --all-targets -- -D warnings
	cargo deny check licenses bans sources
