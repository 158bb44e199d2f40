#!/usr/bin/env bash
# Measures, and writes docs/benchmarks.md with the machine and the date. With an argument, runs only
# that part (start, ready, api, fleet, operator, releases) and writes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*" >&2; }
cargo build --release --quiet --bin perch --example mcp-fixture
if docker version >/dev/null 2>&1; then
    host=$(rustc -vV | sed -n 's/^host: //p')
    RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --quiet --example mcp-fixture --target "$host" --target-dir target/static
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    cp "target/static/$host/debug/examples/mcp-fixture" "$context/"
    printf 'FROM scratch\nCOPY mcp-fixture /mcp-fixture\nENTRYPOINT ["/mcp-fixture"]\n' >"$context/Dockerfile"
    export PERCH_TEST_FIXTURE_IMAGE=perch.local/mcp-fixture:test
    docker build --quiet --tag "$PERCH_TEST_FIXTURE_IMAGE" "$context" >/dev/null
else
    say "no Docker engine answers: what needs one is not measured"
fi
operator() {
    hack/cluster-tools.sh --level control-plane >&2
    cargo build --release --quiet --example test-cluster
    cargo bench --quiet --bench operator
}
if [ "${1:-}" = operator ]; then
    operator
    exit
elif [ "${1:-}" = releases ]; then
    exec cargo bench --quiet --bench releases
elif [ $# -gt 0 ]; then
    exec cargo bench --quiet --bench one-machine -- "$@"
fi
table=$(cargo bench --quiet --bench one-machine)
releases=$(cargo bench --quiet --bench releases)
cluster=$(operator)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
memory=$(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo)
{
    printf '# Benchmarks\n\nWritten by `make bench`. Wall times are of the machine named here; counts and ratios should hold elsewhere.\n\n'
    printf '%s, %s cores, %s, Linux %s, %s.\n\n' "${cpu:-CPU unknown}" "$(nproc)" "$memory" "$(uname -r)" "$(date -u +%F)"
    printf '## One machine\n\n%s\n\n' "$table"
    printf '## Releases\n\nController and control plane in one process.\n\n%s\n\n' "$releases"
    printf '## The operator\n\nOn etcd and kube-apiserver of the same machine, without a node.\n\n%s\n' "$cluster"
} >docs/benchmarks.md
say "docs/benchmarks.md is written"
