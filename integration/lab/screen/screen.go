// Package screen is where demo, bench and chaos print: headings, notes, tables and a line of progress, all within 100 columns.
package screen

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Width is what all output fits into.
const Width = 100

// A Screen is where the demo prints, from any goroutine. Progress shows on terminals only, in one line that the next output
// replaces.
type Screen struct {
	terminal bool
	verbose  bool

	mu    sync.Mutex // guards the rest
	out   io.Writer
	dirty bool // a line of progress stands there
}

func New(out io.Writer, verbose bool) *Screen {
	s := &Screen{out: out, verbose: verbose}
	if f, isFile := out.(*os.File); isFile {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return s
}

// Say prints a line, or several.
func (s *Screen) Say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
	_, _ = fmt.Fprintf(s.out, format+"\n", args...)
}

// Heading opens a step.
func (s *Screen) Heading(step int, title, what string) {
	line := fmt.Sprintf("%d  %s ", step, title)
	line += strings.Repeat("─", max(Width-utf8.RuneCountInString(line), 0))
	if s.terminal {
		line = "\x1b[1m" + line + "\x1b[0m"
	}
	s.Say("\n%s", line)
	for _, l := range wrap(what, Width-3) {
		s.Say("   %s", l)
	}
}

// Note prints an outcome below a heading.
func (s *Screen) Note(format string, args ...any) {
	for _, l := range wrap(fmt.Sprintf(format, args...), Width-3) {
		s.Say("   %s", l)
	}
}

// Progress shows what is being waited for.
func (s *Screen) Progress(format string, args ...any) {
	if !s.terminal {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.out, "\r\x1b[K   … %s", Shorten(fmt.Sprintf(format, args...), Width-8))
	s.dirty = true
}

// Clear removes the line of progress.
func (s *Screen) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
}

func (s *Screen) clearLocked() {
	if s.dirty {
		_, _ = io.WriteString(s.out, "\r\x1b[K")
		s.dirty = false
	}
}

// Debug prints with --verbose only.
func (s *Screen) Debug(format string, args ...any) {
	if s.verbose {
		s.Say("   %s "+format, append([]any{time.Now().Format("15:04:05.000")}, args...)...)
	}
}

// A Table is columns of text. A column whose head begins with ">" is aligned right.
type Table struct {
	Heads []string
	rows  [][]string
}

func (t *Table) Add(cells ...string) { t.rows = append(t.rows, cells) }

// columnGap separates columns.
const columnGap = "  "

// Lines lays the table out in at most limit columns: the widest columns give way, down to least.
func (t *Table) Lines(limit int) []string {
	const least = 6
	heads := make([]string, len(t.Heads))
	widths := make([]int, len(t.Heads))
	total := -len(columnGap)
	for i, h := range t.Heads {
		heads[i] = strings.TrimPrefix(h, ">")
		widths[i] = utf8.RuneCountInString(heads[i])
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
		}
		total += widths[i] + len(columnGap)
	}
	for total > limit {
		widest := 0
		for i := range widths {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= least {
			break
		}
		widths[widest]--
		total--
	}
	var lines []string
	for _, r := range append([][]string{heads}, t.rows...) {
		var b strings.Builder
		for i, cell := range r {
			if i > 0 {
				b.WriteString(columnGap)
			}
			cell = Shorten(cell, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if strings.HasPrefix(t.Heads[i], ">") {
				b.WriteString(pad + cell)
			} else {
				b.WriteString(cell + pad)
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// Print prints the table, indented like everything below a heading.
func (t *Table) Print(s *Screen) {
	const indent = "   "
	for _, l := range t.Lines(Width - len(indent)) {
		s.Say("%s%s", indent, l)
	}
}

// Shorten cuts the end off.
func Shorten(s string, limit int) string {
	r := []rune(strings.Join(strings.Fields(s), " "))
	if len(r) <= limit {
		return string(r)
	}
	return string(r[:max(limit-1, 0)]) + "…"
}

// wrap breaks a text at blanks into lines of at most limit, where it can.
func wrap(text string, limit int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= limit:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
