package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"guywire/integration/grid"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
)

const (
	joinsOfKind  = 3  // sites of each kind of network that join
	faultShare   = 2  // the part of the events that is made of each fault
	joinTarget   = 3  // seconds, over NAT
	cellTarget   = 10 // seconds until a pair knows how its traffic travels
	recoverLimit = time.Minute
	// quiet is how long a pair is left alone before a fault, so that nothing of the last one is under way.
	quiet = 5 * time.Second
)

func (b *bench) gridOptions(name string) grid.Options {
	return grid.Options{Options: b.labOptions(name), Logs: b.logs}
}

// nat brings pairs of sites together whose networks are of all kinds.
func (b *bench) nat(ctx context.Context) error {
	cells, err := grid.Choose(b.pairs)
	if err != nil {
		return err
	}
	b.heading("%d of the pairs of networks of integration/grid/expected.txt; --pairs '.*' measures all. A site behind the second joins a mesh "+
		"with a site behind the first, 40 ms away. Ping: from the start of its join to the first answer. Link: until both ends have it, or know that there is "+
		"none. Until then the two begin attempts, and send packets over UDP in them, to each other and to STUN servers.", len(cells))
	t := &screen.Table{Heads: []string{"PAIR", "WAY", "WANTED", ">PING s", ">LINK s", ">ATTEMPTS", ">PACKETS each", ">BYTES each"}}
	var worse, longest, most float64
	var made []float64
	var wrong []string
	for i, c := range cells {
		b.screen.Progress("%s, %d of %d", c, i+1, len(cells))
		r, err := grid.Measure(ctx, b.gridOptions(fmt.Sprintf("nat%d", i+1)), c)
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		if r.Way.Worse(c.Expect) {
			worse++
		}
		if !r.Passes() {
			wrong = append(wrong, r.String())
		}
		begun, packets, bytes := float64(r.Attempts.Begun), "–", "–"
		if begun > 0 {
			packets, bytes = number(float64(r.Attempts.Packets)/begun), number(float64(r.Attempts.Bytes)/begun)
			most = max(most, float64(r.Attempts.Packets)/begun)
		}
		if r.Way == grid.Direct || r.Way == grid.Carrier {
			made = append(made, begun)
		}
		longest = max(longest, r.Ping, r.Verdict)
		t.Add(c.String(), string(r.Way), string(c.Expect), number(r.Ping), number(r.Verdict), number(begun), packets, bytes)
		b.report.Pairs = append(b.report.Pairs, r)
	}
	t.Print(b.screen)
	b.screen.Say("")
	for _, w := range wrong {
		b.screen.Note("%s", w)
	}
	b.tell(
		figure{What: "pairs that are worse than expected", Value: worse}.most(0),
		figure{What: "longest until the way is known", Value: longest, Unit: "s"}.most(cellTarget),
		figure{What: fmt.Sprintf("attempts to success, median of %d", len(made)), Value: quantile(made, 0.5), Samples: made},
		figure{What: "the same, most", Value: quantile(made, 1)},
		figure{What: "packets of an attempt, both ends, most", Value: most},
	)
	return nil
}

// join lets sites join from behind each kind of network.
func (b *bench) join(ctx context.Context) error {
	b.heading("First ping after `meshctl join` behind each kind of network, of %d sites each: from its start until a public site, 40 ms away, answers.", joinsOfKind)
	names, says, err := grid.Kinds()
	if err != nil {
		return err
	}
	var figures []figure
	var errs []error
	for i, name := range names {
		b.screen.Progress("%s, %d of %d", name, i+1, len(names))
		s, err := grid.Joins(ctx, b.gridOptions("join-"+name), name, joinsOfKind)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		figures = append(figures, figure{What: name + ": " + says[name], Value: quantile(s, 0.5), Unit: "s", Samples: s}.most(joinTarget))
	}
	b.tell(figures...)
	return errors.Join(errs...)
}

