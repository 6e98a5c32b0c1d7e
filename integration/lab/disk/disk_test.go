package disk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the program with the disk: for each line that it reads it calls fsync and says what came of it.
const childKey = "GUYWIRE_TEST_FSYNC"

func TestMain(m *testing.M) {
	if path := os.Getenv(childKey); path != "" {
		if err := child(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		err := f.Sync()
		if lines.Text() == "data" {
			err = unix.Fdatasync(int(f.Fd()))
		}
		errno, _ := errors.AsType[unix.Errno](err)
		fmt.Println(unix.ErrnoName(errno))
	}
	return lines.Err()
}

// A program writes through a disk.
type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	said chan string
}

func start(t *testing.T, d *Disk) *program {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), childKey+"="+t.TempDir()+"/file"), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(cmd); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, in: in, said: make(chan string, 16)}
	done := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			p.said <- lines.Text()
		}
		close(done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been
		<-done
		_ = cmd.Wait()
	})
	return p
}

// sync makes the program sync. Nothing is waited for.
func (p *program) sync(how string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, how); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) wants(errno string) {
	p.t.Helper()
	select {
	case got := <-p.said:
		if got != errno {
			p.t.Errorf("the call ended with %q, want %q", got, errno)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatal("the call does not end")
	}
}

// waits waits until n calls hang in the disk.
func waits(t *testing.T, d *Disk, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for d.Waiting() != n {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls wait, want %d", d.Waiting(), n)
		}
		<-tick.C
	}
}

func TestFaultsComeAndGo(t *testing.T) {
	t.Parallel()
	var d Disk
	p := start(t, &d)
	for _, how := range []string{"file", "data"} {
		for _, f := range []Fault{Healthy, IO, Full, Healthy} {
			d.Set(f)
			p.sync(how)
			p.wants(string(f))
		}
	}
}

func TestStallEnds(t *testing.T) {
	t.Parallel()
	for _, end := range []Fault{Healthy, IO} {
		var d Disk
		one, two := start(t, &d), start(t, &d)
		d.Set(Stall)
		one.sync("file")
		two.sync("data")
		waits(t, &d, 2)
		if len(one.said)+len(two.said) > 0 {
			t.Error("a call ended in a stalled disk")
		}
		d.Set(end)
		one.wants(string(end))
		two.wants(string(end))
		d.Set(Healthy)
		one.sync("file")
		one.wants("")
	}
}

// A program that is killed in a stalled disk dies, and leaves nothing.
func TestKilledInAStall(t *testing.T) {
	t.Parallel()
	var d Disk
	p := start(t, &d)
	d.Set(Stall)
	p.sync("file")
	waits(t, &d, 1)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waits(t, &d, 0)
	d.Set(Healthy)
	again := start(t, &d)
	again.sync("file")
	again.wants("")
}

func TestUnknownFault(t *testing.T) {
	t.Parallel()
	if Fault("EPERM").Known() || !IO.Known() || !Healthy.Known() {
		t.Error("the faults are other ones")
	}
}

func TestNoSuchProgram(t *testing.T) {
	t.Parallel()
	var d Disk
	if err := d.Start(exec.Command("/nowhere/meshd")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
