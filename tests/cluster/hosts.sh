#!/usr/bin/env bash
# A small data center on one machine, to try a cluster on: a launcher, a head and workers, each with an
# address, processes, /tmp, /dev/shm and home folder of its own, and a real sshd. The disk is shared,
# as on a network file system; there is no way out to the internet.
#
#   tests/cluster/hosts.sh FOLDER [WORKERS] -- COMMAND…     runs COMMAND on the launcher
#   tests/cluster/hosts.sh /tmp/hosts 1 -- bash             a shell there
#
# FOLDER gets the homes, the ssh key, sshd's logs and cluster.yaml: configs/cluster/local.yaml with the
# addresses of these hosts. All hosts live in namespaces below one process: when it ends, however it
# ends, nothing is left of them. Needs root, iproute2, util-linux, openssh-server, rsync; exit code 3 says
# that something is missing.
set -euo pipefail

readonly NETWORK=10.77.0 PREFIX=24
readonly NEW_HOST=(unshare --pid --net --mount --uts --fork --kill-child --mount-proc)
readonly SCRIPT=$(readlink -f "$0")
readonly REPOSITORY=$(dirname "$(dirname "$(dirname "$SCRIPT")")")

missing() {
    echo "hosts.sh: $1" >&2
    exit 3
}

check_namespaces() { # TOOL…
    [ "$(id -u)" = 0 ] || missing "network namespaces need root"
    local tool
    for tool in unshare nsenter ip python "$@"; do
        command -v "$tool" > /dev/null || missing "no $tool (Debian: apt-get install openssh-server rsync iproute2 util-linux make)"
    done
    "${NEW_HOST[@]}" ip link add name probe type bridge 2> /dev/null || missing "no namespaces of one's own here"
}

check_tools() {
    check_namespaces ssh ssh-keygen rsync make
    [ -x /usr/sbin/sshd ] || missing "no /usr/sbin/sshd (Debian: apt-get install openssh-server)"
}