// recovery breaks the networks of NATed sites that have a direct link.
func (b *bench) recovery(ctx context.Context) error {
	times := max(b.cuts/faultShare, 1)
	b.heading("Two sites with a direct link, 40 ms apart. The box of the one, which chooses its ports, is switched off for a second, or the "+
		"address changes, %d times each. From when the box is on or the address has changed: until a ping is answered, through whatever sites, and until the "+
		"traffic takes a direct link again (to half a second).", times)
	var figures []figure
	for i, e := range []struct {
		what  string
		cell  grid.Cell
		fault grid.Fault
	}{
		{"NAT rebooted", grid.Cell{Left: "easy", Right: "port"}, grid.Reboot},
		{"NAT's address changed", grid.Cell{Left: "easy", Right: "port"}, grid.Readdress},
		{"site's address changed", grid.Cell{Left: "public", Right: "public"}, grid.Readdress},
	} {
		pings, directs, err := b.suffer(ctx, fmt.Sprintf("recovery%d", i+1), e.what, e.cell, e.fault, times)
		if err != nil {
			return fmt.Errorf("%s, after %d times: %w", e.what, len(pings), err)
		}
		what := fmt.Sprintf("%s (%s): ", e.what, e.cell)
		figures = append(figures,
			figure{What: what + fmt.Sprintf("ping, median of %d", times), Value: quantile(pings, 0.5), Unit: "s", Samples: pings},
			figure{What: what + "the longest", Value: quantile(pings, 1), Unit: "s"},
			figure{What: what + "direct, median", Value: quantile(directs, 0.5), Unit: "s", Samples: directs},
			figure{What: what + "the longest", Value: quantile(directs, 1), Unit: "s"})
	}
	b.tell(figures...)
	return nil
}

// suffer lets a fault happen to a pair again and again, and returns the seconds until it was over.
func (b *bench) suffer(ctx context.Context, lab, what string, c grid.Cell, f grid.Fault, times int) (pings, directs []float64, err error) {
	m, err := grid.Together(ctx, b.gridOptions(lab), c)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for i := range times {
		b.screen.Progress("%s, %d of %d", what, i+1, times)
		if err := world.Pause(ctx, quiet); err != nil {
			return pings, directs, err
		}
		r, err := m.Survive(ctx, f, recoverLimit)
		if err != nil {
			return pings, directs, err
		}
		pings, directs = append(pings, r.Ping), append(directs, r.Direct)
	}
	return pings, directs, nil
}

// thirty makes a mesh of many sites behind networks of many kinds.
func (b *bench) thirty(ctx context.Context) error {
	mixture, err := grid.Mixture()
	if err != nil {
		return err
	}
	b.heading("One mesh of sites behind networks of many kinds: %s. They join one after the other, as many as the machine bears, with slow probes as on metered uplinks; the mesh chooses which pairs are to have a link.", mixture)
	r, err := grid.Mix(ctx, b.gridOptions("thirty"), b.screen.Progress)
	if err != nil {
		return err
	}
	decided := float64(max(r.Decided(), 1))
	for _, w := range r.Worse {
		b.screen.Note("%s", w)
	}
	if r.Stopped != "" {
		b.screen.Note("This machine bears no more than %d sites: %s.", r.Sites, r.Stopped)
	}
	b.report.Mixed = &r
	all := r.Promise[grid.Direct] + r.Promise[grid.Carrier] + r.Promise[grid.Transit]
	b.tell(
		figure{What: "sites", Value: float64(r.Sites)},
		figure{What: "first ping after join, median", Value: quantile(r.Joins, 0.5), Unit: "s", Samples: r.Joins},
		figure{What: "the same, longest", Value: quantile(r.Joins, 1), Unit: "s"},
		figure{What: "from the last join until all links are decided", Value: r.Settled, Unit: "s"},
		figure{What: "pairs that the mesh wants a link for", Value: float64(r.Decided() + r.Open)},
		figure{What: "of these not decided in the end", Value: float64(r.Open)}.most(0),
		figure{What: "of the others with a direct link", Value: 100 * float64(r.Ways[grid.Direct]) / decided, Unit: "%"},
		figure{What: "with a link over TLS", Value: 100 * float64(r.Ways[grid.Carrier]) / decided, Unit: "%"},
		figure{What: "through other sites", Value: 100 * float64(r.Ways[grid.Transit]) / decided, Unit: "%"},
		figure{What: "worse than expected", Value: float64(len(r.Worse))}.most(0),
		figure{What: fmt.Sprintf("of all %d pairs of the whole mix, direct by the grid's table", all), Value: 100 * float64(r.Promise[grid.Direct]) / float64(max(all, 1)), Unit: "%"},
		figure{What: fmt.Sprintf("pairs of any two sites that ping each other, of %d", r.Pairs), Value: float64(r.Reached)}.least(float64(r.Pairs)),
		figure{What: "attempts", Value: float64(r.Effort.Begun)},
		figure{What: "packets of an attempt, both ends", Value: float64(r.Effort.Packets) / float64(max(r.Effort.Begun, 1))},
	)
	return nil
}
