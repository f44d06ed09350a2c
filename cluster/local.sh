#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine: try `ray job submit` here before you pay for a real one.
#   cluster/local.sh start [NODES [OPTION...]]   a head that trains nothing and NODES workers (default 1), each
#                                                started with OPTIONs of `ray start`, such as --num-cpus=2
#   cluster/local.sh add [OPTION...]             one more worker, as after a loss
#   cluster/local.sh stop
# Ports and folder are its own: `ray.init()` elsewhere on the machine does not meet it. Several nodes make Ray listen
# on every network, loopback or not: they ask for the token of ~/.ray/auth_token, unless RAY_AUTH_MODE=disabled.
set -euo pipefail
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}

folder=${LOCAL_CLUSTER:-/tmp/repr_ray_cluster}
port=${LOCAL_CLUSTER_PORT:-26379}
dashboard=$((port + 1))
nodes=()

node() { # NAME AGENT_PORT OPTION...: a raylet with a folder of its own, in a session of its own
    mkdir -p "$folder/$1"
    setsid ray start --block --disable-usage-stats --node-ip-address=127.0.0.1 --temp-dir="$folder/$1" \
        --dashboard-agent-listen-port="$2" "${@:3}" >"$folder/$1.log" 2>&1 </dev/null &
    nodes+=($!)
    echo $! >"$folder/$1.pid"
}

await() { # COMMAND...: until it succeeds; the end of every log when that takes too long, or when a node has ended
    until "$@"; do
        if ((SECONDS >= ${LOCAL_CLUSTER_TIMEOUT:-180})) || ! alive; then tail -n 20 "$folder"/*.log >&2; return 1; fi
        sleep 0.2
    done
}

alive() { # whether all nodes that this command started run
    for pid in "${nodes[@]}"; do kill -0 "$pid" 2>/dev/null || return 1; done
}

started() { # COUNT NAME: whether that many nodes of this name are up
    (($(grep -ls "Ray runtime started" "$folder/$2"*.log | wc -l) == $1))
}

running() { # whether the head of our cluster is up
    [[ -e $folder/head.pid ]] && kill -0 "$(<"$folder/head.pid")" 2>/dev/null
}

add() {
    running || { echo "there is no cluster at $folder: cluster/local.sh start first, or set LOCAL_CLUSTER" >&2; exit 1; }
    local number=1 && while [[ -e $folder/worker$number ]]; do number=$((number + 1)); done
    node "worker$number" $((port + 2 + number)) --address="127.0.0.1:$port" "$@"
    await started 1 "worker$number"
}

token() { # in the cluster's folder, for a home that cannot be written
    mkdir -p "$folder"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$folder/auth_token")
    export RAY_AUTH_TOKEN_PATH=$folder/auth_token
}

start() {
    local count=${1:-1}
    [[ ! -e $folder ]] || { echo "$folder exists: cluster/local.sh stop first, or set LOCAL_CLUSTER" >&2; exit 1; }
    [[ $RAY_AUTH_MODE == disabled || -n ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} ]] ||
        ray get-auth-token --generate >/dev/null 2>&1 || token
    node head $((port + 2)) --head --port="$port" --ray-client-server-port=$((port - 1)) --num-cpus=0 --num-gpus=0 \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard"
    await started 1 head
    for ((i = 1; i <= count; i++)); do
        node "worker$i" $((port + 2 + i)) --address="127.0.0.1:$port" "${@:2}"
    done
    await started "$count" worker
    await curl --silent --output /dev/null "http://127.0.0.1:$dashboard/api/version"
    # The job's environment: a cluster on one machine needs no mounted folder, and keeps results when it is stopped.
    { sed -n '1,/^env_vars:/p' "$(dirname "$0")/runtime_env.yaml"
      printf '  %s: %s\n' REPR_RAY_RESULTS "'${PWD//\'/\'\'}/results'" RAY_JOB_STOP_WAIT_TIME_S '"30"'; } >"$folder/runtime_env.yaml"
    echo "submit with --runtime-env '$folder/runtime_env.yaml', which puts results in $PWD/results" >&2
    [[ -z ${RAY_AUTH_TOKEN_PATH:-} ]] || printf 'export RAY_AUTH_TOKEN_PATH=%q\n' "$RAY_AUTH_TOKEN_PATH"
    echo "export RAY_AUTH_MODE=$RAY_AUTH_MODE RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard RAY_ADDRESS=127.0.0.1:$port"
}

stop() {
    for pid in "$folder"/*.pid; do
        [[ ! -e $pid ]] || kill -9 -- "-$(<"$pid")" 2>/dev/null || true
    done
    rm -rf "$folder"
}

case ${1:-} in
    start) start "${@:2}" ;;
    add) add "${@:2}" ;;
    stop) stop ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
