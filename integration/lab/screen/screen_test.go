package screen

import (
	"bytes"
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
