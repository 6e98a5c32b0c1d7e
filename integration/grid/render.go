package grid

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Render writes results as a table: a row and a column per kind, with the way and the seconds until it was known and a ping
// was answered. What is worse than expected or late is marked by !, what is better by +; both are told below, and with ~
// what was measured again.
func Render(w io.Writer, results []Result) error {
	cells, err := Expected()
	if err != nil {
		return err
	}
	var names []string // in the order of the file
	for _, c := range cells {
		measured := slices.ContainsFunc(results, func(r Result) bool { return r.Left == c.Left || r.Right == c.Left })
		if c.Left == c.Right && !kinds[c.Left].shared && measured {
			names = append(names, c.Left)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, n := range names {
		fmt.Fprintf(t, "\t%s", n)
	}
	fmt.Fprintln(t)
	for i, row := range names {
		fmt.Fprint(t, row)
		for k, column := range names {
			fmt.Fprint(t, "\t")
			at := slices.IndexFunc(results, func(r Result) bool { return r.has(row, column) })
			if k >= i && at >= 0 {
				fmt.Fprint(t, results[at].text())
			}
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if kinds[r.Left].shared {
			fmt.Fprintf(t, "%s\t%s\t%s\n", r.Left, r.text(), kinds[r.Left].says)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, r := range results {
		if r.First != "" {
			fmt.Fprintf(w, "~ measured again, alone; at first %s\n", r.First)
		}
		switch {
		case !r.Passes():
			fmt.Fprintf(w, "! %s\n", r)
		case r.Better():
			fmt.Fprintf(w, "+ %s\n", r)
		}
	}
	return nil
}

func (r Result) text() string {
	mark := ""
	if !r.Passes() {
		mark = "!"
	} else if r.Better() {
		mark = "+"
	}
	return fmt.Sprintf("%s%s %.1f", mark, r.Way, max(r.Ping, r.Verdict))
}

// String tells the result in a line.
func (r Result) String() string {
	s := fmt.Sprintf("%s: %s, want %s; ping %.1f s, verdict %.1f s; %d of %d pings answered, %d packets forwarded",
		r.Cell, r.Way, r.Expect, r.Ping, r.Verdict, r.Trace.Answered, r.Trace.Sent, r.Trace.Forwarded)
	if r.Better() {
		s += "; better than expected: update expected.txt"
	}
	if r.Why != "" {
		s += "; " + r.Why
	}
	return s
}
