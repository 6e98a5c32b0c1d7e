#!/bin/sh
# All static checks; the first that finds something ends the run.
set -eu
cd "$(dirname "$0")/../.."
tool() { go tool -modfile=integration/tools.mod "$@"; }
none() { # none NAME COMMAND...: the command must print nothing, but what it downloads on a new machine
	name=$1; shift
	out=$("$@" 2>&1) && failed= || failed=yes
	out=$(printf '%s\n' "$out" | grep -v '^go: downloading ') || true
	[ -z "$failed$out" ] || { printf '%s:\n%s\n' "$name" "$out"; exit 1; }
	printf 'ok %s\n' "$name"
}
none gofumpt tool gofumpt -l .
none vet go vet ./...
none 'go fix' go fix -diff ./...
none staticcheck tool staticcheck -checks 'all,-ST1000,-ST1020,-ST1021,-ST1022' ./...
none deadcode tool deadcode -test ./...
none 'mod tidy' go mod tidy -diff
go mod verify >/dev/null && echo 'ok mod verify'
go test -count=1 ./integration/arch
