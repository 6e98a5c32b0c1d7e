package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"guywire/mesh/kernel"

	"github.com/google/go-cmp/cmp"
)

const (
	forward = "net/ipv4/ip_forward"
	filter  = "net/ipv4/conf/gw-a/rp_filter"
)

// fakeProc makes a folder that looks like /proc/sys.
func fakeProc(t *testing.T, values map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for path, value := range values {
		file := filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(value+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func valueOf(t *testing.T, proc, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(proc, path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func openSysctls(t *testing.T, state, proc string) *Sysctls {
	t.Helper()
	s, err := newSysctls(state, proc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func do(t *testing.T, s *Sysctls, op kernel.Op) {
	t.Helper()
	if err := s.Do(t.Context(), op); err != nil {
		t.Fatal(err)
	}
}

func settings(t *testing.T, s *Sysctls) []kernel.Sysctl {
	t.Helper()
	state, err := s.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return state.Sysctls
}

// TestSysctls changes settings, forgets everything but the file as a crash
// would, and restores.
func TestSysctls(t *testing.T) {
	state, proc := t.TempDir(), fakeProc(t, map[string]string{forward: "0", filter: "2", "net/ipv4/ip_local_port_range": "32768\t60999"})
	s := openSysctls(t, state, proc)
	if got := settings(t, s); len(got) > 0 {
		t.Errorf("before any change: %v", got)
	}
	do(t, s, kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: forward, Value: "1"}})
	do(t, s, kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: forward, Value: "1"}})
	do(t, s, kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: filter, Value: "0"}})
	do(t, s, kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: "net/ipv4/ip_local_port_range", Value: "32768 60999"}})
	want := []kernel.Sysctl{{Path: filter, Value: "0"}, {Path: forward, Value: "1"}, {Path: "net/ipv4/ip_local_port_range", Value: "32768 60999"}}
	if diff := cmp.Diff(want, settings(t, s)); diff != "" {
		t.Error(diff)
	}
	if err := os.RemoveAll(filepath.Join(proc, "net/ipv4/conf/gw-a")); err != nil { // the device went
		t.Fatal(err)
	}

	after := openSysctls(t, state, proc)
	if got := settings(t, after); len(got) != 2 {
		t.Errorf("of a device that is gone: %v", got)
	}
	do(t, after, kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: forward, Value: "2"}})
	do(t, after, kernel.RestoreSysctls{})
	if got := valueOf(t, proc, forward); got != "0" {
		t.Errorf("restored to %s, was 0", got)
	}
	if got := settings(t, after); len(got) > 0 {
		t.Errorf("after restoring: %v", got)
	}
	if entries, err := os.ReadDir(state); err != nil || len(entries) > 0 {
		t.Errorf("left in the state folder: %v %v", entries, err)
	}
	do(t, after, kernel.RestoreSysctls{})
}

// TestNoteFirst checks that a setting whose note cannot be kept is not changed.
func TestNoteFirst(t *testing.T) {
	state, proc := t.TempDir(), fakeProc(t, map[string]string{forward: "0"})
	if err := os.Mkdir(filepath.Join(state, notesFile+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := openSysctls(t, state, proc)
	if err := s.Do(t.Context(), kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: forward, Value: "1"}}); err == nil {
		t.Error("no error")
	}
	if got := valueOf(t, proc, forward); got != "0" {
		t.Errorf("changed to %s without a note", got)
	}
}

func TestSysctlRefused(t *testing.T) {
	s := openSysctls(t, t.TempDir(), fakeProc(t, map[string]string{forward: "0", "kernel/core_pattern": "core", "net/ipv4x": "0"}))
	for _, c := range []kernel.Sysctl{
		{Path: "kernel/core_pattern", Value: "1"},
		{Path: "net/ipv4/../../kernel/core_pattern", Value: "1"},
		{Path: "/net/ipv4/ip_forward", Value: "1"},
		{Path: "net/ipv4x", Value: "1"},
		{Path: "net/ipv4", Value: "1"},
		{Path: "net/ipv4//ip_forward", Value: "1"},
		{Path: "net/ipv4/ip_forward\n", Value: "1"},
		{Path: forward, Value: "|/bin/sh"},
		{Path: forward, Value: ""},
		{Path: "net/ipv4/none", Value: "1"},
	} {
		if err := s.Do(t.Context(), kernel.SetSysctl{Sysctl: c}); err == nil {
			t.Errorf("%+v was not refused", c)
		}
	}
	if err := s.Do(t.Context(), kernel.ClearFilter{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an operation of another backend: %v", err)
	}
}

func TestDamagedNotes(t *testing.T) {
	state := t.TempDir()
	if err := os.WriteFile(filepath.Join(state, notesFile), []byte(`{"version":1,"original":{"kernel/core_pattern":"1"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newSysctls(state, t.TempDir()); err == nil {
		t.Error("a note of a setting that is none of ours was believed")
	}
}

// TestRealSysctl uses the real files of a namespace.
func TestRealSysctl(t *testing.T) {
	enterNS(t)
	s, err := NewSysctls(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := valueOf(t, "/proc/sys", forward)
	do(t, s, kernel.SetSysctl{Sysctl: kernel.Sysctl{Path: forward, Value: "1"}})
	if got := valueOf(t, "/proc/sys", forward); got != "1" {
		t.Errorf("set to %s", got)
	}
	do(t, s, kernel.RestoreSysctls{})
	if got := valueOf(t, "/proc/sys", forward); got != before {
		t.Errorf("restored to %s, was %s", got, before)
	}
}

func FuzzNotes(f *testing.F) {
	f.Add([]byte(`{"version":1,"original":{"net/ipv4/ip_forward":"0"}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		notes, err := parseNotes(b)
		if err != nil {
			return
		}
		for path, value := range notes {
			if strings.Contains(path, "..") && strings.Contains("/"+path+"/", "/../") || !strings.HasPrefix(path, "net/") || strings.ContainsAny(value, "\n|") {
				t.Errorf("%q = %q", path, value)
			}
		}
	})
}
