#!/usr/bin/env bash
# Measures, and writes docs/benchmarks.md with the machine and the date. With an argument, runs only
# that part (start, ready, api, fleet, operator, policy, releases, gateway, soak) and writes nothing. The soak
# takes PERCH_SOAK_MINUTES (30).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*" >&2; }
cargo build --release --quiet --bin perch --example mcp-fixture
gateway() {
    if ! command -v nginx >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        say "installing nginx-light by apt, to compare with"
        apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light >/dev/null
    fi
    cargo build --release --quiet --example mcp-bench-upstream --example mcp-conformance-fixture
    cargo bench --quiet --bench gateway -- "$@"
}
case "${1:-}" in
gateway) gateway && exit ;;
soak) gateway soak && exit ;;
esac
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
    hack/cluster-tools.sh --level workloads >&2
    cargo build --release --quiet --example test-cluster
    cargo bench --quiet --bench operator
}
if [ "${1:-}" = operator ]; then
    operator
    exit
elif [ "${1:-}" = releases ] || [ "${1:-}" = policy ]; then
    exec cargo bench --quiet --bench "$1"
elif [ $# -gt 0 ]; then
    exec cargo bench --quiet --bench one-machine -- "$@"
fi
table=$(cargo bench --quiet --bench one-machine)
releases=$(cargo bench --quiet --bench releases)
policy=$(cargo bench --quiet --bench policy)
cluster=$(operator)
proxies=$(gateway)
soak=$(gateway soak)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
memory=$(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo)
{
    printf '# Benchmarks\n\nWritten by `make bench`. Wall times are of the machine named here; counts and ratios should hold elsewhere.\n\n'
    printf '%s, %s cores, %s, Linux %s, %s.\n\n' "${cpu:-CPU unknown}" "$(nproc)" "$memory" "$(uname -r)" "$(date -u +%F)"
    printf '## One machine\n\n%s\n\n' "$table"
    printf '## Releases\n\nController and control plane in one process.\n\n%s\n\n' "$releases"
    printf '## Policy\n\nAll shipped rules, in one thread.\n\n%s\n\n' "$policy"
    printf '## The operator\n\nOn etcd and kube-apiserver of the same machine, without a node.\n\n%s\n\n' "$cluster"
    printf '## Gateway\n\nThe same server directly, through nginx as a plain HTTP proxy, and through Perch with access control, audit log, metrics and sessions. What calls runs on the same machine.\n\n%s\n\n### Soak\n\n%s\n' "$proxies" "$soak"
} >docs/benchmarks.md
say "docs/benchmarks.md is written"
