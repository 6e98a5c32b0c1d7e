package main

import (
	"strings"
	"time"
)

// A part of the suite is the tests of one package, or a program.
type part struct {
	Name  string
	Argv  []string // relative to Dir when it begins with a dot
	Dir   string   // where it runs
	Env   []string
	Limit time.Duration // it is killed then
}

// An entry says what of a package's tests runs in the machine.
type entry struct {
	pkg   string
	limit time.Duration
	skip  []skip
	slow  string // why it does not run in emulation; "": it does
}

// A skip is a test, or a subtest, that does not run in the machine.
type skip struct {
	test     string
	emulated bool   // runs with KVM
	but      string // it runs on the kernel of this series nevertheless
	why      string
}

// suite lists the packages whose tests touch the kernel, quick ones first.
var suite = []entry{
	{pkg: "mesh/icmp", limit: time.Minute},
	{pkg: "mesh/probe", limit: time.Minute},
	{pkg: "mesh/host", limit: 2 * time.Minute},
	{pkg: "routing/fib", limit: 2 * time.Minute},
	{pkg: "routing/firewall", limit: 2 * time.Minute},
	{pkg: "mesh/wg", limit: 3 * time.Minute},
	{pkg: "mesh/dataplane", limit: 3 * time.Minute},
	{pkg: "discovery/stun", limit: 2 * time.Minute},
	{pkg: "integration/lab/wire", limit: 2 * time.Minute},
	{pkg: "integration/lab/flow", limit: 2 * time.Minute},
	{pkg: "integration/lab/world", limit: 3 * time.Minute, skip: []skip{
		{test: "TestMeasuring/userspace", emulated: true, why: "emulated, a process encrypts for a minute and a half; TestMeasuring/kernel runs"},
	}},
	{pkg: "integration/lab/peers", limit: 2 * time.Minute},
	{pkg: "integration/lab/demo", limit: 2 * time.Minute},
	{pkg: "integration/lab/bench", limit: 2 * time.Minute},
	{pkg: "integration/lab", limit: 4 * time.Minute, skip: []skip{
		{test: "TestClocksStep", why: "it compiles a program with a clock of its own, and there is no Go inside"},
		{test: "TestAsUser", emulated: true, but: "6.12", why: "emulated, it takes two minutes; it runs on 6.12"},
	}},
	{pkg: "cmd/meshlab", limit: 2 * time.Minute},
	{pkg: "cmd/meshd", limit: 2 * time.Minute},
	{pkg: "integration/netns", limit: 10 * time.Minute, skip: []skip{
		{test: "TestLeave", emulated: true, but: "6.1", why: "emulated, it takes four minutes; it runs on 6.1"},
	}},
	{pkg: "integration/lab/chaos", limit: 4 * time.Minute, slow: "five sites measure each other in real time, which is more than an emulated processor does"},
	{pkg: "integration/grid", limit: 10 * time.Minute, slow: "tens of meshes cross NAT boxes in real time, which is more than an emulated processor does"},
}

// absent are the packages that touch the kernel and do not run in the machine.
var absent = map[string]string{
	"integration/truth":   "it compiles meshd with a clock of its own, and there is no Go inside",
	"integration/vagrant": "its tests read what the tools of Vagrant's providers print, and touch no kernel",
}

// measured are the packages whose tests have benchmarks among the measurements.
var measured = []entry{{pkg: "mesh/wg"}}

// measurements are what runs with -bench, one after the other.
var measurements = []part{
	{
		Name: "links", Dir: "/src/mesh/wg", Limit: 10 * time.Minute,
		Argv: []string{"/tests/" + binaryName("mesh/wg"), "-test.run=^$", "-test.bench=^BenchmarkTunnels$", "-test.benchtime=1x"},
	},
	{
		Name: "throughput", Dir: "/", Limit: 20 * time.Minute,
		Argv: []string{"/programs/meshlab", "bench", "--only", "throughput", "--rounds", "5", "--transfer", "1s"},
	},
	{Name: "demo", Dir: "/", Limit: 20 * time.Minute, Argv: []string{"/programs/meshlab", "demo"}},
}

// programs are built for tests that build them, and land in /programs.
var programs = []string{"cmd/meshd", "cmd/meshctl", "cmd/meshlab"}

// skipped gives the tests of an entry that a machine leaves out.
func (e entry) skipped(emulated bool, series string) (out []skip) {
	for _, s := range e.skip {
		if (emulated || !s.emulated) && s.but != series {
			out = append(out, s)
		}
	}
	return out
}

// part makes a part of an entry, with only the tests that match only.
func (e entry) part(emulated bool, series, only string) part {
	p := part{
		Name:  "guywire/" + e.pkg,
		Dir:   "/src/" + e.pkg,
		Argv:  []string{"/tests/" + binaryName(e.pkg), "-test.v=test2json", "-test.timeout=" + e.limit.String(), "-test.paniconexit0"},
		Limit: e.limit + 20*time.Second,
	}
	if only != "" {
		p.Argv = append(p.Argv, "-test.run="+only)
	}
	var patterns []string
	for _, s := range e.skipped(emulated, series) {
		patterns = append(patterns, "^"+strings.ReplaceAll(s.test, "/", "$/^")+"$")
	}
	if len(patterns) > 0 {
		p.Argv = append(p.Argv, "-test.skip="+strings.Join(patterns, "|"))
	}
	return p
}

// binaryName is how the test binary of a package is called.
func binaryName(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") + ".test" }
