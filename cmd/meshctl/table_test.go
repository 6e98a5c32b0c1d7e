package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// No mix of cell widths makes a table wider than the screen while a flexible
// column can give.
func TestTablesFitTheScreen(t *testing.T) {
	for n := range 200 {
		var out strings.Builder
		a := &app{out: &out}
		tab := &table{columns: []column{{head: "A", flex: true}, {head: "B", right: true}, {head: "C", flex: true}, {head: "D"}}}
		tab.add(row{cells: []string{strings.Repeat("ä", n), "1.0", strings.Repeat("c", 200-n), "end"}, notes: []string{strings.Repeat("word ", n)}})
		a.print(tab)
		for line := range strings.Lines(out.String()) {
			if got := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); got > screen {
				t.Fatalf("%d: %d columns: %s", n, got, line)
			}
		}
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 59 * time.Second: "59 s", time.Minute: "1 min", 59*time.Minute + 59*time.Second: "59 min",
		time.Hour: "1 h", 47 * time.Hour: "47 h", 48 * time.Hour: "2 d", 1000 * time.Hour: "41 d",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %q, want %q", d, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0.0", 0.04: "0.0", 12.34: "12.3", 99.94: "99.9", 99.96: "100", 1234.5: "1234"} {
		if got := ms(&v); got != want {
			t.Errorf("ms(%v) = %q, want %q", v, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 1 << 63: "9.2 EB", 1<<64 - 1: "18.4 EB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	if ms(nil) != unknown || percent(nil) != unknown {
		t.Error("unknown values are not –")
	}
	if got := shorten("oslo-lab-with-a-long-name-7", 12); got != "oslo-lab…e-7" || utf8.RuneCountInString(got) != 12 {
		t.Errorf("shorten: %q", got)
	}
}
