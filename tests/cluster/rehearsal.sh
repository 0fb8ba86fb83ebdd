#!/usr/bin/env bash
# The whole way of a cluster, on this machine: ray up, status, a refused stranger, a job with a mistake, a
# pretraining job over two hosts with its log followed, ray down. On the launcher of hosts.sh:
#
#   tests/cluster/hosts.sh /tmp/hosts 1 -- tests/cluster/rehearsal.sh /tmp/hosts [KEY=VALUE…]
#
# Two minutes on two quiet cores, five on busy ones. Every wait is bounded. What the test reads lies in FOLDER.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
readonly FOLDER=$1
shift
readonly CLUSTER=$FOLDER/cluster.yaml
export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 PYTHONPATH=$PWD
# Ray's second autoscaler, the default, starts no workers with the provider `local`.
export RAY_UP_enable_autoscaler_v2=0

step() { printf '\n=== %s s: %s\n' "$SECONDS" "$*"; }
on() { # HOST COMMAND…
    timeout 30 ssh -q -i "$FOLDER/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "root@$1" "${@:2}"
}

[ -e "$FOLDER/faces" ] || python jobs/make_faces.py "$FOLDER/faces" --identities 12 --images 10

step "the token, and ray up"
[ -e ~/.ray/auth_token ] || timeout 30 ray get-auth-token --generate > /dev/null
chmod 600 ~/.ray/auth_token
up() { timeout 120 ray up --yes --no-config-cache --disable-usage-stats "$CLUSTER" > "$FOLDER/up.log" 2>&1; }
# Ray gives a raylet 30 s to start, which a busy machine may exceed: then try a second time.
up || up

step "ray dashboard: the way to the head's loopback through ssh"
timeout 600 ray dashboard "$CLUSTER" > "$FOLDER/dashboard.log" 2>&1 &
for _ in $(seq 60); do
    (exec 3<> /dev/tcp/127.0.0.1/8265) 2> /dev/null && break
    sleep 0.5
done

step "a submission without the token, and one with another token"
RAY_AUTH_MODE=disabled timeout 60 ray job submit -- touch "$FOLDER/stranger-was-here" > "$FOLDER/stranger.log" 2>&1 && exit 1
RAY_AUTH_TOKEN=$(printf 0%.0s $(seq 64)) timeout 60 ray job submit -- touch "$FOLDER/stranger-was-here" > "$FOLDER/forger.log" 2>&1 && exit 1
echo "both refused"

step "ray status: every host joins"
for _ in $(seq 60); do
    on head 'bash -ic "ray status"' > "$FOLDER/status.txt" 2> /dev/null || true
    grep -q "0.0/10.0 CPU" "$FOLDER/status.txt" && break
    sleep 1
done
cat "$FOLDER/status.txt"

step "what listens on each host"
for host in $(awk '/head|worker/ {print $2}' "$FOLDER/hosts"); do
    on "$host" 'ss --tcp --listening --numeric --no-header' > "$FOLDER/$host/listening.txt"
    echo "$host: $(wc -l < "$FOLDER/$host/listening.txt") listeners"
done

step "a job with a mistake: its message and status 2 come back"
timeout 60 ray job submit --no-wait --submission-id mistake --working-dir . -- \
    python jobs/pretrain.py configs/pretrain/debug.yaml data.path="$FOLDER/faces/train.rec" compute.workers=1 \
    > "$FOLDER/submit.log" 2>&1

# While the job trains: responses of a worker process and of everything else to requests without the token.
visit() {
    local port=
    for _ in $(seq 100); do
        port=$(on worker1 'ss --tcp --listening --numeric --no-header' | grep -oE ':20[0-9]{3}\b' | head -1) || true
        [ -n "$port" ] && break
        sleep 1
    done
    timeout 90 python tests/cluster/stranger.py 10.77.0.1 6379 6380 6381 6382 6383 6384 6385 10001 44217 44227 > "$FOLDER/head/answers.txt"
    timeout 90 python tests/cluster/stranger.py 10.77.0.2 6380 6381 6382 6383 6384 6385 ${port#:} > "$FOLDER/worker1/answers.txt"
}
visit > "$FOLDER/visit.log" 2>&1 &
readonly VISITOR=$!

step "pretraining over two hosts"
code=0
timeout 400 ray job submit --submission-id rehearsal --working-dir . -- \
    python jobs/pretrain.py configs/pretrain/debug.yaml data.path="$FOLDER/faces/train.rec" \
    run.storage="$FOLDER/runs" run.name=rehearsal compute.workers=2 compute.cpus_per_worker=3 \
    ingest.actors_per_worker=1 "$@" 2>&1 | tee "$FOLDER/job.log" || code=$?
timeout 60 ray job status mistake > "$FOLDER/mistake.log" 2>&1 || true
[ "$code" = 0 ] || exit "$code"
wait "$VISITOR"

step "ray down, and ray stop on the workers, which ray down leaves to themselves with the provider local"
timeout 60 ray down --yes "$CLUSTER" > "$FOLDER/down.log" 2>&1
for host in $(awk '/worker/ {print $2}' "$FOLDER/hosts"); do
    on "$host" 'bash -ic "ray stop --grace-period 5"' > /dev/null 2>&1 || true
done
for host in $(awk '/head|worker/ {print $2}' "$FOLDER/hosts"); do
    on "$host" 'pgrep -a "raylet|gcs_server" || true' > "$FOLDER/$host/left.txt"
done
step "done"
