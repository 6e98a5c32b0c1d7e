package world

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

// Times of a measurement.
const (
	quiet   = 700 * time.Millisecond // the flow before the event, on one way
	observe = 2 * time.Second        // and after it
)

// A Strike is one event under measured traffic.
type Strike struct {
	A, B   *Site
	Linger time.Duration // how long to look after Act has returned; 0: 2 s
	// Patience is how much longer to look at a flow that has no way from end to end; 0: 2 s.
	Patience time.Duration
	// Act causes the event and returns its name and its moment by flow.Monotonic. It knows the ways of both directions.
	Act func(ctx context.Context, ways [2]Trace) (event string, at time.Duration, err error)
}

// Hit runs a strike and says what the flow between its sites felt. What Act has broken stays broken.
func (w *World) Hit(ctx context.Context, s Strike) (Felt, error) {
	t, err := w.StartTraffic(ctx, s.A, s.B)
	if err != nil {
		return Felt{}, err
	}
	defer t.Abandon()
	before, err := t.Settled(ctx)
	if err != nil {
		return Felt{}, err
	}
	counts := w.uplinkCounts()
	w.Screen.Progress("%s by %s", t.text(), before[0].text(counts))
	if before, err = t.atRest(ctx, before); err != nil {
		return Felt{}, err
	}
	event, at, err := s.Act(ctx, before)
	if err != nil {
		return Felt{}, err
	}
	w.Screen.Progress("%s: %s", event, t.text())
	s.Linger, s.Patience = w.paced(cmp.Or(s.Linger, observe)), w.paced(cmp.Or(s.Patience, observe))
	if err := Pause(ctx, s.Linger); err != nil {
		return Felt{}, err
	}
	// A flow that found no way back has none; how long it was silent says the account.
	after, lost := t.traces(ctx)
	for deadline := time.Now().Add(s.Patience); lost != nil && ctx.Err() == nil && time.Now().Before(deadline); {
		after, lost = t.traces(ctx)
	}
	if ctx.Err() != nil {
		return Felt{}, context.Cause(ctx)
	}
	end := flow.Monotonic()
	results, err := t.Stop(ctx)
	if err != nil {
		return Felt{}, err
	}
	row := Felt{
		Event: event, Flow: t.text(), Sites: involved(before, after),
		Before: before[0].text(counts), BackBefore: before[1].text(counts),
		After: after[0].text(counts), BackAfter: after[1].text(counts),
	}
	row.account(t.ends, results, at, end)
	if lost != nil {
		row.Astray = lost.Error()
	}
	return row, nil
}

// involved returns the sites on any of the ways.
func involved(ways ...[2]Trace) (names []string) {
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

// Silence makes everything between the ends of a tunnel's path vanish in a router, both ways. It returns what undoes it,
// and when it took effect. Links that the path shares with others live on.
func (w *World) Silence(ctx context.Context, l Leg) (heal func(context.Context) error, at time.Duration, err error) {
	s, err := spotFor(l, w.ByName, w.Status)
	if err != nil {
		return nil, 0, err
	}
	argv := []string{w.Exe, InsideVerb, "silence"}
	for _, a := range s.a {
		argv = append(argv, "--a", a.String())
	}
	for _, b := range s.b {
		argv = append(argv, "--b", b.String())
	}
	p := w.Launch(ctx, s.router, argv...)
	said, err := p.Started(ctx)
	if err != nil {
		p.Kill()
		return nil, 0, err
	}
	mono, err := strconv.ParseInt(said, 10, 64)
	if err != nil {
		p.Kill()
		return nil, 0, fmt.Errorf("read the moment of the cut: %w", err)
	}
	return func(ctx context.Context) error { return p.Stop(ctx, nil) }, time.Duration(mono), nil
}

// DirectPair chooses the pair whose tunnel is cut.
func (w *World) DirectPair(ctx context.Context) (a, b *Site, err error) {
	routes := map[string][]api.Route{}
	err = w.Until(ctx, "a pair with one direct tunnel", TalkLimit, func(ctx context.Context) (string, error) {
		for _, s := range w.Sites {
			var r api.Routes
			if err := w.Ctl(ctx, s, &r, "routes"); err != nil {
				return OneLine(err), nil
			}
			routes[s.Name] = r.Routes
		}
		var err error
		a, b, err = directPair(w.Sites, routes)
		return OneLine(err), nil
	})
	return a, b, err
}

// CutTunnel cuts the tunnel that carries the flow from a to b, and nothing else. patience is that of a Strike. Unless there is
// an error, the caller heals it.
func (w *World) CutTunnel(ctx context.Context, a, b *Site, patience time.Duration) (felt Felt, heal func(context.Context) error, err error) {
	felt, err = w.Hit(ctx, Strike{
		A: a, B: b, Patience: patience,
		Act: func(ctx context.Context, ways [2]Trace) (event string, at time.Duration, err error) {
			hop := ways[0][0]
			heal, at, err = w.Silence(ctx, hop)
			return fmt.Sprintf("%s – %s silent", hop.Node, hop.Peer), at, err
		},
	})
	if err != nil && heal != nil {
		err = errors.Join(err, heal(ctx))
	}
	return felt, heal, err
}

// UntilDirect waits, at most for limit, until the kernels of two sites send to each other's hosts by the tunnel between them.
func (w *World) UntilDirect(ctx context.Context, a, b *Site, limit time.Duration) error {
	return w.Until(ctx, "traffic takes the link again", limit, func(ctx context.Context) (string, error) {
		for _, end := range [][2]*Site{{a, b}, {b, a}} {
			l, err := w.Leg(ctx, end[0], end[1])
			if err != nil {
				return OneLine(err), nil
			}
			if l.Peer != end[1].Name {
				return fmt.Sprintf("%s sends to %s through %s", l.Node, end[1].Name, l.Peer), nil
			}
		}
		return "", nil
	})
}

// Leg returns the tunnel by which the kernel of a site sends to the host of another.
func (w *World) Leg(ctx context.Context, from, to *Site) (Leg, error) {
	ways, err := w.lookup(ctx, from)
	if err != nil {
		return Leg{}, err
	}
	device := ways[to.Host4]
	for _, l := range w.Links[from.Name] {
		if l.Device == device {
			return Leg{from.Name, device, l.Peer, l.Local, l.Remote}, nil
		}
	}
	return Leg{}, fmt.Errorf("%s sends to %s by %q, which is no tunnel", from.Name, to.Name, device)
}
