# Everything a newcomer or CI runs. `make help` lists the targets.
GO      ?= go
PKGS    := ./...
FUZZ    ?= 30s
export CGO_ENABLED = 0

.DEFAULT_GOAL := build
.PHONY: build packages test-packages box vagrant-test check test test-vm bench-vm race demo lab bench grid fuzz model soak clean help
STATES  ?= 5000000
SPAN    ?= 30m
SEED    ?= 1
PACE    ?= 1

build: ## build the three programs, static, into bin/
	$(GO) build -trimpath -o bin/ ./cmd/...

check: ## format, vet, modernise, staticcheck, dead code, tidy, architecture
	@sh integration/tools/check.sh

test: build ## all tests, in random order
	$(GO) test -shuffle=on $(PKGS)

test-vm: ## the tests that touch the kernel on Debian's kernels 6.1 and 6.12, in QEMU, over the kernel's WireGuard
	$(GO) run ./integration/vm

bench-vm: ## over the kernel's WireGuard, on Debian's kernel 6.12 in QEMU: throughput by hand beside, the demo, links
	$(GO) run ./integration/vm -bench -kernels 6.12

packages: ## .deb and .rpm of this commit, into out/packages
	@sh deploy/package.sh

test-packages: ## install, upgrade, downgrade, remove and purge the .deb and the .rpm in a Debian in QEMU
	$(GO) run ./integration/vm -life

box: ## a Vagrant box of Debian for libvirt from packages, registered as guywire/debian; root makes it
	@sh deploy/box/box.sh

vagrant-test: build ## the demo on the machines of `vagrant up`, or on SITES (fra,lon,sto) of them; PACE (1) is how many times slower they are
	bin/meshlab demo --vagrant --sites "$(SITES)" --pace $(PACE) --json out/vagrant.json --logs out/vagrant-logs

race: ## all tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -shuffle=on $(PKGS)

demo: build ## six sites on a small internet: join, talk, break, measure
	bin/meshlab demo

lab: build ## bring the demo network up and leave it running (bin/meshlab down ends it)
	bin/meshlab up demo

bench: build ## benchmarks, with ratios
	$(GO) test -run='^$$' -bench=. -benchtime=200ms ./routing/... ./mesh/kernel ./mesh/core ./store ./mesh/control ./discovery/stun
	$(GO) test -modfile=routing/spf/testdata/bench/bench.mod -run='^$$' -bench=. -benchtime=200ms ./routing/spf/testdata/bench
	bin/meshlab bench

grid: ## every pair of kinds of network that sites are behind: direct, transit or carrier, with seconds
	$(GO) test ./integration/grid -run 'TestGrid$$' -v -timeout 30m -parallel 3 -args -all -json $(CURDIR)/out/grid.json

model: ## model check of the routing core: STATES (5000000) states
	$(GO) test ./integration/model -run 'TestModel$$' -v -timeout 0 -args -states $(STATES)

soak: ## break voters for SPAN (30m) with the faults of SEED (1) and judge what they did and left
	$(GO) test ./integration/truth -run 'TestTruth$$' -v -timeout 0 -args -span $(SPAN) -seed $(SEED)

fuzz: ## every fuzz target for FUZZ (30s) each
	@sh integration/tools/fuzz.sh $(FUZZ)

clean: ## remove what was built
	rm -rf bin out

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-13s %s\n", $$1, $$2}' Makefile
