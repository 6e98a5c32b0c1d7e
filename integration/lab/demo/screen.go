package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// width is what all output fits into.
const width = 100

// A screen is where the demo prints, from any goroutine. Progress shows on terminals only, in one line that the next output
// replaces.
type screen struct {
	terminal bool
	verbose  bool

	mu    sync.Mutex // guards the rest
	out   io.Writer
	dirty bool // a line of progress stands there
}

func newScreen(out io.Writer, verbose bool) *screen {
	s := &screen{out: out, verbose: verbose}
	if f, isFile := out.(*os.File); isFile {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return s
}

// say prints a line, or several.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
	_, _ = fmt.Fprintf(s.out, format+"\n", args...)
}

// heading opens a step.
func (s *screen) heading(step int, title, what string) {
	line := fmt.Sprintf("%d  %s ", step, title)
	line += strings.Repeat("─", max(width-utf8.RuneCountInString(line), 0))
	if s.terminal {
		line = "\x1b[1m" + line + "\x1b[0m"
	}
	s.say("\n%s", line)
	for _, l := range wrap(what, width-3) {
		s.say("   %s", l)
	}
}

// note prints an outcome below a heading.
func (s *screen) note(format string, args ...any) {
	for _, l := range wrap(fmt.Sprintf(format, args...), width-3) {
		s.say("   %s", l)
	}
}

// progress shows what is being waited for.
func (s *screen) progress(format string, args ...any) {
	if !s.terminal {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.out, "\r\x1b[K   … %s", shorten(fmt.Sprintf(format, args...), width-8))
	s.dirty = true
}

// clear removes the line of progress.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
}

func (s *screen) clearLocked() {
	if s.dirty {
		_, _ = io.WriteString(s.out, "\r\x1b[K")
		s.dirty = false
	}
}

// debug prints with --verbose only.
func (s *screen) debug(format string, args ...any) {
	if s.verbose {
		s.say("   %s "+format, append([]any{time.Now().Format("15:04:05.000")}, args...)...)
	}
}

// A table is columns of text. A column whose head begins with ">" is aligned right.
type table struct {
	heads []string
	rows  [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// columnGap separates columns.
const columnGap = "  "

// lines lays the table out in at most limit columns: the widest columns give way, down to least.
func (t *table) lines(limit int) []string {
	const least = 6
	heads := make([]string, len(t.heads))
	widths := make([]int, len(t.heads))
	total := -len(columnGap)
	for i, h := range t.heads {
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
			cell = shorten(cell, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if strings.HasPrefix(t.heads[i], ">") {
				b.WriteString(pad + cell)
			} else {
				b.WriteString(cell + pad)
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// print prints the table, indented like everything below a heading.
func (t *table) print(s *screen) {
	const indent = "   "
	for _, l := range t.lines(width - len(indent)) {
		s.say("%s%s", indent, l)
	}
}

// shorten cuts the end off.
func shorten(s string, limit int) string {
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
