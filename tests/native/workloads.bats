# SPDX-License-Identifier: LGPL-2.1-or-later
# Real programs in a pool of at most half their memory: as root, as an unprivileged user, and
# with the engine killed by SIGKILL again and again. Each is checked by itself and from outside.
bats_require_minimum_version 1.5.0

load ../lib/common
load ../lib/workloads

setup() {
	setup_tree
}

teardown() {
	teardown_tree
}

# work WORKLOAD USER [KILLS]: with the engine killed that often, at the least.
work() {
	local workload=$1 user=$2 commands allow
	KILLS_WANTED=${3:-0}
	local -n needs=${1}_needs pool_mib=${1}_pool_mib

	# shellcheck disable=SC2086
	requires_command $needs jq
	commands=$needs
	[ "$workload" != make ] || commands=$(make_commands)
	# shellcheck disable=SC2086
	mapfile -t allow < <(allow_lines $commands)
	start_usmd "$pool_mib" "default policyOne" "${allow[@]}"
	sampler_start
	[ "$KILLS_WANTED" -eq 0 ] || kill_engine_start
	"work_$workload" "$user"
	kill_engine_stop
	assert_peak_within_pool
	assert_covered
	assert_swap_used
	[ "$KILLS_WANTED" -eq 0 ] || assert_killed "$KILLS_WANTED"
	sampler_stop
	stop_usmd
}

@test "stress-ng verifies its memory, as root" { work stress_ng root; }
@test "stress-ng verifies its memory, unprivileged" { work stress_ng $UNPRIVILEGED; }
@test "stress-ng verifies its memory while the engine is killed" { work stress_ng $UNPRIVILEGED 5; }
@test "stressapptest passes, as root" { work stressapptest root; }
@test "stressapptest passes, unprivileged" { work stressapptest $UNPRIVILEGED; }
@test "stressapptest passes while the engine is killed 100 times" { work stressapptest root 100; }
@test "redis keeps its digest over BGSAVE and reload, as root" { work redis root; }
@test "redis keeps its digest over BGSAVE and reload, unprivileged" { work redis $UNPRIVILEGED; }
@test "redis keeps its digest while the engine is killed 100 times" { work redis $UNPRIVILEGED 100; }
@test "SQLite in memory passes integrity_check, as root" { work sqlite root; }
@test "SQLite in memory passes integrity_check, unprivileged" { work sqlite $UNPRIVILEGED; }
@test "SQLite in memory passes while the engine is killed" { work sqlite root 5; }
@test "python dicts keep their content, as root" { work python root; }
@test "python dicts keep their content, unprivileged" { work python $UNPRIVILEGED; }
@test "python dicts keep their content while the engine is killed" { work python $UNPRIVILEGED 5; }
@test "xz -T2 makes a good round trip, as root" { work xz root; }
@test "xz -T2 makes a good round trip, unprivileged" { work xz $UNPRIVILEGED; }
@test "xz -T2 makes a good round trip while the engine is killed" { work xz root 5; }
@test "make -j4 builds the same files as an unmanaged build, as root" { work make root; }
@test "make -j4 builds the same files, unprivileged" { work make $UNPRIVILEGED; }
@test "make -j4 builds the same files while the engine is killed" { work make $UNPRIVILEGED 5; }
