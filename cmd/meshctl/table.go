package main

import (
	"strings"
	"unicode/utf8"
)

// screen is the width that every table fits unless --wide.
const screen = 100

// A column of a table.
type column struct {
	head  string
	right bool // aligned right
	flex  bool // may be shortened when the table is too wide
}

// A row is one line of cells, and notes that are printed under it.
type row struct {
	cells []string
	paint paint // of the cell in column painted
	notes []string
}

// A table is columns of text, aligned.
type table struct {
	columns []column
	rows    []row
	painted int  // column whose cells have the row's paint
	wide    bool // no limit of the width
}

func (t *table) add(r row) {
	for i := range r.cells {
		r.cells[i] = clean(r.cells[i])
	}
	t.rows = append(t.rows, r)
}

const (
	gap      = 2 // blanks between columns
	minCell  = 8 // a shortened column has at least this
	noteDent = 4 // blanks before a note
)

// print writes the table.
func (a *app) print(t *table) {
	widths := t.widths()
	head := make([]string, len(t.columns))
	for i, c := range t.columns {
		head[i] = c.head
	}
	a.printLine(t, widths, row{cells: head})
	for _, r := range t.rows {
		a.printLine(t, widths, r)
		for _, note := range r.notes {
			for _, line := range wrap(clean(note), screen-noteDent) {
				a.say("%s%s\n", strings.Repeat(" ", noteDent), line)
			}
		}
	}
}

// widths gives each column the width of its widest cell, then takes from the
// widest flexible ones until the table fits.
func (t *table) widths() []int {
	widths := make([]int, len(t.columns))
	total := -gap
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.head)
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r.cells[i]))
		}
		total += widths[i] + gap
	}
	for !t.wide && total > screen {
		widest := -1
		for i, c := range t.columns {
			if c.flex && widths[i] > minCell && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
		total--
	}
	return widths
}

func (a *app) printLine(t *table, widths []int, r row) {
	var line strings.Builder
	for i, cell := range r.cells {
		cell = shorten(cell, widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if i == t.painted {
			cell = a.painted(r.paint, cell).String()
		}
		if i > 0 {
			line.WriteString(strings.Repeat(" ", gap))
		}
		if t.columns[i].right {
			line.WriteString(pad + cell)
		} else {
			line.WriteString(cell + pad)
		}
	}
	a.say("%s\n", text(strings.TrimRight(line.String(), " ")))
}

// shorten cuts the middle out of s, where names differ least.
func shorten(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	tail := (width - 1) / 3
	return string(r[:width-1-tail]) + "…" + string(r[len(r)-tail:])
}

// wrap breaks s at blanks into lines of at most width, where it can.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}
