# SPDX-License-Identifier: LGPL-2.1-or-later
# Helpers of the native tests: a private usmd, a sampler that watches from outside, and the
# assertions that a program was really managed. Sourced by bats files and by tests/demo.sh.
#
# T is the test's own folder. Everything that is started is remembered by pid and ended by pid.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${BUILD:-$ROOT/build}
# An administrator's PATH may lead into folders that an unprivileged user cannot read.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C
UNPRIVILEGED=nobody

# What a test says goes to the log that bats shows when it fails.
note() {
	echo "# $*"
}

die() {
	echo "FAILED: $*" >&2
	return 1
}

# --- what a test needs; each skips with the reason ---------------------------------------------

skip_or_die() {
	if [ -n "${BATS_TEST_NAME:-}" ]; then
		skip "$1"
	fi
	die "$1"
}

requires_root() {
	[ "$(id -u)" -eq 0 ] || skip_or_die "needs root"
}

requires_command() {
	local c

	for c in "$@"; do
		command -v "$c" >/dev/null || skip_or_die "needs the command $c (make deps)"
	done
}

requires_userfaultfd() {
	[ -c /dev/userfaultfd ] || skip_or_die "needs /dev/userfaultfd (Linux 6.1 or newer)"
}

# --- a private usmd --------------------------------------------------------------------------

# Makes $T with a copy of the programs that an unprivileged user can reach, wherever the
# checkout is.
setup_tree() {
	requires_root
	requires_userfaultfd
	# Not below /tmp by force: O_DIRECT swap needs a real file system.
	T=$(mktemp -d "${USM_TEST_DIR:-/var/tmp}/usmd-test.XXXXXX")
	chmod 755 "$T"
	mkdir -m 755 "$T/bin" "$T/run" "$T/state"
	mkdir -m 1777 "$T/home"
	cp "$BUILD/usmd" "$BUILD/usmctl" "$BUILD/libusm-tagger.so" "$T/bin/"
	cp -r "$BUILD/policies" "$T/bin/policies"
	chmod -R a+rX "$T/bin"
	TAGGER=$T/bin/libusm-tagger.so
	SWAP=$T/state/swap
	LOG=$T/usmd.log
	USMD_PID="" SAMPLER_PID="" KILLER_PID="" BACKGROUND=() USMD_PREFIX=()
	export USMD_RUNTIME_DIR=$T/run
}

# Ends whatever is left and removes $T. A failed test (or a status other than 0, for the demo)
# shows the end of usmd's log first.
teardown_tree() {
	local pid failed=${1:-0}

	[ -n "${T:-}" ] || return 0
	[ -z "${BATS_TEST_NAME:-}" ] || [ -n "${BATS_TEST_COMPLETED:-}" ] || failed=1
	# What the program that failed said itself; bats does not show it.
	if [ "$failed" -ne 0 ] && [ -n "${output:-}" ]; then
		echo "--- the end of the last command's output:"
		tail -n 20 <<< "$output"
	fi
	if [ "$failed" -ne 0 ] && [ -s "$LOG" ]; then
		echo "--- the end of usmd's log:"
		tail -n 30 "$LOG"
	fi
	kill_engine_stop
	for pid in "${BACKGROUND[@]}"; do
		end_pid "$pid"
	done
	sampler_stop
	stop_usmd || :
	rm -rf "$T"
	T=""
}

# end_pid PID [SECONDS]: TERM, and KILL if it is not gone within ten. Says whether KILL was needed.
end_pid() {
	local pid=$1 i

	kill -TERM "$pid" 2>/dev/null || return 0
	for ((i = 0; i < 10 * ${2:-10}; i++)); do
		pid_alive "$pid" || { wait "$pid" 2>/dev/null; return 0; }
		sleep 0.1
	done
	kill -KILL "$pid" 2>/dev/null || :
	wait "$pid" 2>/dev/null
	return 1
}

