#!/bin/sh
# The version that packages get: of the tag, or 1.2.3+12.gabc for 12 commits
# after it. Later commits sort later, for dpkg and for rpm.
set -eu
cd "$(dirname "$0")/.."
version=$(git describe --tags --match 'v[0-9]*' --long --abbrev=12 --dirty=.dirty 2>/dev/null) ||
	version=v0.0.0-$(git rev-list --count HEAD)-$(git describe --always --exclude '*' --abbrev=12 --dirty=.dirty | sed 's/^/g/')
printf '%s\n' "$version" | sed -E 's/^v//; s/-([0-9]+)-(g[0-9a-f]+)/+\1.\2/; s/\+0\.g[0-9a-f]+$//'
