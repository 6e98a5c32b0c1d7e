package screen

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTableFits(t *testing.T) {
	table := &Table{Heads: []string{"A", ">B"}}
	table.Add(strings.Repeat("ä", 200), strings.Repeat("9", 90))
	table.Add("short", "1")
	for _, l := range table.Lines(Width) {
		if utf8.RuneCountInString(l) > Width {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(l), l)
		}
	}
}

func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := New(&out, false)
	s.Heading(3, "Title", strings.Repeat("many words ", 20))
	s.Progress("not on a file")
	s.Debug("nor this")
	s.Note("%d done", 3)
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > Width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if got := out.String(); strings.Contains(got, "not") || strings.Contains(got, "nor") || !strings.HasSuffix(got, "   3 done\n") {
		t.Errorf("got %q", got)
	}
	out.Reset()
	s.terminal = true
	s.Progress("waiting")
	s.Say("done")
	if got := out.String(); got != "\r\x1b[K   … waiting\r\x1b[Kdone\n" {
		t.Errorf("a terminal gets %q", got)
	}
}

func TestTerminals(t *testing.T) {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a device of characters
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for term, want := range map[string]bool{"xterm": true, "dumb": false} {
		t.Setenv("TERM", term)
		if got := New(f, false).terminal; got != want {
			t.Errorf("TERM=%s: a terminal: %v", term, got)
		}
	}
}
