# SPDX-License-Identifier: LGPL-2.1-or-later
# Real programs, each of which checks its own memory or its result.
#
# For each workload W: W_needs (the commands it runs), W_pool_mib (at most half of what it uses),
# and the function work_W USER, which runs it and fails if a byte was wrong. It calls "managed USER
# SECONDS COMMAND..." for what is to be managed. KILLS_WANTED says how often the engine is to be
# killed meanwhile, for those that can go on as long as that takes.
# shellcheck shell=bash disable=SC2034

stress_ng_needs="stress-ng"
stress_ng_pool_mib=128
work_stress_ng() {
	local log=$T/stress-ng.log

	# --oomable: a worker that is killed must not be quietly started again.
	managed "$1" 180 stress-ng --temp-path "$T/home" --vm 1 --vm-bytes 320M --vm-method all \
		--verify --oomable --timeout 15s >"$log" 2>&1 || { cat "$log"; return 1; }
	grep -q 'successful run completed' "$log" || { cat "$log"; die "stress-ng did not complete"; }
}

stressapptest_needs="stressapptest"
stressapptest_pool_mib=128
work_stressapptest() {
	local log=$T/stressapptest.log

	# About four kills a second at the least.
	managed "$1" 180 stressapptest -s $((15 + ${KILLS_WANTED:-0} / 4)) -M 300 -m 1 -W \
		>"$log" 2>&1 || { cat "$log"; return 1; }
	grep -q 'Status: PASS' "$log" || { cat "$log"; die "stressapptest did not pass"; }
}

# redis-check-rdb is the Redis server too: it looks at the name that it was started by.
redis_needs="redis-check-rdb redis-cli redis-benchmark"
redis_pool_mib=96
work_redis() {
	local user=$1 dir=$T/home/redis sock=$T/home/redis/sock before after pid load

	mkdir -m 777 "$dir"
	ln -s "$(command -v redis-check-rdb)" "$dir/redis-server"
	redis_start "$user" "$dir"
	pid=$REDIS_PID
	# 60 000 values of 4 KB: about 270 MB.
	redis_cli "$sock" eval "for i = 1, 60000 do
		redis.call('set', 'key:' .. i, string.rep(redis.sha1hex(i), 100)) end" 0
	# Copies of itself are saved while writes go on.
	timeout 120 redis-benchmark -s "$sock" -q -t set,lpush -n 60000 -r 20000 -d 1000 -c 8 \
		>/dev/null 2>&1 3>&- &
	load=$!
	BACKGROUND+=("$load")
	for _ in 1 2 3; do
		redis_bgsave "$sock"
	done
	wait "$load" || die "redis-benchmark failed" || return 1
	while [ "$(kills)" -lt "${KILLS_WANTED:-0}" ]; do
		redis_cli "$sock" eval "for i = 1, 60000, 17 do redis.call('append', 'key:' .. i, 'x') end" 0
		redis_bgsave "$sock"
	done
	redis_bgsave "$sock"
	assert_managed "$(redis_server_pid "$sock")"
	before=$(redis_cli "$sock" debug digest)
	timeout 60 redis-cli -s "$sock" shutdown save
	wait "$pid" || die "redis-server ended with status $?" || return 1
	redis_start "$user" "$dir"
	after=$(redis_cli "$sock" debug digest)
	note "digest $before"
	[[ $before =~ ^[0-9a-f]{40}$ && $before != 0000* ]] || die "no digest: $before" || return 1
	[ "$before" = "$after" ] || die "the digest changed from $before to $after" || return 1
	timeout 60 redis-cli -s "$sock" shutdown nosave
	wait "$REDIS_PID" || die "redis-server ended with status $?"
}

redis_start() {
	managed "$1" 400 "$2/redis-server" --port 0 --unixsocket "$2/sock" --dir "$2" --save "" \
		--enable-debug-command yes --stop-writes-on-bgsave-error no \
		>>"$T/redis.log" 2>&1 </dev/null 3>&- &
	REDIS_PID=$!
	BACKGROUND+=("$REDIS_PID")
	wait_for 90 redis_is_up "$2/sock" || { cat "$T/redis.log"; return 1; }
}

redis_is_up() {
	[ "$(timeout 10 redis-cli -s "$1" ping 2>/dev/null)" = PONG ]
}

redis_cli() {
	timeout 120 redis-cli -s "$@"
}

redis_server_pid() {
	redis_cli "$1" info server | tr -d '\r' | sed -n 's/^process_id://p'
}

