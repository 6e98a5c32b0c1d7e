package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/integration/lab/clock"
	"guywire/integration/lab/disk"
)

// faulty starts a lab of two hosts in which all can fail.
func faulty(t *testing.T, path ...string) *Lab {
	t.Helper()
	needNamespaces(t)
	l, err := Up(t.Context(), parse(t, strings.Replace(pair, "PROPS", "mtu: 1500", 1)), Options{Name: uniqueName(t), Faults: true, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func faultsOf(t *testing.T, l *Lab, node string) []string {
	t.Helper()
	st, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n, _ := st.Node(node)
	return n.Faults
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stands waits until the process says nothing for a while, which it otherwise does every few milliseconds.
func stands(t *testing.T, l *Lab, node, process string) {
	t.Helper()
	length, still := -1, 0
	eventually(t, process+" stands still", func() bool {
		if now := len(logOf(t, l, node, process)); now != length {
			length, still = now, 0
		} else {
			still++
		}
		return still > 15
	})
}

// says waits until the process says something new that has the text.
func says(t *testing.T, l *Lab, node, process, text string) {
	t.Helper()
	before := len(logOf(t, l, node, process))
	eventually(t, fmt.Sprintf("%s says %q", process, text), func() bool {
		return strings.Contains(logOf(t, l, node, process)[before:], text)
	})
}

func TestDisksFail(t *testing.T) {
	l, ctx := faulty(t), t.Context()
	for _, node := range []string{"a", "b"} {
		_, err := l.Start(ctx, node, "writer", helperArgv(t, "sync"))
		must(t, err)
		says(t, l, node, "writer", "ok\n")
	}
	must(t, l.Disk(ctx, "a", disk.Stall, 0))
	stands(t, l, "a", "writer")
	says(t, l, "b", "writer", "ok\n") // it has a disk of its own
	if got := faultsOf(t, l, "a"); !slices.Equal(got, []string{"disk stalls"}) {
		t.Errorf("status says %q", got)
	}
	must(t, l.HealNode(ctx, "a"))
	says(t, l, "a", "writer", "ok\n")
	must(t, l.Disk(ctx, "a", disk.IO, 0))
	says(t, l, "a", "writer", "EIO\n")
	must(t, l.Heal(ctx, ""))
	says(t, l, "a", "writer", "ok\n")
	must(t, l.Disk(ctx, "a", disk.Stall, 50*time.Millisecond))
	says(t, l, "a", "writer", "ok\n")
	if got := faultsOf(t, l, "a"); len(got) > 0 {
		t.Errorf("after all, status says %q", got)
	}

	// A killed process frees its place, also in a stalled disk.
	must(t, l.Disk(ctx, "a", disk.Stall, 0))
	stands(t, l, "a", "writer")
	must(t, l.Kill(ctx, "a", "writer", 0))
	must(t, l.HealNode(ctx, "a"))
	_, err := l.Start(ctx, "a", "writer", helperArgv(t, "sync"))
	must(t, err)
	says(t, l, "a", "writer", "ok\n")

	for name, err := range map[string]error{
		"another fault": l.Disk(ctx, "a", "EPERM", 0),
		"another node":  l.Disk(ctx, "c", disk.Stall, 0),
		"heal it":       l.HealNode(ctx, "c"),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestProcessesPause(t *testing.T) {
	l, ctx := faulty(t), t.Context()
	_, err := l.Start(ctx, "a", "writer", helperArgv(t, "sync"))
	must(t, err)
	must(t, l.Pause(ctx, "a", "writer", 0))
	stands(t, l, "a", "writer")
	if got := faultsOf(t, l, "a"); !slices.Equal(got, []string{"writer paused"}) {
		t.Errorf("status says %q", got)
	}
	must(t, l.HealNode(ctx, "a"))
	says(t, l, "a", "writer", "ok\n")
	must(t, l.Pause(ctx, "a", "writer", 50*time.Millisecond))
	says(t, l, "a", "writer", "ok\n")
	must(t, l.Pause(ctx, "a", "writer", 0))
	must(t, l.Kill(ctx, "a", "writer", 0))
	if got := faultsOf(t, l, "a"); len(got) > 0 {
		t.Errorf("killed, status says %q", got)
	}
	must(t, l.HealNode(ctx, "a"))
	if err := l.Pause(ctx, "a", "", 0); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no agent runs: %v", err)
	}
}

func TestNodesSuspend(t *testing.T) {
	l, ctx := faulty(t), t.Context()
	for _, process := range []string{"writer", "other"} {
		_, err := l.Start(ctx, "a", process, helperArgv(t, "sync"))
		must(t, err)
	}
	_, err := l.Start(ctx, "b", "writer", helperArgv(t, "sync"))
	must(t, err)
	must(t, l.Suspend(ctx, "a", 0, 0))
	stands(t, l, "a", "writer")
	stands(t, l, "a", "other")
	says(t, l, "b", "writer", "ok\n") // the machines next to it run
	if got := faultsOf(t, l, "a"); !slices.Equal(got, []string{"suspended"}) {
		t.Errorf("status says %q", got)
	}
	must(t, l.HealNode(ctx, "a"))
	says(t, l, "a", "writer", "ok\n")

	// What was paused before still is when the machine wakes up; its clock has gone on.
	must(t, l.Pause(ctx, "a", "other", 0))
	must(t, l.Suspend(ctx, "a", 50*time.Millisecond, time.Hour))
	says(t, l, "a", "writer", "ok\n")
	stands(t, l, "a", "other")
	if got := faultsOf(t, l, "a"); !slices.Equal(got, []string{"other paused", "clock off by 1h0m0s"}) {
		t.Errorf("status says %q", got)
	}
	must(t, l.Heal(ctx, ""))
	says(t, l, "a", "other", "ok\n")
	if got := faultsOf(t, l, "a"); len(got) > 0 {
		t.Errorf("after all, status says %q", got)
	}
}

// A fault that waits for its end is over when it is healed before.
func TestHealEndsAFaultEarly(t *testing.T) {
	l, ctx := faulty(t), t.Context()
	_, err := l.Start(ctx, "a", "writer", helperArgv(t, "sync"))
	must(t, err)
	over := make(chan error, 1)
	go func() { over <- l.Disk(ctx, "a", disk.Stall, 10*time.Minute) }()
	eventually(t, "the stall", func() bool { return len(faultsOf(t, l, "a")) > 0 })
	must(t, l.HealNode(ctx, "a"))
	select {
	case err := <-over:
		must(t, err)
	case <-time.After(patience):
		t.Error("the fault goes on")
	}
}

// yearSource is an agent that says which year it is.
const yearSource = `package main

import (
	"fmt"
	"time"
)

func main() {
	for range time.Tick(5 * time.Millisecond) {
		fmt.Println(time.Now().Year())
	}
}
`

func TestClocksStep(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "meshd.go"), []byte(yearSource), 0o600))
	must(t, clock.Build(t.Context(), filepath.Join(dir, "bin"), filepath.Join(dir, "meshd.go")))
	l, ctx := faulty(t, filepath.Join(dir, "bin")), t.Context()
	year := fmt.Sprintln(time.Now().Year())
	must(t, l.Clock(ctx, "a", time.Until(time.Unix(1000, 0)), 0)) // before it starts
	for _, node := range []string{"a", "b"} {
		_, err := l.Start(ctx, node, "", []string{"meshd"})
		must(t, err)
	}
	says(t, l, "a", "meshd", "1970\n")
	says(t, l, "b", "meshd", year)
	if got := faultsOf(t, l, "a"); len(got) != 1 || !strings.HasPrefix(got[0], "clock off by -") {
		t.Errorf("status says %q", got)
	}
	must(t, l.HealNode(ctx, "a"))
	says(t, l, "a", "meshd", year)
	must(t, l.Clock(ctx, "a", 400*24*time.Hour, 0)) // while it runs
	says(t, l, "a", "meshd", fmt.Sprintln(time.Now().Add(400*24*time.Hour).Year()))
	must(t, l.Heal(ctx, ""))
	says(t, l, "a", "meshd", year)

	// An agent from elsewhere would not notice.
	must(t, l.Kill(ctx, "a", "", 0))
	_, err := l.Start(ctx, "a", "meshd", helperArgv(t, "wait"))
	must(t, err)
	eventually(t, "the other agent runs", func() bool { return strings.Contains(logOf(t, l, "a", "meshd"), "waiting") })
	if err := l.Clock(ctx, "a", time.Hour, 0); !errors.Is(err, ErrNoFaults) {
		t.Errorf("an agent with the machine's clock: %v", err)
	}
}

func TestLabWithoutFaults(t *testing.T) {
	l, ctx := start(t, parse(t, strings.Replace(pair, "PROPS", "mtu: 1500", 1))), t.Context()
	if err := l.Disk(ctx, "a", disk.Stall, 0); !errors.Is(err, ErrNoFaults) {
		t.Errorf("disk: %v", err)
	}
	if err := l.Clock(ctx, "a", time.Hour, 0); !errors.Is(err, ErrNoFaults) {
		t.Errorf("clock: %v", err)
	}
	if err := l.Suspend(ctx, "a", time.Millisecond, time.Hour); !errors.Is(err, ErrNoFaults) {
		t.Errorf("a suspended clock: %v", err)
	}
	must(t, l.HealNode(ctx, "a"))
}
