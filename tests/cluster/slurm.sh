#!/usr/bin/env bash
# A small Slurm on one machine, to try configs/cluster/slurm.sbatch on: the hosts of hosts.sh without sshd, and
# stand-ins for srun and scontrol. What srun starts runs on every host, with Slurm's variables.
#
#   tests/cluster/slurm.sh FOLDER [WORKERS] -- COMMAND…     runs COMMAND, which finds `submit` and `on_head`
#   submit JOB SCRIPT ARGUMENT…                             runs a batch script on the first host, as sbatch would
#   on_head COMMAND…                                        runs a command there
#
# FOLDER gets jobs/JOB/log, jobs/JOB/pid and jobs/JOB/requeued. Exit code 3 says that something is missing.
source "$(dirname "$(readlink -f "$0")")/hosts.sh"

check_tools() {
    check_namespaces
}

write_files() { # FOLDER WORKERS
    write_network "$@"
    local name
    for name in launcher head $(seq -f "worker%g" "$2"); do
        rm -f "$1/$name/steps"
        mkfifo "$1/$name/steps"
    done
}

# slurmd: runs each file whose path comes through the pipe, with its output and exit code beside it; `kill` ends all.
serve() { # FOLDER NAME
    local step
    exec 3<> "$1/$2/steps"
    touch "$1/$2/serves"
    while read -r step <&3; do
        [ "$step" != kill ] || { kill -KILL -1 || true; continue; }
        { bash "$step" > "$step.$2.log" 2>&1 < /dev/null && echo 0 > "$step.$2.code" || echo $? > "$step.$2.code"; } &
    done
}

answers() { # FOLDER NAME ADDRESS
    [ -e "$1/$2/serves" ]
}

# The steps of a command on some hosts, side by side; the greatest of their exit codes.
run_step() { # HOSTS VARIABLES COMMAND…
    local hosts=$1 variables=$2 step host code worst=0 tails=()
    shift 2
    step=$(mktemp "$SLURM_FOLDER/step-XXXXXX")
    { export -p; echo "$variables"; printf 'cd %q\n' "$PWD"; printf '%q ' exec "$@"; } > "$step"
    for host in $hosts; do
        touch "$step.$host.log"
        tail -q -n +1 -f "$step.$host.log" > >(sed -u "s/^/$host: /") 2> /dev/null &
        tails+=($!)
        echo "$step" > "$SLURM_FOLDER/$host/steps"
    done
    for host in $hosts; do
        until [ -s "$step.$host.code" ]; do sleep 0.1; done
        code=$(cat "$step.$host.code")
        [ "$code" -le "$worst" ] || worst=$code
    done
    sleep 0.2
    kill "${tails[@]}"
    return "$worst"
}

hosts_of() { # FOLDER
    awk '/head|worker/ {print $2}' "$1/hosts"
}

srun() { # [OPTION…] COMMAND…
    while [[ ${1:-} == --* ]]; do shift; done
    run_step "$SLURM_JOB_NODELIST" "export SLURM_CPUS_ON_NODE=$SLURM_CPUS_PER_TASK" "$@"
}

scontrol() { # show hostnames LIST | requeue JOB
    case "$1 $2" in
        "show hostnames") printf '%s\n' $3 ;;
        requeue*) touch "$SLURM_FOLDER/jobs/$2/requeued" ;;
        *) echo "scontrol: $*" >&2; return 1 ;;
    esac
}

on_head() { # COMMAND…
    run_step head "" "$@"
}

submit() { # JOB SCRIPT ARGUMENT…
    local folder=$SLURM_FOLDER/jobs/$1
    mkdir -p "$folder"
    export SLURM_JOB_ID=$1 SLURM_JOB_NODELIST SLURM_JOB_NUM_NODES SLURM_CPUS_PER_TASK=5
    SLURM_JOB_NODELIST=$(hosts_of "$SLURM_FOLDER" | xargs)
    SLURM_JOB_NUM_NODES=$(wc -w <<< "$SLURM_JOB_NODELIST")
    shift
    local host code=0
    on_head bash -c 'echo $$ > "$0/pid"; exec bash "$@" > "$0/log" 2>&1' "$folder" "$@" || code=$?
    # A job's processes end with its script.
    for host in $SLURM_JOB_NODELIST; do echo kill > "$SLURM_FOLDER/$host/steps"; done
    return "$code"
}

case "$(basename "$0")" in
    srun | scontrol | submit | on_head) "$(basename "$0")" "$@" ;;
    *)
        if [ "${1:-}" = --launcher ]; then
            export SLURM_FOLDER=$2 PATH=$2/bin:$PATH
            mkdir -p "$2/bin" "$2/jobs"
            for name in srun scontrol submit on_head; do ln -sf "$SCRIPT" "$2/bin/$name"; done
        fi
        main "$@"
        ;;
esac
