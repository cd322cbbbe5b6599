# SPDX-License-Identifier: LGPL-2.1-or-later
# Programs with memory management of their own, in a pool smaller than what they use. Each
# computes something whose result is known.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	setup_tree
	requires_command jq
}

teardown() {
	teardown_tree
}

requires_file() {
	[ -e "$1" ] || skip "needs $1 (make deps)"
}

# odd EXPECTED COMMAND...: in a pool of 32 MiB; the last line of its output is EXPECTED.
odd() {
	start_usmd 32 "default policyOne" "${LINES_OF_CONFIG[@]}"
	sampler_start
	run -0 managed root 300 "${@:2}"
	[ "${lines[-1]}" = "$1" ]
	assert_swap_used
	sampler_stop
	[ "$(status engineRestarts)" -eq 0 ]
	stop_usmd
}

@test "python multiprocessing: a pool of processes and shared results" {
	requires_command python3
	odd 67108864 python3 -c '
import multiprocessing as m
d = bytearray(48 << 20)
def f(i):
    b = bytearray(8 << 20)
    for k in range(0, len(b), 4096): b[k] = i % 251
    return sum(1 for k in range(0, len(b), 4096) if b[k] == i % 251) * 4096
if __name__ == "__main__":
    with m.Pool(3) as p: print(sum(p.map(f, range(8))))'
}

@test "a program built with AddressSanitizer" {
	requires_command gcc
	gcc -std=gnu11 -D_GNU_SOURCE -O1 -g -fsanitize=address -I"$ROOT/tests/lib" -pthread \
		-o "$T/bin/fork-cow" "$ROOT/tests/native/progs/fork-cow.c"
	# The runtime wants to be the first library.
	ASAN_OPTIONS=verify_asan_link_order=0 odd ok "$T/bin/fork-cow" 64
}

@test "jemalloc" {
	local lib=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2

	requires_file "$lib"
	requires_command python3
	odd 12888890 env LD_PRELOAD="$TAGGER $lib" PYTHONMALLOC=malloc python3 -c '
d = {i: str(i) for i in range(2000000)}
print(sum(len(v) for v in d.values()))'
}

@test "node" {
	requires_command node
	odd 12888890 node -e '
const d = new Map(); for (let i = 0; i < 2000000; i++) d.set(i, String(i));
let n = 0; for (const v of d.values()) n += v.length; console.log(n)'
}
