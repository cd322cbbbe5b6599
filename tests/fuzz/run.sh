#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# tests/fuzz/run.sh [SECONDS]: every fuzz target for so long, from the corpus of the tree and from
# what earlier runs have found (build/fuzz/corpus). TAP on stdout. An input that breaks something
# is kept as build/results/fuzz-TARGET-*; build/fuzz/fuzz-TARGET FILE runs it once more.
set -uo pipefail

cd "$(dirname "$0")/../.." || exit 1
export SECONDS_EACH=${1:-60}
# Fewer mean that the target hardly ran.
export RUNS_MIN=$((SECONDS_EACH * 20))

fuzz() {
	local name=$1 t=build/fuzz/fuzz-$1 log=build/results/fuzz-$1.log found=build/fuzz/corpus/$1
	local options=() status runs cover problem=""

	mkdir -p "$found"
	[ ! -e "tests/fuzz/$name.dict" ] || options=("-dict=tests/fuzz/$name.dict")
	timeout -k 10 $((SECONDS_EACH + 120)) "$t" -max_total_time="$SECONDS_EACH" -timeout=20 \
		-rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="build/results/fuzz-$name-" \
		"${options[@]}" "$found" "tests/fuzz/corpus/$name" </dev/null >"$log" 2>&1
	status=$?
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	cover=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
	if [ "$status" -ne 0 ]; then
		problem="status $status, see $log"
		grep -m 3 -E 'not true|ERROR|runtime error|SUMMARY' "$log" | sed "s/^/# $name: /"
	elif [ "${runs:-0}" -lt "$RUNS_MIN" ]; then
		problem="only ${runs:-0} executions"
	fi
	echo "${problem:+not }ok fuzz $name: ${problem:-$runs executions in $SECONDS_EACH s, ${cover:-?} edges}"
	[ -z "$problem" ]
}
export -f fuzz

targets=()
for t in build/fuzz/fuzz-*; do
	[[ -x $t && $t != *.* ]] && targets+=("${t##*/fuzz-}")
done
if [ ${#targets[@]} -eq 0 ]; then
	echo "1..0 # SKIP no fuzz target is built: clang and libclang-rt-dev are needed (make deps)"
	exit 0
fi
mkdir -p build/results
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I '{}' bash -c 'fuzz {}'
status=$?
echo "1..${#targets[@]}"
[ $status -eq 0 ]
