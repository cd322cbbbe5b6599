#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# make demo: two programs that verify their own memory run in a pool smaller than what they use.
# Exit status 0 only if both verified, pages really went to swap and came back, and the memory
# that /proc shows stayed within the pool.
set -uo pipefail

# shellcheck source=tests/lib/common.bash
. "$(dirname "$0")/lib/common.bash"

POOL_MIB=256
TABLE=()
ok=yes

# The trap calls it.
# shellcheck disable=SC2317
finish() {
	local status=$?

	teardown_tree $status
	exit $status
}

# One line, rewritten twice a second, from usmctl status --json.
progress() {
	local resident swapped faults last=-1

	while :; do
		read -r resident swapped faults < <(usmctl status --json | jq -r '
			"\(((.framesTotal - .framesFree) / 256) | floor) \((.slotsUsed / 256) | floor) \(.faults)"')
		if [ -n "${faults:-}" ]; then
			[ "$last" -ge 0 ] || last=$faults
			printf '\r  resident %4d MiB   on swap %4d MiB   %7d faults/s ' \
				"$resident" "$swapped" $(((faults - last) * 2))
			last=$faults
		fi
		sleep 0.5
	done
}

# show NAME HOW PATTERN COMMAND...: runs it and adds a row; PATTERN in its output says that it
# verified its memory.
show() {
	local name=$1 how=$2 pattern=$3 before after row verified=no peak progress_pid status=0

	shift 3
	echo
	echo "\$ $*"
	sampler_start
	before=$(status 'faults, .evictions, .swapIns')
	progress 2>/dev/null &
	progress_pid=$!
	BACKGROUND+=("$progress_pid")
	timeout -k 5 300 "$@" </dev/null >"$T/output" 2>&1 || status=$?
	end_pid $progress_pid
	after=$(status 'faults, .evictions, .swapIns')
	sampler_stop
	echo
	if [ $status -eq 0 ] && grep -q "$pattern" "$T/output"; then
		verified=yes
	else
		echo "  status $status; the end of its output:"
		tail -n 15 "$T/output"
	fi
	peak=$(sampler_peak_kib)
	row=$(paste <(echo "$before") <(echo "$after") | awk '{ printf "%d ", $2 - $1 }')
	read -r faults evictions swap_ins <<< "$row"
	TABLE+=("$(printf '%-14s %-11s %10d %10d %10d %8d MiB  %s' "$name" "$how" "$faults" \
		"$evictions" "$swap_ins" $((peak / 1024)) $verified)")
	if [ $verified = no ] || [ "$evictions" -le 0 ] || [ "$swap_ins" -le 0 ]; then
		ok=no
	fi
	assert_peak_within_pool >/dev/null || ok=no
}

if [ "$(id -u)" -ne 0 ]; then
	echo "The demo needs root: sudo make demo" >&2
	exit 1
fi
trap finish EXIT
trap 'exit 130' INT TERM
export SWAP_SIZE=2G
setup_tree || exit 1
echo "Starting usmd: a pool of $POOL_MIB MiB, a swap file of 2 GiB. Its folder: $T"
start_usmd $POOL_MIB "process stress-ng policyOne" "process stressapptest policyOne" || exit 1
run=("$T/bin/usmctl" run --)
stress=(stress-ng --temp-path "$T/home" --vm 1 --vm-bytes 1G --vm-method all --verify --timeout 15s)
app=(stressapptest -s 20 -M 512 -m 1)
show stress-ng "usmctl run" "successful run completed" "${run[@]}" "${stress[@]}"
show stressapptest "usmctl run" "Status: PASS" "${run[@]}" "${app[@]}"
show stressapptest LD_PRELOAD "Status: PASS" env LD_PRELOAD="$TAGGER" "${app[@]}"

echo
printf '%-14s %-11s %10s %10s %10s %12s  %s\n' program started faults evictions "swap-ins" \
	"peak" verified
printf '%s\n' "${TABLE[@]}"
echo "(peak: anonymous resident memory of the managed programs, summed from /proc; pool $POOL_MIB MiB)"
[ $ok = yes ] || { echo "The demo FAILED."; exit 1; }
echo "The demo succeeded: 1 GiB and 512 MiB of memory ran in $POOL_MIB MiB."
