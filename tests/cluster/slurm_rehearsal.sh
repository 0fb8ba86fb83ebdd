#!/usr/bin/env bash
# A run under Slurm whose time is up before it has ended: saved, requeued, continued by the same job. On the launcher
# of slurm.sh:
#
#   tests/cluster/slurm.sh /tmp/slurm 1 -- tests/cluster/slurm_rehearsal.sh /tmp/slurm [KEY=VALUE…]
#
# FOLDER/faces/train.rec has to be there. What the test reads lies in FOLDER.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
readonly FOLDER=$1
shift
export PYTHONPATH=$PWD PATH=$(python -c 'import sys; print(sys.prefix)')/bin:$PATH
# Ray gives a raylet 30 s to start, which a process for each processor, needed or not, and niceness could exceed.
export RAY_prestart_worker_first_driver=0 RAY_worker_niceness=0
readonly RUN=$FOLDER/runs/slurm

step() { printf '\n=== %s s: %s\n' "$SECONDS" "$*"; }

step "the token, in the home folder that the nodes of a Slurm share"
on_head ray get-auth-token --generate > /dev/null
for home in "$FOLDER"/*/home; do
    mkdir -p "$home/.ray"
    [ -e "$home/.ray/auth_token" ] || cp "$FOLDER/head/home/.ray/auth_token" "$home/.ray/"
done

# Two workers of three processors each: on no host of five there is room for both.
readonly COMMAND=(lafs pretrain debug data.path="$FOLDER/faces/train.rec" run.storage="$FOLDER/runs" run.name=slurm
    compute.workers=2 compute.cpus_per_worker=3 ingest.actors_per_worker=1 "$@")

step "a job whose time is up after some steps"
submit 1 configs/cluster/slurm.sbatch "${COMMAND[@]}" &
for _ in $(seq 1800); do
    [ -s "$RUN/metrics.jsonl" ] && break
    kill -0 $! 2> /dev/null || break
    sleep 0.1
done
on_head bash -c 'kill -USR1 "$(cat "$0/jobs/1/pid")"' "$FOLDER"
code=0
wait $! || code=$?
step "it ended with $code"
echo "$code" > "$FOLDER/jobs/1/code"
cp "$FOLDER/jobs/1/log" "$FOLDER/jobs/1/first.log"

step "the job starts again"
code=0
submit 1 configs/cluster/slurm.sbatch "${COMMAND[@]}" || code=$?
step "it ended with $code"
echo "$code" > "$FOLDER/jobs/1/second.code"
