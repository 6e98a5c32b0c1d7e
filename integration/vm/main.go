package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

type options struct {
	kernels  string
	packages string
	only     string
	accel    string
	dir      string
	limit    time.Duration
	memory   int
	cpus     int
	verbose  bool
	life     bool
	bench    bool
}

func main() {
	var err error
	switch {
	case os.Getpid() == 1:
		err = boot()
	case os.Args[0] == runnerName:
		err = runSuite()
	case filepath.Base(os.Args[0]) == "go":
		err = standIn(os.Args[1:])
	default:
		var o options
		flag.StringVar(&o.kernels, "kernels", "6.1,6.12", "series of Debian's kernels, one machine each")
		flag.StringVar(&o.packages, "packages", "", "only these packages, such as mesh/wg,routing/fib")
		flag.StringVar(&o.only, "run", "", "only the tests that match, as of go test")
		flag.StringVar(&o.accel, "accel", "auto", "kvm, tcg (emulation), or auto: KVM if a machine comes up with it")
		flag.StringVar(&o.dir, "dir", "out/vm", "where kernels are kept, and logs written")
		flag.DurationVar(&o.limit, "timeout", 40*time.Minute, "end a machine after this time")
		flag.IntVar(&o.memory, "m", 4096, "memory of a machine in MiB")
		flag.IntVar(&o.cpus, "smp", 2, "processors of a machine that is not emulated")
		flag.BoolVar(&o.bench, "bench", false, "measure instead, and print all")
		flag.BoolVar(&o.verbose, "v", false, "print all that tests print")
		flag.BoolVar(&o.life, "life", false, "instead of tests: install, upgrade, downgrade, remove and purge the .deb and the .rpm on a Debian with systemd")
		flag.Parse()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		if o.life {
			err = packages(ctx, o)
		} else {
			err = host(ctx, o)
		}
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// host runs the suite in a machine for each kernel.
func host(ctx context.Context, o options) error {
	started := time.Now()
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	entries, err := choose(o.packages)
	if err != nil {
		return err
	}
	if o.bench {
		entries, o.verbose = measured, true
	}
	if err := needEmulator(ctx); err != nil {
		return err
	}
	kernels, err := getKernels(ctx, strings.Split(o.kernels, ","), o.dir)
	if err != nil {
		return err
	}
	shell, err := getShell(ctx, o.dir)
	if err != nil {
		return err
	}
	built := filepath.Join(o.dir, "built")
	if err := build(ctx, built, entries); err != nil {
		return err
	}
	fmt.Printf("kernels, programs and tests are there after %s\n", time.Since(started).Round(time.Second))
	if o.packages == "" && !o.bench {
		for pkg, why := range absent {
			fmt.Printf("?   \tguywire/%s\t[not in a machine: %s]\n", pkg, why)
		}
	}
	errs := make([]error, len(kernels))
	var screen sync.Mutex
	var machines sync.WaitGroup
	for i, k := range kernels {
		machines.Go(func() { // side by side: one that is emulated keeps one processor busy
			out := &prefixed{mu: &screen, w: os.Stdout, prefix: k.series + "  "}
			if err := o.machine(ctx, out, k, shell, built, entries); err != nil {
				errs[i] = fmt.Errorf("%s: %w", k.version, err)
			}
		})
	}
	machines.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("FAIL after %s\n%w", time.Since(started).Round(time.Second), err)
	}
	fmt.Printf("PASS after %s\n", time.Since(started).Round(time.Second))
	return nil
}

// choose gives the entries of the suite for a list of packages, or all.
func choose(list string) ([]entry, error) {
	if list == "" {
		return suite, nil
	}
	var out []entry
	for pkg := range strings.SplitSeq(list, ",") {
		at := slices.IndexFunc(suite, func(e entry) bool { return e.pkg == pkg })
		if at < 0 {
			return nil, fmt.Errorf("%s is no package of the suite; see integration/vm/suite.go", pkg)
		}
		out = append(out, suite[at])
	}
	return out, nil
}

// getKernels brings the kernels here. One that the package sources do not have
// is told and left out; none is an error.
func getKernels(ctx context.Context, series []string, dir string) (out []kernelImage, err error) {
	for _, s := range series {
		k, err := getKernel(ctx, s, dir)
		if err != nil && refresh(ctx) == nil {
			k, err = getKernel(ctx, s, dir)
		}
		if errors.Is(err, errNoPackage) {
			fmt.Printf("kernel %s is left out: no linux-image-%s.*-cloud-amd64 is %v; add Debian's suite that has it and run apt-get update\n", s, s, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no kernel to test")
	}
	return out, nil
}

// build builds the programs, the tests and this program, without C.
func build(ctx context.Context, dir string, entries []entry) error {
	builds := [][]string{{"build", "-trimpath", "-o", dir + "/programs/"}, {"build", "-ldflags=-s -w", "-o", dir + "/init", "./integration/vm"}}
	for _, p := range programs {
		builds[0] = append(builds[0], "./"+p)
	}
	for _, e := range entries {
		builds = append(builds, []string{"test", "-c", "-ldflags=-s -w", "-o", filepath.Join(dir, "tests", binaryName(e.pkg)), "./" + e.pkg})
	}
	for _, args := range builds {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env, cmd.Stderr = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"), os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

// machine runs the suite on one kernel, with the first accelerator that works.
func (o options) machine(ctx context.Context, out io.Writer, k kernelImage, shell, built string, entries []entry) error {
	log, err := os.Create(filepath.Join(o.dir, k.series+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	m := machine{
		kernel: k.image, initrd: filepath.Join(o.dir, k.series+".cpio"), console: filepath.Join(o.dir, k.series+".console"),
		memory: o.memory, cpus: o.cpus,
	}
	defer os.Remove(m.initrd)
	accels := accelerators(o.accel)
	for i, accel := range accels {
		r := &report{out: out, log: log, verbose: o.verbose, left: make(map[string][]skip)}
		_, _ = fmt.Fprintf(out, "=== kernel %s, QEMU with %s\n", k.version, accel)
		parts := measurements
		if !o.bench {
			parts = o.tests(r, entries, accel == "tcg", k.series)
		}
		missing, err := pack(ctx, m.initrd, k, shell, built, entries, parts)
		if err != nil {
			return err
		}
		start := time.Now()
		if len(missing) > 0 {
			_, _ = fmt.Fprintf(out, "this kernel has no module %s\n", strings.Join(missing, ", "))
		}
		limited, stop := context.WithCancelCause(ctx)
		ended := afterAwake(o.limit, func() { stop(fmt.Errorf("the machine did not end within %s", o.limit)) })
		busy, err := m.boot(limited, accel, r.line)
		ended()
		stop(nil)
		r.close()
		if errors.Is(err, errNoHello) && i+1 < len(accels) && ctx.Err() == nil {
			_, _ = fmt.Fprintln(out, err)
			continue
		}
		switch {
		case err != nil:
		case !r.done:
			err = fmt.Errorf("the machine ended before the suite; see %s", m.console)
		case len(r.failed) > 0:
			err = fmt.Errorf("%s failed; all output is in %s", strings.Join(r.failed, ", "), log.Name())
		}
		word := "PASS"
		if err != nil {
			word = "FAIL"
		}
		_, _ = fmt.Fprintf(out, "%s kernel %s, %s: %d parts, %d tests skipped, %s, %s of processor time\n",
			word, k.version, accel, len(parts), r.skipped, time.Since(start).Round(time.Second), busy.Round(time.Second))
		return err
	}
	return errNoHello
}

// tests makes the parts of the suite for a machine; what it leaves out is told
// to r.
func (o options) tests(r *report, entries []entry, emulated bool, series string) (parts []part) {
	for _, e := range entries {
		p := e.part(emulated, series, o.only)
		if emulated && e.slow != "" {
			_, _ = fmt.Fprintf(r.out, "?   \t%s\t[not in emulation: %s]\n", p.Name, e.slow)
			continue
		}
		parts = append(parts, p)
		r.left[p.Name] = e.skipped(emulated, series)
	}
	return parts
}

// prefixed writes what is written to it with a prefix before each line. Writes
// to w, which others share, are whole lines if those to it are.
type prefixed struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
}

func (p *prefixed) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for line := range bytes.Lines(text) {
		if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
			return 0, err
		}
	}
	return len(text), nil
}

// pack writes the first root file system of a machine, and says which modules
// the kernel does not have.
func pack(ctx context.Context, to string, k kernelImage, shell, built string, entries []entry, parts []part) (missing []string, err error) {
	modules, missing, err := k.modules.load(ctx, wanted)
	if err != nil {
		return nil, err
	}
	file, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	a := newArchive(file)
	a.device("dev/console", 0o600, 5, 1)
	a.device("dev/null", 0o666, 1, 3)
	a.dir("root", 0o700)
	a.file("init", filepath.Join(built, "init"))
	a.bytes("etc/passwd", 0o644, []byte("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"))
	a.bytes("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	a.bytes("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	a.bytes("etc/hostname", 0o644, []byte("vm\n"))
	a.link("var/run", "/run")
	a.file("bin/busybox", shell)
	for name := range strings.FieldsSeq("sh cat true false sleep test grep hostname id ls kill mkdir rmdir") {
		a.link("bin/"+name, "busybox")
	}
	a.link("programs/go", "/init")
	for _, p := range programs {
		a.file("programs/"+path.Base(p), filepath.Join(built, "programs", path.Base(p)))
	}
	for _, e := range entries {
		a.file("tests/"+binaryName(e.pkg), filepath.Join(built, "tests", binaryName(e.pkg)))
		a.tree("src/"+e.pkg, e.pkg, func(rel string, d fs.DirEntry) bool {
			return d.IsDir() && rel != "testdata" && !strings.HasPrefix(rel, "testdata/") || strings.HasSuffix(rel, ".go")
		})
	}
	var order strings.Builder
	for _, m := range modules {
		name := "modules/" + m.name + ".ko"
		a.bytes(name, 0o644, m.data)
		order.WriteString("/" + name + "\n")
	}
	a.bytes(strings.TrimPrefix(moduleOrder, "/"), 0o644, []byte(order.String()))
	list, err := json.Marshal(parts)
	if err != nil {
		return nil, err
	}
	a.bytes(strings.TrimPrefix(suiteFile, "/"), 0o644, list)
	return missing, errors.Join(a.close(), file.Close())
}
