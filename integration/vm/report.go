package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A report reads what comes out of a machine and prints it as go test does:
// the result of each test, all that failed and skipped ones printed, and one
// line for each package.
type report struct {
	out     io.Writer
	log     io.Writer // gets everything
	verbose bool
	left    map[string][]skip // by part: what the machine leaves out

	now     *section // the part that runs
	failed  []string
	skipped int
	done    bool
}

// A section is the output of one part on its way through test2json.
type section struct {
	name   string
	start  time.Time // outside the machine
	in     io.WriteCloser
	cmd    *exec.Cmd
	shown  chan struct{}
	output map[string][]string // by test
}

// event is one line of test2json: see `go doc test2json`.
type event struct {
	Action, Test, Output string
}

// line takes one line of the machine.
func (r *report) line(text string) {
	_, _ = fmt.Fprintln(r.log, text)
	switch {
	case text == finished:
		r.done = true
	case strings.HasPrefix(text, notes):
		_, _ = fmt.Fprintln(r.out, strings.TrimPrefix(text, notes))
	case strings.HasPrefix(text, begins):
		r.begin(strings.TrimPrefix(text, begins))
	case strings.HasPrefix(text, ends):
		fields := strings.Fields(strings.TrimPrefix(text, ends))
		if len(fields) == 3 {
			r.end(fields[0], fields[1] == "0", fields[2])
		}
	case r.now != nil:
		_, _ = io.WriteString(r.now.in, text+"\n")
	}
}

func (r *report) begin(name string) {
	for _, s := range r.left[name] {
		r.skipped++
		_, _ = fmt.Fprintf(r.out, "--- SKIP: %s (not in this machine): %s\n", s.test, s.why)
	}
	s := &section{name: name, start: time.Now(), shown: make(chan struct{}), output: make(map[string][]string)}
	s.cmd = exec.Command("go", "tool", "test2json", "-p", name)
	s.cmd.Stderr = os.Stderr
	in, err := s.cmd.StdinPipe()
	if err != nil {
		panic(err) // of a command that was never started
	}
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		_, _ = fmt.Fprintln(r.out, err)
		r.failed = append(r.failed, name)
		return
	}
	s.in, r.now = in, s
	go func() {
		defer close(s.shown)
		for d := json.NewDecoder(out); ; {
			var e event
			if d.Decode(&e) != nil {
				_, _ = io.Copy(io.Discard, out)
				return
			}
			r.event(s, e)
		}
	}()
}

// event shows the result of a test.
func (r *report) event(s *section, e event) {
	switch e.Action {
	case "output":
		if r.verbose {
			_, _ = io.WriteString(r.out, e.Output)
		} else if !strings.HasPrefix(e.Output, "===") && e.Output != "\n" {
			s.output[e.Test] = append(s.output[e.Test], e.Output)
		}
	case "pass", "fail", "skip":
		if e.Test == "" && e.Action != "fail" {
			break
		}
		if e.Action == "skip" {
			r.skipped++
		}
		if !r.verbose && (e.Action != "pass" || !strings.Contains(e.Test, "/")) {
			lines := s.output[e.Test]
			if e.Action == "pass" {
				lines = slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "--- PASS") })
			}
			_, _ = io.WriteString(r.out, strings.Join(lines, ""))
		}
		delete(s.output, e.Test)
	}
}

func (r *report) end(name string, ok bool, seconds string) {
	outside := ""
	if s := r.now; s != nil {
		outside = fmt.Sprintf("\t[%s outside]", time.Since(s.start).Round(time.Second))
		_ = s.in.Close()
		<-s.shown
		_ = s.cmd.Wait()
		if !ok && !r.verbose { // what belongs to tests that did not end, as after a panic
			for _, lines := range s.output {
				_, _ = io.WriteString(r.out, strings.Join(lines, ""))
			}
		}
		r.now = nil
	}
	word := "ok  "
	if !ok {
		word = "FAIL"
		r.failed = append(r.failed, name)
	}
	if t, err := strconv.ParseFloat(seconds, 64); err == nil {
		seconds = fmt.Sprintf("%.3fs", t)
	}
	_, _ = fmt.Fprintf(r.out, "%s\t%s\t%s%s\n", word, name, seconds, outside)
}

// close ends what a machine that went away left open.
func (r *report) close() {
	if r.now != nil {
		r.end(r.now.name, false, "the machine ended")
	}
}
