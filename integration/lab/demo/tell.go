package demo

import (
	"fmt"
	"slices"
	"strings"
)

// told adds a row to the report and prints it.
func (d *demo) told(r Row) {
	d.report.Rows = append(d.report.Rows, r)
	way := r.Before + ", and stays there"
	if r.After != r.Before {
		way = r.Before + " ⇒ " + r.After
	}
	d.Screen.Note("%s: %s, %d of %d packets lost. %s", r.Event, gapSentence(r), r.Lost, r.Sent, strings.ToUpper(r.Verdict))
	d.Screen.Note("%s: %s", r.Flow, way)
	if r.BackBefore != reverse(r.Before) || r.BackAfter != reverse(r.After) {
		back := r.BackBefore
		if r.BackAfter != r.BackBefore {
			back += " ⇒ " + r.BackAfter
		}
		d.Screen.Note("and back: %s", back)
	}
	if r.Why != "" {
		d.Screen.Note("%s", r.Why)
	}
}

// reverse turns a way round, so that a way back is told only if it is another.
func reverse(way string) string {
	const arrow = " → "
	names := strings.Split(way, arrow)
	slices.Reverse(names)
	for i, n := range names { // a site in the middle names its uplinks in order
		if site, uplinks, found := strings.Cut(n, ":"); found {
			u := strings.Split(uplinks, ",")
			slices.Reverse(u)
			names[i] = site + ":" + strings.Join(u, ",")
		}
	}
	return strings.Join(names, arrow)
}

func gapSentence(r Row) string {
	switch {
	case r.Open:
		return "the flow did not come back"
	case r.GapMs <= 0:
		return fmt.Sprintf("no gap above %.0f ms", r.NoGapMs)
	default:
		return fmt.Sprintf("gap %.0f ms", r.GapMs)
	}
}
