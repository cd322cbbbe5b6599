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
	[ -e "$1" ] || skip "needs $1"
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

# A server, its helpers and three backends that sort in memory of their own.
@test "PostgreSQL" {
	local bin data=$T/home/data i

	bin=$("$ROOT/tests/lib/postgres.sh")
	start_usmd 32 "default policyOne" "allow $bin/postgres $UNPRIVILEGED"
	sampler_start
	as "$UNPRIVILEGED" "$bin/initdb" -D "$data" -A trust -U usm >/dev/null
	as "$UNPRIVILEGED" "$T/bin/usmctl" run -- "$bin/postgres" -D "$data" -k "$T/home" -h "" \
		-c work_mem=256MB -c shared_buffers=16MB -c fsync=off -c jit=off -c max_parallel_workers_per_gather=0 \
		</dev/null >"$T/postgres.out" 2>&1 3>&- &
	BACKGROUND+=($!)
	wait_for 60 "$bin/psql" -h "$T/home" -U usm -c "SELECT 1" template1
	for i in 1 2 3; do
		timeout 200 "$bin/psql" -h "$T/home" -U usm -At template1 -c "SELECT count(*), min(m) FROM
			(SELECT md5(i::text) m FROM generate_series(1, 200000) i ORDER BY m) s" \
			> "$T/$i.out" 2>&1 3>&- &
		queries+=($!)
	done
	wait "${queries[@]}"
	for i in 1 2 3; do
		[ "$(cat "$T/$i.out")" = "200000|00003e3b9e5336685200ae85d21b4f5e" ] || { cat "$T/$i.out"; return 1; }
	done
	assert_swap_used
	sampler_stop
	kill -INT "$(head -n 1 "$data/postmaster.pid")"
	wait_for 60 test ! -e "$data/postmaster.pid"
	[ "$(status engineRestarts)" -eq 0 ]
	stop_usmd
}

@test "a JVM" {
	requires_command java
	cat > "$T/home/Sum.java" <<-'END'
		import java.util.HashMap;
		public class Sum {
			public static void main(String[] a) {
				var d = new HashMap<Integer, String>();
				for (int i = 0; i < 500000; i++) d.put(i, String.valueOf(i));
				long n = 0;
				for (var v : d.values()) n += v.length();
				System.out.println(n);
			}
		}
	END
	java --list-modules 2>/dev/null | grep -q jdk.compiler || skip "needs a JDK (make deps)"
	odd 2888890 java -Xmx256m "$T/home/Sum.java"
}
