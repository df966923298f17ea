#!/bin/sh
# Boots the systemd of a Debian tree in a container of its own and stays in front of it: boot.sh ROOT [nspawn arguments].
# For root, on any Linux: nothing of this machine's systemd (if it has one) is used, what the container writes goes to memory, and
# its network is a loopback of its own.
set -eu
root=$(realpath "$1")
shift
exec unshare --mount --propagation private sh -c '
    set -eu
    root=$1
    shift
    mkdir -p /run/systemd/nspawn
    mount -t tmpfs tmpfs /run/systemd/nspawn
    # Only in this mount namespace: a cgroup tree as the container expects it, and a group of its own.
    umount -R /sys/fs/cgroup 2>/dev/null || umount -lR /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    group=/sys/fs/cgroup/promptd-test-$$
    mkdir "$group"
    echo $$ > "$group/cgroup.procs"
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    exec systemd-nspawn --quiet --directory="$root" --volatile=overlay --register=no --keep-unit --private-network \
        --system-call-filter="landlock_create_ruleset landlock_add_rule landlock_restrict_self" --console=pipe --boot "$@"
' boot "$root" "$@"
