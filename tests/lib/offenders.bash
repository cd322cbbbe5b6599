# SPDX-License-Identifier: LGPL-2.1-or-later
# Helpers of the tests of hostile and odd programs: offenders, which say when they are ready and end
# when their input does, beside a victim that checks its own memory.
# shellcheck shell=bash disable=SC2154

# begin POOL_MIB [LINE...]: a usmd whose engine, descriptors and memory are noted.
begin() {
	start_usmd "$1" "default policyOne" "${@:2}"
	victim 1
	settled
	ENGINE=$(status enginePid)
	DESCRIPTORS=$(descriptors)
	MEMORY=$(memory_kib)
}

descriptors() {
	ls "/proc/$(status enginePid)/fd" | wc -l
}

memory_kib() {
	awk '$1 == "VmRSS:" || $1 == "RssShmem:" { n = $1 == "VmRSS:" ? n + $2 : n - $2 } END { print n }' \
		"/proc/$(status enginePid)/status"
}

no_process() {
	[ "$(usmctl list processes --json | jq '.processes | length')" -eq 0 ]
}

# No process is managed any more.
settled() {
	wait_for 60 no_process
}

# victim PASSES [MIB]: must end well; 120 s is a limit for hangs only.
victim() {
	run -0 managed root 120 "$T/bin/victim" "${2:-48}" "$1"
	[ "${lines[-1]}" = ok ]
}

# offender NAME COMMAND...: in the background, with its input open; PID is what it says, PIDS has
# those of all.
offender() {
	local name=$1 input

	shift
	mkfifo "$T/$name.in"
	as "${OFFENDER_USER:-root}" timeout -k 5 300 "$T/bin/usmctl" run -- "$@" \
		< "$T/$name.in" > "$T/$name.out" 2> "$T/$name.err" 3>&- &
	BACKGROUND+=($!)
	exec {input}> "$T/$name.in"
	INPUTS+=("$input")
	wait_for 60 grep -q ready "$T/$name.out" || { cat "$T/$name.err"; return 1; }
	PID=$(sed -n 's/^ready //p' "$T/$name.out")
	PIDS+=("$PID")
}

tell() {
	echo >&"${INPUTS[$1]}"
}

# All offenders are told to end, and do so well.
offenders_end() {
	local name input

	for input in "${INPUTS[@]}"; do
		exec {input}>&-
	done
	for name in "$@"; do
		wait_for 60 grep -q ok "$T/$name.out" || { cat "$T/$name.err"; return 1; }
	done
}

# assert_unharmed [MIB]: the same engine, and nothing left of the offenders; so much more memory.
assert_unharmed() {
	settled
	[ "$(status enginePid)" = "$ENGINE" ] || die "the engine is another one" || return 1
	[ "$(status engineRestarts)" -eq 0 ] || die "the engine has died" || return 1
	pid_alive "$USMD_PID" || die "the keeper has died" || return 1
	note "descriptors: $DESCRIPTORS, now $(descriptors); memory: $MEMORY KiB, now $(memory_kib) KiB"
	[ "$(descriptors)" -le $((DESCRIPTORS + 4)) ] || die "descriptors are left open" || return 1
	[ "$(memory_kib)" -le $((MEMORY + ${1:-8} * 1024)) ] || die "usmd has grown" || return 1
	stop_usmd
}

# halt PID...: their agents stand still until unhalt.
halt() {
	mkfifo "$T/halt.in"
	"$T/bin/halt" "$@" < "$T/halt.in" > "$T/halt.out" 2>&1 3>&- &
	HALT_PID=$!
	BACKGROUND+=("$HALT_PID")
	exec {HALT}> "$T/halt.in"
	wait_for 10 grep -q halted "$T/halt.out" || { cat "$T/halt.out"; return 1; }
}

unhalt() {
	exec {HALT}>&-
	# A thread has one tracer at a time.
	wait "$HALT_PID"
	rm "$T/halt.in"
}

kill_offenders() {
	local pid

	for pid in "${PIDS[@]}"; do
		kill -KILL "$pid" 2>/dev/null || :
	done
}

# told TIMES TEXT: clear entries, and not a stream of them.
told() {
	[ "$(grep -c "$2" "$LOG")" -eq "$1" ] || { grep "$2" "$LOG"; die "not told $1 times: $2"; }
}

# liar SCENE: without the tagger, in the background.
liar() {
	timeout -k 5 300 "$T/bin/liar" "$1" "$T/run/attach" </dev/null > "$T/liar.out" 2> "$T/liar.err" 3>&- &
	BACKGROUND+=($!)
	wait_for 60 grep -q ready "$T/liar.out" || { cat "$T/liar.err"; return 1; }
	PIDS+=("$(sed -n 's/^ready //p' "$T/liar.out")")
}