redis_bgsave() {
	redis_cli "$1" bgsave >/dev/null
	wait_for 120 redis_bgsave_is_done "$1" || return 1
	redis_cli "$1" info persistence | grep -q 'rdb_last_bgsave_status:ok' ||
		die "BGSAVE failed"
}

redis_bgsave_is_done() {
	redis_cli "$1" info persistence | grep -q 'rdb_bgsave_in_progress:0'
}

sqlite_needs="sqlite3"
sqlite_pool_mib=96
work_sqlite() {
	local result

	result=$(managed "$1" 240 sqlite3 :memory: "
		PRAGMA cache_size = -2000000;
		CREATE TABLE t(id INTEGER PRIMARY KEY, h TEXT, pad BLOB);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 220000)
			INSERT INTO t SELECT i, hex(i * 2654435761 % 4294967296), zeroblob(800) FROM n;
		CREATE INDEX h ON t(h);
		UPDATE t SET pad = h || id WHERE id % 7 = 0;
		SELECT count(DISTINCT h) FROM t WHERE pad IS NOT NULL;
		CREATE TABLE u AS SELECT * FROM t ORDER BY h;
		DROP TABLE u;
		DELETE FROM t WHERE id % 11 = 0;
		PRAGMA integrity_check;
		SELECT count(*), sum(h = hex(id * 2654435761 % 4294967296)) FROM t;")
	note "sqlite: $result"
	[ "$result" = $'220000\nok\n200000|200000' ] || die "sqlite said: $result"
}

python_needs="python3"
python_pool_mib=88
work_python() {
	local result

	result=$(managed "$1" 240 python3 -c '
import hashlib
n = 700000
d = {i: "value %d" % (i * 7) for i in range(n)}
e = {v: k for k, v in d.items()}
for r in range(12):
    for i in range(r, n, 3):
        assert e[d[i]] == i, i
    for i in range(r, n, 13):
        del e[d[i]]
        d[i] = "value %d" % (i * 7)
        e[d[i]] = i
assert len(d) == len(e) == n
print(hashlib.sha256("".join(d[i] for i in range(n)).encode()).hexdigest())')
	[ "$result" = "$(python_expected)" ] || die "python said: $result"
}

# The same digest, worked out without Python.
python_expected() {
	seq 0 7 4899993 | sed 's/^/value /' | tr -d '\n' | sha256sum | cut -d' ' -f1
}

xz_needs="xz"
xz_pool_mib=104
work_xz() {
	local dir=$T/home

	seq 1 5000000 | sed 's/$/ usmd/' > "$dir/plain"
	managed "$1" 240 xz -T2 -5 --block-size=16MiB -c "$dir/plain" > "$dir/packed.xz" ||
		die "xz failed" || return 1
	managed "$1" 120 xz -T2 -dc "$dir/packed.xz" > "$dir/unpacked" || die "xz -d failed" || return 1
	cmp "$dir/plain" "$dir/unpacked" || return 1
	# What the managed xz wrote must be good for another one, too.
	xz -dc "$dir/packed.xz" | cmp - "$dir/plain"
}

# usmd's own tree, with more optimisation so that the compiler needs memory.
make_needs="make gcc"
make_pool_mib=40
work_make() {
	local user=$1 dir=$T/home/tree

	mkdir -m 777 "$dir"
	for build in plain managed; do
		(cd "$ROOT" && tar -c --exclude=./build --exclude=./.git .) | tar -x -C "$dir" --no-same-owner
		chmod -R a+rwX "$dir"
		if [ $build = plain ]; then
			as "$user" timeout 240 make -C "$dir" -j4 CFLAGS="-O3 -g" >"$T/make-$build.log" 2>&1
		else
			managed "$user" 400 make -C "$dir" -j4 CFLAGS="-O3 -g" >"$T/make-$build.log" 2>&1
		fi || { tail -n 30 "$T/make-$build.log"; return 1; }
		# Objects, not only what is linked from them; both were built at the same path.
		(cd "$dir/build" && find . -type f '(' -name '*.o' -o -name '*.so' -o -name usmd -o -name usmctl ')' |
			LC_ALL=C sort | xargs sha256sum) > "$T/built-$build"
		[ $build = managed ] || rm -rf "${dir:?}"/*
	done
	[ "$(wc -l < "$T/built-plain")" -gt 20 ] || die "the build made too little" || return 1
	diff "$T/built-plain" "$T/built-managed"
}

# The programs that a build runs, for its allow lines.
make_commands() {
	local p

	echo make gcc sh mkdir cmp tee stat id pkg-config sed find
	for p in cc1 as ld collect2 lto1; do
		gcc -print-prog-name=$p
	done
	for p in as ld ld.bfd; do
		command -v "$p"
	done
}
