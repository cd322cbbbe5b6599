#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# run.sh quick|all [FILE.bats...]: the tests of what is built. Writes TAP to build/results and
# ends with a line "N passed, N failed". Fails if anything failed, or if a tier was skipped.
# run.sh package: those of the packages alone.
# run.sh thread|valgrind|coverage: some of them, of what was built for that (Makefile).
set -uo pipefail

cd "$(dirname "$0")/../.." || exit 1
mode=$1
shift
results=build/results
passed=0 failed=0 skipped=0
declare -A ran=([unit]=0 [native]=0)
[ "$mode" != all ] || [ $# -gt 0 ] || ran[package]=0 ran[fuzz]=0 ran[system]=0 ran[vm]=0

if [ "$(id -u)" -ne 0 ]; then
	echo "run.sh: the native tests need root: sudo make check (or: sudo make test)" >&2
	exit 1
fi

# Whatever root writes here goes to the owner of the checkout.
trap 'chown -R --reference=. build' EXIT
mkdir -p "$results"

# count FILE STATUS TIER: adds up a file of TAP; a program that broke off is a failure of its own.
count() {
	local p f s

	s=$(grep -ciE '^ok .*# skip' "$1")
	p=$(($(grep -cE '^[[:space:]]*ok ' "$1") - s))
	f=$(grep -cE '^[[:space:]]*not ok ' "$1")
	[ "$2" -eq 0 ] || [ "$f" -gt 0 ] || f=1
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	ran[$3]=$((ran[$3] + p + f))
}

# unit_tests DIR KIND [COMMAND...]: each program there, under COMMAND.
unit_tests() {
	local dir=$1 kind=$2 t name status

	shift 2
	for t in "$dir"/test-*; do
		[[ -x $t && $t != *.* ]] || continue
		name=${t##*/}
		[[ " ${UNIT_SKIP:-} " != *" $name "* ]] || continue
		name+=${kind:+-$kind}
		echo "# unit: $name"
		CMOCKA_MESSAGE_OUTPUT=TAP ASAN_OPTIONS=detect_leaks=1 \
			UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="$tsan" \
			timeout -k 5 300 "$@" "$t" </dev/null >"$results/$name.tap" 2>"$results/$name.log"
		status=$?
		count "$results/$name.tap" $status unit
		if [ $status -ne 0 ]; then
			grep -E '^not ok|^#' "$results/$name.tap"
			tail -n 60 "$results/$name.log"
			echo "not ok $name (status $status)"
		fi
	done
}

# bats_tests TIER FILE [OPTION...]: of bats.
bats_tests() {
	local name tier=$1

	shift
	name=$(basename "$1" .bats)
	echo "# $tier: $name"
	BATS_TEST_TIMEOUT=900 bats --tap --timing "$@" </dev/null 2>&1 | tee "$results/$name.tap"
	count "$results/$name.tap" "${PIPESTATUS[0]}" "$tier"
}

native_tests() {
	bats_tests native "$@"
}

tsan="history_size=7 suppressions=$PWD/tests/lib/tsan.supp"
# TSan wants addresses where they are without randomisation.
fixed=(setarch "$(uname -m)" -R)
case $mode in
thread)
	unit_tests build/thread/unit thread "${fixed[@]}"
	rm -f "$results"/tsan.*
	export BUILD=$PWD/build/thread TSAN_OPTIONS="$tsan log_path=$PWD/$results/tsan"
	bats() { "${fixed[@]}" bats "$@"; }
	native_tests tests/native/programs.bats \
		-f '^(threads start, end|mappings move, shrink).*(as root|lazyfree)$|^torture: .*(as root|lazyfree)$'
	native_tests tests/native/control.bats
	for f in "$results"/tsan.*; do
		[ -e "$f" ] || break
		cat "$f"
		echo "not ok races in usmd: $f"
		failed=$((failed + 1))
	done
	;;
valgrind)
	# It runs one thread at a time: one that waits for a userfault, or in close(), keeps the one
	# that would end that from running.
	UNIT_SKIP="test-failures test-under-way test-closer test-link" USM_TEST_SKIP=test_real \
		unit_tests build/valgrind valgrind valgrind -q --error-exitcode=99 --leak-check=full \
		--show-leak-kinds=definite --errors-for-leak-kinds=definite
	unset "ran[native]"
	;;
package)
	ran=([package]=0)
	;;
coverage)
	unit_tests build/coverage/unit coverage
	export BUILD=$PWD/build/coverage
	for f in control directives io-errors; do
		native_tests "tests/native/$f.bats"
	done
	native_tests tests/native/programs.bats -f '^(fork|threads|mappings).*(as root|lazyfree)$'
	native_tests tests/native/hostile.bats -f 'PENDING|descriptor|locks all|filter'
	;;
*)
	unit_tests build/unit ""
	[ "$mode" != all ] || [ $# -gt 0 ] || unit_tests build/thread/unit thread "${fixed[@]}"
	;;
esac

if [ $# -gt 0 ]; then
	files=("$@")
elif [[ $mode != quick && $mode != all ]]; then
	files=()
elif [ "$mode" = quick ]; then
	files=(tests/native/{config,control,directives}.bats)
else
	# The quick ones first.
	files=(tests/native/{config,control,directives,programs,workloads}.bats)
	for f in tests/native/*.bats; do
		[[ " ${files[*]} " == *" $f "* ]] || files+=("$f")
	done
fi
for f in "${files[@]}"; do
	native_tests "$f"
done

# make test-teeth is run by hand; what it seeds must fit all the same.
if [[ $mode = all && $# -eq 0 ]] && ! tests/teeth/run.sh --fit; then
	echo "not ok seeded defects (tests/teeth) do not fit the tree"
	failed=$((failed + 1))
fi

if [ -n "${ran[package]:-}" ]; then
	for f in tests/package/*.bats; do
		bats_tests package "$f"
	done
fi

if [ -n "${ran[fuzz]:-}" ]; then
	echo "# fuzz: what reads untrusted bytes"
	tests/fuzz/run.sh "${FUZZ_SECONDS:-60}" </dev/null | tee "$results/fuzz.tap"
	count "$results/fuzz.tap" "${PIPESTATUS[0]}" fuzz
fi

if [ -n "${ran[system]:-}" ]; then
	echo "# system: usmd as a service of Debian 12 and 13 (the roots are made at the first time)"
	tests/system/run.sh </dev/null | tee "$results/system.tap"
	count "$results/system.tap" "${PIPESTATUS[0]}" system
fi

if [ -n "${ran[vm]:-}" ]; then
	echo "# vm: Debian 12's kernel (the image is made at the first time)"
	tests/vm/run.sh </dev/null | tee "$results/vm.tap"
	count "$results/vm.tap" "${PIPESTATUS[0]}" vm
fi

[ $skipped -eq 0 ] || echo "$skipped skipped: $(grep -rhiE '^ok .*# skip' $results/*.tap | head -n 5)"
for t in "${!ran[@]}"; do
	if [ "${ran[$t]}" -eq 0 ]; then
		echo "not ok: the $t tests were skipped"
		failed=$((failed + 1))
	fi
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
