package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestSuiteIsComplete: a package whose tests speak netlink is in the suite, or
// has a reason not to be.
func TestSuiteIsComplete(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-test", "-f", `{{.ImportPath}} {{join .Deps ","}}`, "guywire/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var touching []string
	for line := range strings.Lines(string(out)) {
		name, deps, _ := strings.Cut(strings.TrimSpace(line), " ")
		if pkg, ok := strings.CutSuffix(name, ".test"); ok && slices.Contains(strings.Split(deps, ","), "github.com/vishvananda/netlink") {
			touching = append(touching, strings.TrimPrefix(pkg, "guywire/"))
		}
	}
	listed := slices.Collect(maps.Keys(absent))
	for _, e := range suite {
		listed = append(listed, e.pkg)
	}
	listed = append(listed, "integration/vm") // which needs no kernel of its own
	slices.Sort(listed)
	slices.Sort(touching)
	if !slices.Equal(listed, touching) {
		t.Errorf("the suite has\n%v, and the tests that touch the kernel are in\n%v", listed, touching)
	}
}

// TestSkippedTestsExist: a test that is left out by name has not been renamed.
func TestSkippedTestsExist(t *testing.T) {
	for _, e := range suite {
		files, err := filepath.Glob(filepath.Join("..", "..", e.pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var source []byte
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			source = append(source, text...)
		}
		for _, s := range e.skip {
			name, _, _ := strings.Cut(s.test, "/")
			if !bytes.Contains(source, []byte("\nfunc "+name+"(")) {
				t.Errorf("%s has no %s", e.pkg, name)
			}
			if s.why == "" {
				t.Errorf("%s is left out of %s without a reason", name, e.pkg)
			}
		}
	}
}

// TestSkipPatterns: what the machine leaves out is what go test's -skip takes.
func TestSkipPatterns(t *testing.T) {
	e := entry{pkg: "mesh/wg", skip: []skip{{test: "TestA/slow", emulated: true, but: "6.1"}, {test: "TestB"}}}
	for _, tt := range []struct {
		emulated bool
		series   string
		want     string
	}{
		{true, "6.12", "-test.skip=^TestA$/^slow$|^TestB$"},
		{true, "6.1", "-test.skip=^TestB$"},
		{false, "6.12", "-test.skip=^TestB$"},
	} {
		if p := e.part(tt.emulated, tt.series, ""); p.Argv[len(p.Argv)-1] != tt.want {
			t.Errorf("%+v: %q", tt, p.Argv)
		}
	}
}

// A file is what is read back out of an archive.
type file struct {
	mode, major, minor uint64
	data               string
}

// unpack reads cpio's newc format.
func unpack(t *testing.T, data []byte) (files map[string]file, order []string) {
	t.Helper()
	files = map[string]file{}
	for r := bytes.NewReader(data); ; {
		header := make([]byte, 110)
		if _, err := io.ReadFull(r, header); err != nil || string(header[:6]) != "070701" {
			t.Fatalf("header %q, %v", header, err)
		}
		var fields [13]uint64
		for i := range fields {
			var err error
			if fields[i], err = strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32); err != nil {
				t.Fatal(err)
			}
		}
		read := func(n uint64) string {
			text := make([]byte, n)
			if _, err := io.ReadFull(r, text); err != nil {
				t.Fatal(err)
			}
			at := len(data) - r.Len()
			if _, err := r.Seek(int64(-at&3), io.SeekCurrent); err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		name := read(fields[11])
		if name == trailer+"\x00" {
			return files, order
		}
		name = strings.TrimSuffix(name, "\x00")
		files[name] = file{fields[1], fields[9], fields[10], read(fields[6])}
		order = append(order, name)
	}
}

func TestArchive(t *testing.T) {
	host := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(host, []byte("12345"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := newArchive(&out)
	a.device("dev/console", 0o600, 5, 1)
	a.bytes("etc/hosts", 0o644, []byte("x"))
	a.bytes("etc/passwd", 0o644, nil)
	a.link("bin/sh", "busybox")
	a.file("a/b/c", host)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	files, order := unpack(t, out.Bytes())
	want := map[string]file{
		"dev": {mode: 0o040755}, "etc": {mode: 0o040755}, "bin": {mode: 0o040755}, "a": {mode: 0o040755}, "a/b": {mode: 0o040755},
		"dev/console": {mode: 0o020600, major: 5, minor: 1},
		"etc/hosts":   {mode: 0o100644, data: "x"},
		"etc/passwd":  {mode: 0o100644},
		"bin/sh":      {mode: 0o120777, data: "busybox"},
		"a/b/c":       {mode: 0o100755, data: "12345"},
	}
	if !maps.Equal(files, want) {
		t.Errorf("got  %+v\nwant %+v", files, want)
	}
	for i, name := range order {
		if dir := filepath.Dir(name); dir != "." && !slices.Contains(order[:i], dir) {
			t.Errorf("%s comes before its directory", name)
		}
	}

	a = newArchive(io.Discard)
	a.file("nothing", host+"x")
	if a.close() == nil {
		t.Error("a file that is not there makes no error")
	}
}

// object makes the least ELF object that has a section .modinfo.
func object(info string) []byte {
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	write := func(v ...any) {
		for _, x := range v {
			_ = binary.Write(&b, binary.LittleEndian, x)
		}
	}
	data := uint64(64)
	sections := data + uint64(len(info)+len(names))
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	write(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), sections, uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2))
	b.WriteString(info + names)
	b.Write(make([]byte, 64))
	for _, s := range []struct {
		name, kind uint32
		at, size   uint64
	}{{1, 1, data, uint64(len(info))}, {10, 3, data + uint64(len(info)), uint64(len(names))}} {
		write(s.name, s.kind, uint64(0), uint64(0), s.at, s.size, uint32(0), uint32(0), uint64(1), uint64(0))
	}
	return b.Bytes()
}

func TestModuleOrder(t *testing.T) {
	dir := t.TempDir()
	for name, depends := range map[string]string{
		"wireguard": "udp_tunnel,lib-curve,ipv6", "udp_tunnel": "", "lib-curve": "lib_base", "lib-base": "", "other": "wireguard",
	} {
		file := filepath.Join(dir, "kernel", "net", name+".ko")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, object("license=GPL\x00depends="+depends+"\x00name="+name+"\x00"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/net/ipv6/ipv6.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree, err := readModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	modules, missing, err := tree.load(t.Context(), []string{"wireguard", "no_such", "udp_*", "nothing_*"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range modules {
		names = append(names, m.name)
	}
	if want := []string{"udp_tunnel", "lib_base", "lib_curve", "wireguard"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	if !slices.Equal(missing, []string{"no_such"}) {
		t.Errorf("missing %v", missing)
	}
	if _, err := dependencies([]byte("no object")); err == nil {
		t.Error("what is no module has dependencies")
	}
}

// TestAfterAwake: a limit is kept, and can be called off until then.
func TestAfterAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		over := make(chan struct{})
		callOff := afterAwake(3*time.Minute, func() { close(over) })
		<-over
		if took := time.Since(start); took != 3*time.Minute {
			t.Errorf("three minutes took %s", took)
		}
		callOff()
		callOff = afterAwake(time.Minute, func() { t.Error("what was called off happens") })
		time.Sleep(59 * time.Second)
		callOff()
		callOff()
		time.Sleep(time.Hour)
	})
}

// TestReport: what a machine prints becomes what go test prints.
func TestReport(t *testing.T) {
	var out, log bytes.Buffer
	r := &report{out: &out, log: &log, left: map[string][]skip{"guywire/a": {{test: "TestSlow", why: "it is slow"}}}}
	for _, line := range []string{
		begins + "guywire/a",
		"=== RUN   TestGood", "    good_test.go:1: noise", "--- PASS: TestGood (0.10s)",
		"=== RUN   TestLess", "    less_test.go:2: needs a moon", "--- SKIP: TestLess (0.00s)",
		"PASS", "", ends + "guywire/a 0 0.200",
		notes + "something happened",
		begins + "guywire/b",
		"=== RUN   TestBad", "    bad_test.go:3: wrong", "--- FAIL: TestBad (0.00s)", "FAIL", "", ends + "guywire/b 1 0.300",
		begins + "guywire/c",
		"=== RUN   TestCut",
	} {
		r.line(line)
	}
	if r.done {
		t.Error("a machine that ended early has finished its suite")
	}
	r.close()
	r.line(finished)
	if !r.done {
		t.Error("the end is not seen")
	}
	want := regexp.MustCompile(`^--- SKIP: TestSlow \(not in this machine\): it is slow
--- PASS: TestGood \(0.10s\)
 +less_test.go:2: needs a moon
--- SKIP: TestLess \(0.00s\)
ok  	guywire/a	0.200s	\[\ds outside\]
something happened
 +bad_test.go:3: wrong
--- FAIL: TestBad \(0.00s\)
FAIL
FAIL	guywire/b	0.300s	\[\ds outside\]
(?s:.*)FAIL	guywire/c	the machine ended	\[\ds outside\]
$`)
	if !want.MatchString(out.String()) {
		t.Errorf("printed:\n%s", out.String())
	}
	if !slices.Equal(r.failed, []string{"guywire/b", "guywire/c"}) || r.skipped != 2 {
		t.Errorf("failed %v, %d skipped", r.failed, r.skipped)
	}
	if !strings.Contains(log.String(), "good_test.go:1: noise") {
		t.Error("the log does not have everything")
	}
}

// TestStandIn: what stands in for go answers the one command that tests give it.
func TestStandIn(t *testing.T) {
	for _, args := range [][]string{nil, {"env"}, {"build", "x"}, {"build", "-o"}, {"build", "-o", "file", "x"}} {
		if err := standIn(args); err == nil {
			t.Errorf("go %v succeeds", args)
		}
	}
	if err := standIn([]string{"build", "-o", t.TempDir() + "/", "guywire/cmd/never-built"}); err == nil || !strings.Contains(err.Error(), "never-built") {
		t.Errorf("a program that was not built: %v", err)
	}
}

// TestChoose: packages can be chosen by name.
func TestChoose(t *testing.T) {
	got, err := choose("routing/fib,mesh/wg")
	if err != nil || len(got) != 2 || got[0].pkg != "routing/fib" || got[1].pkg != "mesh/wg" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := choose("mesh/core"); err == nil {
		t.Error("a package outside the suite is chosen")
	}
}
