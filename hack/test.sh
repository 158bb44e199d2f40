#!/usr/bin/env bash
# Sets up what the tests need, and runs all of them. What cannot be had is named; with CI=true that
# is a failure. Everything lands in target/, but for Debian packages that are installed by apt when
# running as root and missing: docker.io, iptables, mmdebstrap.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
missing=()
cannot() {
    say "cannot be had: $*"
    missing+=("$*")
}

engine() { docker version >/dev/null 2>&1; }
started_dockerd=
stop_engine() {
    [ -z "$started_dockerd" ] || kill "$started_dockerd" 2>/dev/null || true
}
trap stop_engine EXIT

start_engine() {
    engine && return 0
    [ "$(id -u)" = 0 ] || return 1
    if ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || return 1
        say "installing docker.io and iptables by apt"
        apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io iptables >/dev/null
        engine && return 0
    fi
    say "starting dockerd (its log is target/dockerd.log); it ends with the tests"
    dockerd >target/dockerd.log 2>&1 &
    started_dockerd=$!
    for _ in $(seq 100); do
        engine && return 0
        kill -0 "$started_dockerd" 2>/dev/null || return 1
        sleep 0.2
    done
    return 1
}

kubectl_new_enough() {
    local minor
    minor=$("$1" version --client -o json 2>/dev/null | sed -n 's/.*"minor": "\([0-9]*\).*/\1/p' | head -1)
    [ "${minor:-0}" -ge 32 ]
}

# A run that happens once has no use for what the next compilation would reuse: several gigabytes.
[ "${CI:-}" != true ] || export CARGO_INCREMENTAL=0

mkdir -p target
free=$(df -Pk target | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free" -ge 12 ] || say "only $free GiB are free for target/: a first run takes about 12"

say "kubectl"
if kubectl_new_enough kubectl; then
    :
elif command -v go >/dev/null; then
    if [ ! -x target/testbin/kubectl ]; then
        say "building kubectl from its Go module (a few minutes)"
        (cd hack/kubectl && GOFLAGS=-mod=mod CGO_ENABLED=0 go build -o ../../target/testbin/kubectl k8s.io/kubernetes/cmd/kubectl)
    fi
    export PATH="$PWD/target/testbin:$PATH"
else
    cannot "kubectl 1.32 or newer: install it, or Go to build it from its module"
fi

say "Python with the official MCP client"
if [ ! -x target/testenv/python/bin/python ]; then
    python3 -m venv target/testenv/python
fi
if target/testenv/python/bin/python -m pip install --quiet --disable-pip-version-check 'mcp==1.26.0'; then
    export PERCH_TEST_PYTHON="$PWD/target/testenv/python/bin/python"
else
    cannot "the Python package mcp: pip does not reach its index"
fi
# The same of the modern era, and a server: its packages do not go together with the former.
if [ ! -x target/testenv/python-modern/bin/python ]; then
    python3 -m venv target/testenv/python-modern
fi
if target/testenv/python-modern/bin/python -m pip install --quiet --disable-pip-version-check \
    'mcp==2.3.0' 'mcp-server-time==2026.10.19'; then
    export PERCH_TEST_PYTHON_MODERN="$PWD/target/testenv/python-modern/bin/python"
else
    cannot "the Python packages mcp 2 and mcp-server-time: pip does not reach its index"
fi

say "Node 22 with the MCP conformance suite, reference servers, clients and the inspector"
if command -v npm >/dev/null && npm install --prefix target/testenv/node --silent --no-audit --no-fund \
    "node-$(uname -s | tr A-Z a-z)-$(uname -m | sed 's/x86_64/x64/;s/aarch64/arm64/')@22" \
    '@modelcontextprotocol/conformance@0.2.0-alpha.12' '@modelcontextprotocol/server-everything@2026.8.31' \
    '@modelcontextprotocol/sdk@1.32.2' '@modelcontextprotocol/client@2.4.0' '@modelcontextprotocol/inspector@2.12.0' \
    >/dev/null; then
    export PERCH_TEST_CONFORMANCE="$PWD/target/testenv/node"
else
    cannot "the MCP conformance suite: npm does not reach its registry, or is missing"
fi

say "Prometheus"
if PERCH_TEST_PROMETHEUS=$(hack/prometheus.sh); then
    export PERCH_TEST_PROMETHEUS
else
    cannot "Prometheus: install it, or use Debian, where this script unpacks its package"
fi

say "An image registry"
if PERCH_TEST_REGISTRY=$(hack/registry.sh); then
    export PERCH_TEST_REGISTRY
else
    cannot "docker-registry: install it, or use Debian, where this script unpacks its package"
fi

say "Docker engine and images"
host=$(rustc -vV | sed -n 's/^host: //p')
if start_engine; then
    PERCH_TEST_BASE_IMAGE=$(hack/base-images.sh)
    export PERCH_TEST_BASE_IMAGE
    # A static binary in an empty image: nothing in it but the server.
    RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --quiet --example mcp-fixture --target "$host" --target-dir target/static
    context=$(mktemp -d)
    cp "target/static/$host/debug/examples/mcp-fixture" "$context/"
    printf 'FROM scratch\nCOPY mcp-fixture /mcp-fixture\nENTRYPOINT ["/mcp-fixture"]\n' >"$context/Dockerfile"
    export PERCH_TEST_FIXTURE_IMAGE=perch.local/mcp-fixture:test
    docker build --quiet --tag "$PERCH_TEST_FIXTURE_IMAGE" "$context" >/dev/null
    rm -rf "$context"
    PERCH_TEST_IMAGE=$(hack/image.sh --profile dev --tag perch.local/perch:test)
    export PERCH_TEST_IMAGE
else
    cannot "a Docker engine: install and start one (on Debian as root this script does it)"
fi

say "Kubernetes"
if [ "$(id -u)" != 0 ] && [ "${USE_EXISTING_CLUSTER:-}" != true ]; then
    cannot "a Kubernetes node: run as root, or give a cluster (docs/testing-cluster.md)"
elif ! hack/cluster-tools.sh; then
    cannot "a Kubernetes: what is missing is said above"
fi

say "formatting and lints"
cargo fmt --check
cargo clippy --quiet --all-targets -- -D warnings

# Most tests wait for what they started, so one more than there are cores runs at a time.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) + 1))}"

say "tests"
cargo build --quiet --examples
# What failed is said again at the end: there is a lot in between.
run() {
    if ! cargo test --no-fail-fast "$@" 2>&1 | tee target/tests.log; then
        say "what failed (the whole output is target/tests.log)"
        grep -E -A 3 '^thread .* panicked at|^test .* FAILED$' target/tests.log || true
        return 1
    fi
}
if [ ${#missing[@]} -eq 0 ]; then
    run
else
    # Without an engine or the client the end-to-end tests cannot run.
    run --lib --test architecture --test generated --test integration
    printf '== NOT RUN: end-to-end tests, because of: %s\n' "${missing[@]}"
    [ "${CI:-}" != true ] || exit 1
fi
