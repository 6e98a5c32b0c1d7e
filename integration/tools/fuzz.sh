#!/bin/sh
# Run every fuzz target of the tree for the given time.
set -eu
cd "$(dirname "$0")/../.."
for pkg in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	for target in $(go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true); do
		echo "$pkg $target"
		go test -run='^$' -fuzz="^$target\$" -fuzztime="$1" -fuzzminimizetime=20x "$pkg"
	done
done
