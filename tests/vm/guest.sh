#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Process 1 of the virtual machine: runs the tests of this kernel and leaves their TAP, the logs
# and the kernel's messages as a tar file on the second disk, /dev/vdc.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# What mounts is not essential, and not in the image.
b=/usr/bin/busybox
$b mount -t proc none /proc
$b mount -t sysfs none /sys
$b mount -t tmpfs none /run
mkdir -p /dev/shm /usm/results
$b mount -t tmpfs none /dev/shm

# Whatever happens, the host gets what there is.
finish() {
	trap - EXIT
	dmesg > /usm/results/dmesg
	tar -c -C /usm/results -f /dev/vdc .
	sync
	echo b > /proc/sysrq-trigger
	sleep 60
}
trap finish EXIT
exec </dev/null >>/usm/results/log 2>&1

# shellcheck source=tests/lib/common.bash
. /usm/tests/lib/common.bash
TAP=/usm/results/tap
nr=0

# t NAME FUNCTION...: one test; what it says goes to the log, its notes to TAP as well.
t() {
	local name=$1 status start=$SECONDS

	shift
	echo "=== $name"
	(
		setup_tree && (set -e; "$@")
		status=$?
		usmctl status
		teardown_tree $status
		exit $status
	) > /usm/results/test.log 2>&1
	status=$?
	cat /usm/results/test.log
	grep '^# ' /usm/results/test.log >> "$TAP"
	echo "$([ $status -eq 0 ] || echo 'not ')ok $((++nr)) $(uname -r): $name in $((SECONDS - start)) s" \
		>> "$TAP"
}

# in_small_pool KILLS SECONDS COMMAND...: twice what fits, with the engine killed meanwhile or not.
in_small_pool() {
	local kills=$1 seconds=$2 pid

	shift 2
	start_usmd 16 "default policyOne" "eviction auto"
	[ "$(status eviction)" = lazyfree ] || die "eviction auto chose $(status eviction)"
	if [ "$kills" -gt 0 ]; then
		while sleep 1; do
			pid=$(status enginePid)
			[ "$(ps -o ppid= -p "$pid" | tr -d ' ')" != "$USMD_PID" ] || kill -KILL "$pid"
		done </dev/null >/dev/null 2>&1 &
		KILLER_PID=$!
	fi
	managed root "$seconds" "$@"
	kill_engine_stop
	note "$(usmctl status --json |
		jq -r '"\(.faults) faults, \(.evictions) evictions, \(.swapIns) swap-ins, \(.engineRestarts) restarts"')"
	[ "$(status evictions)" -gt 0 ] && [ "$(status swapIns)" -gt 0 ] || die "nothing was swapped"
	[ "$(status engineRestarts)" -ge "$kills" ] || die "fewer than $kills restarts"
	[ "$(status errors)" -eq 0 ] || die "usmd counts $(status errors) errors"
	stop_usmd
}

SWAP_SIZE=96M
torture=/usm/build/tests/torture
t "stress-ng verifies 32 MiB in a pool of 16 MiB" in_small_pool 0 300 \
	stress-ng --temp-path /tmp --vm 1 --vm-bytes 32M --vm-method all --verify --oomable --timeout 10
t "torture" in_small_pool 0 300 $torture 10 3 4096 1
t "torture while the engine is killed" in_small_pool 3 300 $torture 10 2 4096 2
t "fork: each process sees its own pages" in_small_pool 0 300 /usm/build/tests/fork-cow 8
echo "1..$nr" >> "$TAP"
