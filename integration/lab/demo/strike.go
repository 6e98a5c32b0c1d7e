package demo

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"guywire/integration/lab/flow"
)

// Times of a measurement.
const (
	quiet   = 700 * time.Millisecond // the flow before the event
	observe = 2 * time.Second        // and after it
)

// A strike is one event under measured traffic.
type strike struct {
	step   int
	a, b   *site
	claim  claim
	linger time.Duration // how long to look after act has returned; 0: observe
	// act causes the event and returns its name and its moment by flow.Monotonic. It knows the ways of both directions.
	act func(ctx context.Context, ways [2]trace) (event string, at time.Duration, err error)
}

// hit runs a strike and says what the flow between its sites felt. What act has broken stays broken.
func (w *world) hit(ctx context.Context, s strike) (Row, error) {
	t, err := w.start(ctx, s.a, s.b)
	if err != nil {
		return Row{}, err
	}
	defer t.abandon()
	before, err := t.settled(ctx)
	if err != nil {
		return Row{}, err
	}
	counts := w.uplinkCounts()
	w.screen.progress("%s by %s", t.text(), before[0].text(counts))
	if err := pause(ctx, quiet); err != nil {
		return Row{}, err
	}
	event, at, err := s.act(ctx, before)
	if err != nil {
		return Row{}, err
	}
	w.screen.progress("%s: %s", event, t.text())
	if s.linger == 0 {
		s.linger = observe
	}
	if err := pause(ctx, s.linger); err != nil {
		return Row{}, err
	}
	// A flow that found no way back has none; how long it was silent says the account.
	after, lost := t.traces(ctx)
	if ctx.Err() != nil {
		return Row{}, context.Cause(ctx)
	}
	end := flow.Monotonic()
	results, err := t.stop(ctx)
	if err != nil {
		return Row{}, err
	}
	row := Row{
		Step: s.step, Event: event, Flow: t.text(), LimitMs: s.claim.limitMs, NoLoss: s.claim.lossless,
		Before: before[0].text(counts), BackBefore: before[1].text(counts),
		After: after[0].text(counts), BackAfter: after[1].text(counts),
	}
	row.account(t.ends, results, at, end)
	row.Verdict, row.Why = verdict(row, s.claim)
	if lost != nil && row.Verdict != verdictFail {
		row.Verdict, row.Why = verdictFail, "afterwards the "+lost.Error()
	}
	row.sites = involved(before, after)
	return row, nil
}

// involved returns the sites on any of the ways.
func involved(ways ...[2]trace) (names []string) {
	for _, both := range ways {
		for _, way := range both {
			for _, name := range way.nodes() {
				if !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	return names
}

// told adds a row to the report and prints it.
func (d *demo) told(r Row) {
	d.report.Rows = append(d.report.Rows, r)
	way := r.Before + ", and stays there"
	if r.After != r.Before {
		way = r.Before + " ⇒ " + r.After
	}
	d.screen.note("%s: %s, %d of %d packets lost. %s", r.Event, gapSentence(r), r.Lost, r.Sent, strings.ToUpper(r.Verdict))
	d.screen.note("%s: %s", r.Flow, way)
	if r.BackBefore != reverse(r.Before) || r.BackAfter != reverse(r.After) {
		back := r.BackBefore
		if r.BackAfter != r.BackBefore {
			back += " ⇒ " + r.BackAfter
		}
		d.screen.note("and back: %s", back)
	}
	if r.Why != "" {
		d.screen.note("%s", r.Why)
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
		return fmt.Sprintf("no gap above %d ms", noGap.Milliseconds())
	default:
		return fmt.Sprintf("gap %.0f ms", r.GapMs)
	}
}

// silence makes everything between the ends of a tunnel's path vanish in a router, both ways. It returns what undoes it,
// and when it took effect. Links that the path shares with others live on.
func (w *world) silence(ctx context.Context, l leg) (heal func(context.Context) error, at time.Duration, err error) {
	s, err := spotFor(l, w.byName, w.status)
	if err != nil {
		return nil, 0, err
	}
	argv := []string{w.exe, insideVerb, "silence"}
	for _, a := range s.a {
		argv = append(argv, "--a", a.String())
	}
	for _, b := range s.b {
		argv = append(argv, "--b", b.String())
	}
	p := w.launch(ctx, s.router, "", argv...)
	said, err := p.started(ctx)
	if err != nil {
		p.kill()
		return nil, 0, err
	}
	mono, err := strconv.ParseInt(said, 10, 64)
	if err != nil {
		p.kill()
		return nil, 0, fmt.Errorf("read the moment of the cut: %w", err)
	}
	return func(ctx context.Context) error { return p.stop(ctx, nil) }, time.Duration(mono), nil
}
