package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
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
		flag.DurationVar(&o.limit, "timeout", 20*time.Minute, "end a machine after this time")
		flag.IntVar(&o.memory, "m", 4096, "memory of a machine in MiB")
		flag.IntVar(&o.cpus, "smp", 2, "processors of a machine")
		flag.BoolVar(&o.verbose, "v", false, "print all that tests print")
		flag.Parse()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = host(ctx, o)
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
	if o.packages == "" {
		for pkg, why := range absent {
			fmt.Printf("?   \tguywire/%s\t[not in this machine: %s]\n", pkg, why)
		}
	}
	accels := accelerators(o.accel)
	var failed []string
	for _, k := range kernels {
		used, err := o.machine(ctx, k, shell, built, entries, accels)
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", k.version, err))
		}
		if used != "" {
			accels = []string{used} // what did not work once is not tried again
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("FAIL after %s\n%s", time.Since(started).Round(time.Second), strings.Join(failed, "\n"))
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
func (o options) machine(ctx context.Context, k kernelImage, shell, built string, entries []entry, accels []string) (used string, err error) {
	log, err := os.Create(filepath.Join(o.dir, k.series+".log"))
	if err != nil {
		return "", err
	}
	defer log.Close()
	for i, accel := range accels {
		r := &report{out: os.Stdout, log: log, verbose: o.verbose, left: make(map[string][]skip)}
		var parts []part
		for _, e := range entries {
			p := e.part(accel == "tcg", o.only)
			parts = append(parts, p)
			r.left[p.Name] = e.skipped(accel == "tcg")
		}
		m := machine{
			kernel: k.image, initrd: filepath.Join(o.dir, k.series+".cpio"), console: filepath.Join(o.dir, k.series+".console"),
			memory: o.memory, cpus: o.cpus,
		}
		if err := pack(ctx, m.initrd, k, shell, built, entries, parts); err != nil {
			return "", err
		}
		defer os.Remove(m.initrd)
		start := time.Now()
		fmt.Printf("\n=== kernel %s, QEMU with %s\n", k.version, accel)
		limited, stop := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("the machine did not end within %s", o.limit))
		err := m.boot(limited, accel, r.line)
		stop()
		r.close()
		if errors.Is(err, errNoHello) && i+1 < len(accels) && ctx.Err() == nil {
			fmt.Println(err)
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
		fmt.Printf("%s kernel %s, %s: %d parts, %d tests skipped, %s\n", word, k.version, accel, len(parts), r.skipped, time.Since(start).Round(time.Second))
		return accel, err
	}
	return "", errNoHello
}

// pack writes the first root file system of a machine.
func pack(ctx context.Context, to string, k kernelImage, shell, built string, entries []entry, parts []part) error {
	modules, missing, err := k.modules.load(ctx, wanted)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		fmt.Printf("kernel %s has no %s\n", k.version, strings.Join(missing, ", "))
	}
	file, err := os.Create(to)
	if err != nil {
		return err
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
	for _, name := range strings.Fields("sh cat true false sleep test grep hostname id ls kill ps dmesg") {
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
		return err
	}
	a.bytes(strings.TrimPrefix(suiteFile, "/"), 0o644, list)
	return errors.Join(a.close(), file.Close())
}