# A folder of the host's own in place of one of this machine's; what lies below it and is needed stays.
take_own_folder() { # SOURCE PLACE NEEDED…
    local source=$1 place=$2 needed
    shift 2
    mkdir -p "$source"
    for needed in "$@"; do
        if [[ $needed == "$place"/* ]]; then
            mkdir -p "$source${needed#"$place"}"
            mount --bind "$needed" "$source${needed#"$place"}"
        fi
    done
    mount --rbind "$source" "$place"
}

take_own_places() { # FOLDER NAME
    local needed
    needed=("$1" "$REPOSITORY" $(python -c 'import sys; print(sys.prefix, sys.base_prefix)'))
    mount --make-rprivate /
    take_own_folder "$1/$2/home" "$HOME" "${needed[@]}"
    take_own_folder "$1/$2/tmp" /tmp "${needed[@]}"
    mount -t tmpfs -o size=1g tmpfs /dev/shm
    mount --bind "$1/hosts" /etc/hosts
    mount --bind "$1/resolv.conf" /etc/resolv.conf
    hostname "$2"
    ip link set lo up
}

be_host() { # FOLDER NAME ADDRESS
    take_own_places "$1" "$2"
    local try
    for try in $(seq 100); do
        ip link show eth0 > /dev/null 2>&1 && break
        sleep 0.1
    done
    ip addr add "$3/$PREFIX" dev eth0
    ip link set eth0 up
    # Ray finds its own address by asking for the way out.
    ip route add default via "$NETWORK.254"
    serve "$1" "$2"
}

serve() { # FOLDER NAME
    /usr/sbin/sshd -D -e -f "$1/sshd_config" 2> "$1/$2/sshd.log" &
    # This shell is the host's first process and collects the orphans of the others.
    wait
}

answers() { # FOLDER NAME ADDRESS
    (exec 3<> "/dev/tcp/$3/22") 2> /dev/null
}

write_network() { # FOLDER WORKERS
    mkdir -p "$1"
    printf '%s\n' "127.0.0.1 localhost" "$NETWORK.254 launcher" "$NETWORK.1 head" > "$1/hosts"
    # No name server: queries fail at once. An unreachable one costs torch ten seconds per query.
    printf '%s\n' "nameserver 127.0.0.1" "options timeout:1 attempts:1" > "$1/resolv.conf"
    local number
    for number in $(seq "$2"); do
        echo "$NETWORK.$((number + 1)) worker$number" >> "$1/hosts"
    done
    local name
    for name in launcher head $(seq -f "worker%g" "$2"); do
        mkdir -p "$1/$name/home"
    done
}

write_files() { # FOLDER WORKERS
    write_network "$@"
    mkdir -p /run/sshd
    [ -e "$1/key" ] || ssh-keygen -q -t ed25519 -N "" -f "$1/key"
    [ -e "$1/host_key" ] || ssh-keygen -q -t ed25519 -N "" -f "$1/host_key"
    cat > "$1/sshd_config" << END
HostKey $1/host_key
AuthorizedKeysFile $1/key.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
END
    local name environment
    environment=$(python -c 'import sys; print(sys.prefix)')
    for name in launcher head $(seq -f "worker%g" "$2"); do
        # In place of minutes of pip: the environment that this script was started with, made already.
        mkdir -p "$1/$name/home/lafs_env"
        ln -sf "$environment"/{bin,lib,pyvenv.cfg} "$1/$name/home/lafs_env/"
        touch "$1/$name/home/lafs_env/.node-ready"
        # Five logical processors a host: two training workers of three do not fit on one of them.
        # Ray gives its workers niceness 15: on a machine with other work they would hardly move.
        echo "export RAY_worker_niceness=0" > "$1/$name/home/.bashrc"
        echo "export RAY_OVERRIDE_RESOURCES='{\"CPU\": 5, \"object_store_memory\": 300000000}'" >> "$1/$name/home/.bashrc"
    done
    ( # The shipped file, with these addresses.
        cd "$REPOSITORY"
        python - "$1" $(seq -f "$NETWORK.%g" 2 $(($2 + 1))) << 'END'
import sys, yaml
folder, *workers = sys.argv[1:]
with open("configs/cluster/local.yaml") as file:
    config = yaml.safe_load(file)
config["provider"] |= {"head_ip": workers[0].rsplit(".", 1)[0] + ".1", "worker_ips": workers}
config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{folder}/key"}
with open(f"{folder}/cluster.yaml", "w") as file:
    yaml.safe_dump(config, file, sort_keys=False)
END
    )
}

be_launcher() { # FOLDER WORKERS COMMAND…
    local folder=$1 workers=$2 name address process try
    shift 2
    take_own_places "$folder" launcher
    ip link add name hosts type bridge
    ip addr add "$NETWORK.254/$PREFIX" dev hosts
    ip link set hosts up
    while read -r address name; do
        [[ $name == head || $name == worker* ]] || continue
        "${NEW_HOST[@]}" bash "$SCRIPT" --host "$folder" "$name" "$address" < /dev/null &
        process=$!
        for try in $(seq 100); do
            [ "$(readlink "/proc/$process/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break
            sleep 0.1
        done
        ip link add "$name" type veth peer name eth0 netns "$process"
        ip link set "$name" master hosts
        ip link set "$name" up
    done < "$folder/hosts"
    while read -r address name; do
        [[ $name == head || $name == worker* ]] || continue
        for try in $(seq 100); do
            answers "$folder" "$name" "$address" && break
            sleep 0.1
        done
    done < "$folder/hosts"
    "$@"
}

main() {
    case "${1:-}" in
        --host) shift; be_host "$@" ;;
        --launcher) shift; be_launcher "$@" ;;
        "" | -*) sed -n '2,13s/^# \{0,1\}//p' "$SCRIPT"; exit 2 ;;
        *)
            check_tools
            mkdir -p "$1"
            folder=$(readlink -f "$1") workers=1
            shift
            [ "${1:-}" = -- ] || { workers=$1; shift; }
            [ "${1:-}" = -- ] && shift
            write_files "$folder" "$workers"
            exec "${NEW_HOST[@]}" bash "$SCRIPT" --launcher "$folder" "$workers" "$@"
            ;;
    esac
}

# slurm.sh takes the functions, and puts others in the place of some.
[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"