pid_alive() {
	local state

	state=$(sed -n 's/^State:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null) || return 1
	[[ -n $state && $state != Z* && $state != X* ]]
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
	local end=$((SECONDS + $1))

	shift
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || { die "waited in vain for: $*"; return 1; }
		sleep 0.1
	done
}

# write_config POOL [LINE...]: the pool's size as in the configuration, more lines as they are.
write_config() {
	{
		echo "memory $1"
		echo "workers 2"
		echo "swap $SWAP ${SWAP_SIZE:-1G}"
		shift
		[ $# -eq 0 ] || printf '%s\n' "$@"
	} > "$T/usmd.conf"
}

# start_usmd POOL_MIB [LINE...]
start_usmd() {
	POOL_MIB=$1
	write_config "${POOL_MIB}M" "${@:2}"
	"${USMD_PREFIX[@]}" "$T/bin/usmd" --config "$T/usmd.conf" --runtime-dir "$T/run" --state-dir "$T/state" \
		</dev/null >"$LOG" 2>&1 3>&- &
	USMD_PID=$!
	wait_for 120 usmd_ready || { tail -n 20 "$LOG"; return 1; }
}

usmd_ready() {
	# A start that failed need not be waited for.
	pid_alive "$USMD_PID" && usmctl status
}

# stop_usmd [SECONDS]: the whole of usmd, engines too; a program that is still managed goes on
# without it.
stop_usmd() {
	local pid=${USMD_PID:-}

	USMD_PID=""
	[ -z "$pid" ] || end_pid "$pid" "${1:-10}" || die "usmd did not end within ${1:-10} seconds of SIGTERM"
}

usmctl() {
	timeout "${USMCTL_TIMEOUT:-20}" "$T/bin/usmctl" "$@"
}

# A number or text of GetStatus by its name.
status() {
	usmctl status --json | jq -r ".$1"
}

# as USER COMMAND...: with a home of its own and nothing else of root's.
as() {
	local user=$1

	shift
	if [ "$user" = root ]; then
		env HOME="$T/home" TMPDIR="$T/home" "$@"
	else
		# --clear-groups: root's supplementary groups must not leak in.
		setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups \
			env HOME="$T/home" TMPDIR="$T/home" USER="$user" "$@"
	fi
}

# managed USER SECONDS COMMAND...: under usmctl run, bounded in time.
managed() {
	local user=$1 seconds=$2

	shift 2
	as "$user" timeout -k 5 "$seconds" "$T/bin/usmctl" run -- "$@"
}

# "allow" lines for the unprivileged user: the real files of these commands.
allow_lines() {
	local c path

	for c in "$@"; do
		path=$(command -v "$c") || continue
		echo "allow $(realpath "$path") $UNPRIVILEGED"
	done | sort -u
}

# --- from outside ----------------------------------------------------------------------------

# Starts to watch; what was written to the swap file until now is the baseline.
sampler_start() {
	SAMPLES=$T/samples
	SWAP_BEFORE=$(swap_file_sum)
	"$ROOT/build/tests/sampler" "$TAGGER" "$USMD_PID" "$SAMPLES" </dev/null >/dev/null 2>&1 3>&- &
	SAMPLER_PID=$!
	wait_for 10 grep -q ready "$SAMPLES"
}

sampler_stop() {
	[ -z "${SAMPLER_PID:-}" ] || end_pid "$SAMPLER_PID" || :
	SAMPLER_PID=""
}

# The highest sum of anonymous resident memory, in KiB.
sampler_peak_kib() {
	awk '$1 == "rss" && $4 > peak { peak = $4 } END { print peak + 0 }' "$SAMPLES"
}

# The pool + 5 %; no sample at all is a failure too.
assert_peak_within_pool() {
	local peak limit=$((POOL_MIB * 1024 * 105 / 100))

	peak=$(sampler_peak_kib)
	note "peak $((peak / 1024)) MiB of $POOL_MIB MiB"
	[ "$peak" -gt 0 ] || die "the sampler saw no managed program" || return 1
	[ "$peak" -le "$limit" ] || die "anonymous resident memory reached $peak KiB, the limit is $limit KiB"
}

# At least 90 % of the private writable anonymous bytes that were seen, over all samples.
assert_covered() {
	local sums total registered

	sums=$(awk '$1 == "cover" { t += $4; r += $5 } END { printf "%.0f %.0f\n", t, r }' "$SAMPLES")
	read -r total registered <<< "$sums"
	note "registered $registered of $total KiB (summed over samples)"
	[ "$total" -gt 0 ] || die "no sample of smaps was taken" || return 1
	[ $((registered * 10)) -ge $((total * 9)) ] ||
		die "only $registered of $total KiB of private writable anonymous memory is registered"
}

# assert_managed PID: the same for one process, now.
assert_managed() {
	local sums total registered

	sums=$(awk '
		/^[0-9a-f]+-[0-9a-f]+ / { on = $2 ~ /^.w.p/ && $5 == 0 && $6 !~ /^\[v/; next }
		on && $1 == "Size:" { size = $2 }
		on && $1 == "VmFlags:" { t += size; if (/ u[mw]( |$)/) r += size }
		END { printf "%.0f %.0f\n", t, r }' "/proc/$1/smaps")
	read -r total registered <<< "$sums"
	if [ "$total" -eq 0 ] || [ $((registered * 10)) -lt $((total * 9)) ]; then
		die "process $1: only $registered of $total KiB registered"
	fi
}

# A checksum of the front of the swap file, where slots are given out first.
swap_file_sum() {
	head -c 64M "$SWAP" 2>/dev/null | sha1sum
}

# The swap file was written (its bytes changed) and read (the kernel's I/O accounting of the
# engines), and usmd's own counters say so too.
assert_swap_used() {
	local read_bytes write_bytes

	[ "$SWAP_BEFORE" != "$(swap_file_sum)" ] || die "the swap file's content did not change" || return 1
	read -r read_bytes write_bytes < <(awk '$1 == "io" {
		if (!seen++) { r0 = $3; w0 = $4 } r = $3; w = $4 }
		END { printf "%.0f %.0f\n", r - r0, w - w0 }' "$SAMPLES")
	note "engines read $read_bytes and wrote $write_bytes bytes"
	[ "$write_bytes" -gt 0 ] || die "the engines wrote nothing to storage" || return 1
	[ "$read_bytes" -gt 0 ] || die "the engines read nothing from storage" || return 1
	# Counters start anew with a new engine.
	[ "$(status engineRestarts)" -gt 0 ] ||
		{ [ "$(swap_counter reads)" -gt 0 ] && [ "$(swap_counter writes)" -gt 0 ]; } ||
		die "usmctl list swap counts no reads or writes"
}

# swap_counter reads|writes: pages, over all devices.
swap_counter() {
	usmctl list swap --json | jq "[.swaps[].$1] | add"
}

# --- the engine dies -------------------------------------------------------------------------

# kill -9 of the engine every 200 ms until kill_engine_stop.
# kill_engine_start [SECONDS [TIMES]]: between two deaths, and how many at most.
kill_engine_start() {
	echo 0 > "$T/kills"
	kill_engine_loop "${1:-0.2}" "${2:-1000000}" </dev/null >/dev/null 2>&1 3>&- &
	KILLER_PID=$!
}

kill_engine_loop() {
	local pid kills=0

	while [ $kills -lt "$2" ]; do
		pid=$(USMCTL_TIMEOUT=5 status enginePid)
		# Only ever a child of our own usmd.
		if [[ $pid =~ ^[0-9]+$ ]] && [ "$(ps -o ppid= -p "$pid" | tr -d ' ')" = "$USMD_PID" ]; then
			# Whole at any moment: this loop is ended at any moment.
			kill -KILL "$pid" && echo $((++kills)) > "$T/kills.new" &&
				mv "$T/kills.new" "$T/kills"
		fi
		sleep "$1"
	done
}

kill_engine_stop() {
	[ -z "${KILLER_PID:-}" ] || end_pid "$KILLER_PID" || :
	KILLER_PID=""
}

# How often the engine was killed until now.
kills() {
	cat "$T/kills" 2>/dev/null || echo 0
}

# assert_killed AT_LEAST: so often, and each time a new engine came.
assert_killed() {
	local kills restarts

	kills=$(kills)
	restarts=$(status engineRestarts)
	note "the engine was killed $kills times, usmd counts $restarts restarts"
	[ "$kills" -ge "$1" ] || die "the engine was killed only $kills times" || return 1
	[ "$restarts" -ge "$kills" ] || die "$kills kills but $restarts restarts"
}
