#!/usr/bin/env bash
# Compares proxies in front of the same MCP server: nothing, nginx, and Perch. Prints calls per second,
# the 99th percentile of the latency, and the proxy's CPU time for 1,000 calls.
#
#   benches/gateway/run.sh            # builds with --release
#   PERCH_BENCH_BIN=DIR …/run.sh      # takes perch and examples/mcp-bench-upstream from DIR
#
# Needs wrk and nginx (on Debian: apt-get install wrk nginx-light) and kubectl.
set -euo pipefail
cd "$(dirname "$0")/../.."
for tool in wrk nginx kubectl; do
    command -v "$tool" >/dev/null || { echo "missing: $tool" >&2; exit 1; }
done
if [ -z "${PERCH_BENCH_BIN:-}" ]; then
    cargo build --release --bin perch --example mcp-bench-upstream
    PERCH_BENCH_BIN=$PWD/target/release
fi
seconds=${PERCH_BENCH_SECONDS:-10}
work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
upstream=$(port) nginx=$(port) gateway=$(port)

"$PERCH_BENCH_BIN/examples/mcp-bench-upstream" --port "$upstream" &
pids+=($!)

cat >"$work/nginx.conf" <<CONF
daemon off; worker_processes 1; pid $work/nginx.pid; error_log stderr error;
events { worker_connections 4096; }
http {
    access_log off; client_body_temp_path $work; proxy_temp_path $work; fastcgi_temp_path $work;
    uwsgi_temp_path $work; scgi_temp_path $work;
    upstream mcp { server 127.0.0.1:$upstream; keepalive 128; }
    server {
        listen 127.0.0.1:$nginx; keepalive_requests 10000000;
        location / { proxy_pass http://mcp; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }
    }
}
CONF
nginx -p "$work" -c "$work/nginx.conf" &
pids+=($!)
nginx_pid=$!

"$PERCH_BENCH_BIN/perch" up --runtime process --api-addr 127.0.0.1:0 --gateway-addr "127.0.0.1:$gateway" \
    --data-dir "$work/perch" >"$work/perch.log" 2>&1 &
pids+=($!)
perch_pid=$!
until grep -q Runtime "$work/perch.log"; do
    kill -0 "$perch_pid" || { cat "$work/perch.log" >&2; exit 1; }
    sleep 0.1
done
export HOME="$work" KUBECONFIG="$work/perch/kubeconfig"
kubectl apply -f - >/dev/null <<YAML
apiVersion: perch.dev/v1alpha1
kind: McpServer
metadata: {name: bench}
spec: {command: ["$PERCH_BENCH_BIN/examples/mcp-bench-upstream"], transport: {type: StreamableHttp}}
YAML
kubectl wait --for=condition=Ready mcpserver/bench --timeout=60s >/dev/null

# Milliseconds of CPU that a process and its children used so far.
cpu() {
    local total=0 pid
    for pid in "$@" $(pgrep -P "$1" || true); do
        [ -r "/proc/$pid/stat" ] && total=$((total + $(awk '{print $14 + $15}' "/proc/$pid/stat")))
    done
    echo $((total * 1000 / $(getconf CLK_TCK)))
}
# The gateway's own, without the server that it runs.
own() { awk -v tick="$(getconf CLK_TCK)" '{print int(($14 + $15) * 1000 / tick)}' "/proc/$1/stat"; }

script() { # method session
    cat >"$work/load.lua" <<LUA
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Accept"] = "application/json, text/event-stream"
wrk.headers["MCP-Protocol-Version"] = "2025-11-25"
wrk.headers["Mcp-Session-Id"] = "$2"
wrk.body = '{"jsonrpc":"2.0","id":1,"method":"$1","params":{"name":"tool_1","arguments":{"text":"x"}}}'
LUA
}

session() {
    curl -si "$1" -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \
        -d '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}' |
        tr -d '\r' | sed -n 's/^mcp-session-id: //p'
}

printf '%-12s %-8s %12s %12s %12s %18s\n' method clients proxy calls/s p99 'CPU ms/1000 calls'
for method in tools/call tools/list; do
    for clients in 1 16 64; do
        for proxy in direct nginx perch; do
            case $proxy in
            direct) url="http://127.0.0.1:$upstream/mcp" pid= ;;
            nginx) url="http://127.0.0.1:$nginx/mcp" pid=$nginx_pid ;;
            perch) url="http://127.0.0.1:$gateway/default/bench/mcp" pid=$perch_pid ;;
            esac
            script "$method" "$(session "$url")"
            used() { case $proxy in nginx) cpu "$pid" ;; perch) own "$pid" ;; *) echo 0 ;; esac; }
            before=$(used)
            wrk -t1 -c"$clients" -d"${seconds}s" --latency -s "$work/load.lua" "$url" >"$work/wrk.log"
            after=$(used)
            grep -q 'Non-2xx' "$work/wrk.log" && { cat "$work/wrk.log" >&2; exit 1; }
            calls=$(sed -n 's/^ *\([0-9]*\) requests in.*/\1/p' "$work/wrk.log")
            printf '%-12s %-8s %12s %12s %12s %18s\n' "$method" "$clients" "$proxy" \
                "$(sed -n 's/^Requests\/sec: *//p' "$work/wrk.log")" "$(sed -n 's/^ *99% *//p' "$work/wrk.log")" \
                "$(awk -v ms=$((after - before)) -v calls="$calls" 'BEGIN {printf "%.1f", calls ? ms * 1000 / calls : 0}')"
        done
    done
done
