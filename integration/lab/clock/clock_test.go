package clock

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The program for each line that it reads says its time in Unix seconds, and how long it runs by its monotonic clock.
const programSource = `package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

func main() {
	start := time.Now()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(time.Now().Unix(), time.Since(start).Nanoseconds())
	}
}
`

func TestClockSteps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := filepath.Join(dir, "teller.go")
	if err := os.WriteFile(source, []byte(programSource), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), filepath.Join(dir, "bin"), source); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "clock")
	for range 2 {
		if err := Create(path); err != nil {
			t.Fatal(err)
		}
	}
	for name, env := range map[string][]string{"with clock": {Env + "=" + path}, "without": nil, "missing file": {Env + "=" + path + "x"}} {
		follows := name == "with clock"
		cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "bin", "teller"))
		cmd.Env, cmd.Stderr = append(os.Environ(), env...), os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, last := bufio.NewScanner(out), int64(-1)
		for _, offset := range []time.Duration{0, time.Hour, -time.Hour, time.Until(time.Unix(0, 0)), 0} {
			if err := Set(path, offset); err != nil {
				t.Fatal(err)
			}
			if got, err := Get(path); err != nil || got != offset.Truncate(time.Second) {
				t.Errorf("the clock is set to %s, %v", got, err)
			}
			if !follows {
				offset = 0
			}
			before := time.Now().Add(offset).Unix()
			if _, err := io.WriteString(in, "\n"); err != nil {
				t.Fatal(err)
			}
			if !lines.Scan() {
				t.Fatal("the program has ended")
			}
			var now, runs int64
			if _, err := fmt.Sscan(lines.Text(), &now, &runs); err != nil {
				t.Fatal(err)
			}
			if after := time.Now().Add(offset).Unix(); now < before-1 || now > after+1 { // offsets are whole seconds
				t.Errorf("%s, offset %s: it is %d, want %d to %d", name, offset, now, before, after)
			}
			if runs < last {
				t.Errorf("%s, offset %s: the monotonic clock went back from %d to %d", name, offset, last, runs)
			}
			last = runs
		}
		if got, err := Followed(path, cmd.Process.Pid); err != nil || got != follows {
			t.Errorf("%s: followed %t, %v", name, got, err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// A Go whose package time is another one is refused, not built without the change.
func TestPatch(t *testing.T) {
	t.Parallel()
	dir, err := timeDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(dir, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	changed, err := patch(source)
	if err != nil || strings.Count(string(changed), strings.TrimSpace(nowAddition)) != 1 || len(changed) != len(source)+len(nowAddition) {
		t.Errorf("patched: %v", err)
	}
	for name, other := range map[string]string{"none": "package time", "two": nowFunction + nowFunction} {
		if _, err := patch([]byte(other)); err == nil {
			t.Errorf("%s was patched", name)
		}
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "clock")
	if err := Set(path, time.Hour); err == nil {
		t.Error("a missing clock was set")
	}
	if err := os.WriteFile(path, []byte("noon"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Get(path); err == nil {
		t.Error("another file was read")
	}
}
