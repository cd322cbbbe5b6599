# SPDX-License-Identifier: LGPL-2.1-or-later
# What usmd says of programs, on its stderr: sums, single pages, and nothing twice or left out. The
# fields of the journal are looked at in tests/unit/test-journal.c and tests/system.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	setup_tree
	requires_command jq
	cp "$ROOT/build/tests/hold" "$T/bin/"
}

teardown() {
	exec 4>&-
	teardown_tree
}

# sum TEXT: of all entries "N TEXT" of the program, with those of "is no longer managed" left out.
sum() {
	sed -n "s/^usmd: hold (pid [0-9]*): \([0-9]*\) $1\$/\1/p" "$LOG" | awk '{ n += $1 } END { print n + 0 }'
}

# total N: the numbers of "is no longer managed: A faults, B pages evicted, C swapped in".
total() {
	sed -n 's/^usmd: hold (pid [0-9]*) is no longer managed: \([0-9]*\) faults, \([0-9]*\) pages evicted, \([0-9]*\) swapped in$/\1 \2 \3/p' \
		"$LOG" | awk -v n="$1" '{ print $n }'
}

# What was said one by one is all that there was.
sums_are_complete() {
	wait_for 10 grep -q "is no longer managed" "$LOG"
	[ "$(total 2)" -gt 0 ]
	[ "$(sum faults)" -eq "$(total 1)" ]
	[ "$(sum "pages evicted")" -eq "$(total 2)" ]
	[ "$(sum "pages swapped in")" -eq "$(total 3)" ]
}

start_hold() {
	mkfifo "$T/in"
	timeout 120 "$T/bin/usmctl" run -- "$T/bin/hold" "$1" < "$T/in" > "$T/out" 2>&1 3>&- &
	BACKGROUND+=($!)
	exec 4> "$T/in"
	wait_for 30 grep -q ready "$T/out"
}

check_hold() {
	echo check >&4
	wait_for 30 grep -q ok "$T/out"
}

end_hold() {
	exec 4>&-
	wait "${BACKGROUND[-1]}"
	unset 'BACKGROUND[-1]'
}

@test "a program that ends at once is summed up, too" {
	start_usmd 64 "process hold policyOne" "limit hold 4M"
	run -0 managed root 30 "$T/bin/hold" 16 < /dev/null
	sums_are_complete
	[ "$(total 3)" -gt 0 ]
}

@test "sums go on where a dead engine has left off" {
	local pid

	start_usmd 64 "process hold policyOne" "limit hold 8M"
	start_hold 16
	wait_for 10 grep -q "pages evicted" "$LOG"
	pid=$(status enginePid)
	kill -KILL "$pid"
	wait_for 20 grep -q "A new engine carries on" "$LOG"
	check_hold
	end_hold
	sums_are_complete
}

@test "with --debug each page is named when it comes and goes" {
	local evicted

	USMD_PREFIX=(bash -c 'exec "$@" --debug' -)
	start_usmd 64 "process hold policyOne" "limit hold 2M"
	run -0 managed root 30 "$T/bin/hold" 4 < /dev/null
	sums_are_complete
	evicted=$(grep -cE '^usmd: hold \(pid [0-9]+\): evict at 0x[0-9a-f]+000, frame 0x[0-9a-f]+000, slot [0-9]+$' "$LOG")
	# A page that the kernel dropped later (LAZY) has left without having been counted.
	[ "$evicted" -ge "$(total 2)" ]
	grep -qE '^usmd: hold \(pid [0-9]+\): fault at 0x[0-9a-f]+000, frame 0x[0-9a-f]+000, slot 0$' "$LOG"
	grep -qE '^usmd: hold \(pid [0-9]+\): swapin at 0x[0-9a-f]+000, frame 0x[0-9a-f]+000, slot [1-9][0-9]*$' "$LOG"
}

@test "every kind of entry has an id, and every id its text in the catalog" {
	local ids known

	# Each initializer of fields that names an event names an id, too.
	run -0 perl -0777 -ne 'while (/struct usm_log_fields\s*\)?\s*(?:\w+\s*=\s*)?\{([^{}]*\.event[^{}]*)\}/g) {
		$n++; print "$ARGV: $1\n" unless $1 =~ /\.message_id/ } END { print "$n\n" }' \
		"$ROOT"/usmd/*.c "$ROOT"/usmd/lib/*.c
	note "$output"
	[[ ${lines[-1]} -gt 20 ]]
	[ "${#lines[@]}" -eq 1 ]
	ids=$(sed -n 's/^#define USM_MSG_[A-Z_]*[[:space:]]*"\([0-9a-f]*\)".*/\1/p' "$ROOT/usmd/lib/log.h" | sort)
	known=$(sed -n 's/^-- \([0-9a-f]\{32\}\)$/\1/p' "$ROOT/units/usmd.catalog" | sort)
	[ "$(wc -l <<< "$ids")" -ge 18 ]
	diff <(echo "$ids") <(echo "$known")
	[ "$(sort -u <<< "$ids" | wc -l)" -eq "$(wc -l <<< "$ids")" ]
}
