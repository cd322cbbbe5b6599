# SPDX-License-Identifier: LGPL-2.1-or-later
# The Varlink library of Go, which shares no code with usmd or systemd, parses the interface file and
# calls a running usmd. tests/system/varlink.bats has systemd's client.
bats_require_minimum_version 1.5.0

load ../lib/common

setup() {
	requires_command go varlink-go-interface-generator
	setup_tree
}

teardown() {
	exec 7>&- || :
	teardown_tree
}

# It knows interface names of small letters only, where the specification has both; the name goes
# through it as another one.
generate() {
	local name=io.usmd.Manager small=io.usmd.manager

	sed "s/^interface $name\$/interface $small/" "$1" > "$2/$small.varlink"
	varlink-go-interface-generator "$2/$small.varlink" || return 1
	sed -i "s/$small/$name/g" "$2"/*.go
}

@test "Go's parser accepts the interface file, and calls, errors and streams go both ways" {
	mkdir -p "$T/go/src/iousmdmanager"
	run -0 generate "$ROOT/usmd/io.usmd.Manager.varlink" "$T/go/src/iousmdmanager"
	run -0 env HOME="$T/home" GOCACHE="$T/cache" GOFLAGS= GO111MODULE=off \
		GOPATH="$T/go:/usr/share/gocode" timeout 300 go build -o "$T/client" "$ROOT/tests/native/varlink/client.go"

	start_usmd 16 "default policyOne"
	mkfifo "$T/in"
	managed root 300 "$ROOT/build/tests/hold" 48 < "$T/in" > "$T/out" 3>&- &
	BACKGROUND+=($!)
	exec 7> "$T/in"
	wait_for 60 grep -q ready "$T/out"
	run -0 timeout 100 "$T/client" "$T/run/io.usmd.Manager" "$ROOT/usmd/io.usmd.Manager.varlink"
	[ "$output" = done ]
	echo verify >&7
	wait_for 60 grep -q '^ok$' "$T/out"
}

@test "Go's parser finds errors: a method without a result, a name that is used twice" {
	local f

	for f in 's/ -> (takenOver.*//' 's/^error NoSuchPolicy /error Assign /' 's/^type Process (/type (/'; do
		mkdir -p "$T/wrong"
		sed "$f" "$ROOT/usmd/io.usmd.Manager.varlink" > "$T/wrong.varlink"
		run ! cmp -s "$T/wrong.varlink" "$ROOT/usmd/io.usmd.Manager.varlink"
		run ! generate "$T/wrong.varlink" "$T/wrong"
		[[ $output == *"Error parsing"* ]]
	done
}
