package grid

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// limit is how long two sites may take from the join of the second until both know how their traffic travels.
const limit = 10 * time.Second

// patience is for how long a cell is watched beyond that, to tell slow from never.
const patience = 2 * limit

// A Result is a cell as it was measured.
type Result struct {
	Cell
	Way     Way     `json:"way"`
	Ping    float64 `json:"ping_s"`    // from the start of the second site's join to its first answered ping to the first; 0: none
	Verdict float64 `json:"verdict_s"` // … until the pair's links are up at both ends, or their attempt has failed; 0: neither
	Why     string  `json:"why"`       // there is no direct link, as a site says; or what went wrong
	Trace   trace   `json:"trace"`     // of the traffic afterwards
	// What it took at both ends until then.
	Attempts api.Attempts `json:"attempts"`
	First    string       `json:"first"` // of a cell that was measured again: how it was before, in a line
}

// Passes reports whether the result is at least what is expected, in time.
func (r Result) Passes() bool {
	return !r.Way.Worse(r.Expect) && r.Ping > 0 && r.Verdict > 0 && max(r.Ping, r.Verdict) <= limit.Seconds()
}

// Better reports whether the table expects less.
func (r Result) Better() bool { return r.Expect.Worse(r.Way) }

// Measure builds the cell's lab, joins the sites and tells what came of it. An error means that there was nothing to measure;
// what the cell itself does wrong is in the result.
func Measure(ctx context.Context, opts Options, c Cell) (r Result, err error) {
	r = Result{Cell: c, Way: None}
	m, err := build(ctx, opts, c.network(), left, right)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.join(ctx, left); err != nil {
		r.Why = world.OneLine(err)
		return r, ctx.Err()
	}
	if err := m.surveyed(ctx, left); err != nil {
		return r, err
	}
	token, err := m.token(ctx, right)
	if err != nil {
		return r, err
	}
	if err := m.race(ctx, token, &r); err != nil {
		r.Why = world.OneLine(err)
		return r, ctx.Err()
	}
	return r, m.confirm(ctx, &r)
}

// race joins the right site and takes the times.
func (m *Mesh) race(ctx context.Context, token string, r *Result) error {
	pings := m.await(ctx, right, left, patience)
	defer pings.Kill()
	if _, err := pings.Started(ctx); err != nil {
		return err
	}
	began, beganMono := time.Now(), flow.Monotonic()
	if err := m.enter(ctx, right, token); err != nil {
		return err
	}
	var v verdict
	ok, err := poll(ctx, patience, func() (bool, error) {
		ends, err := m.links(ctx)
		v, r.Attempts = judge(time.Now(), ends, v), effort(ends)
		return v.final, err
	})
	if err != nil {
		return err
	}
	r.Why = v.why
	if ok {
		r.Way, r.Verdict = v.way, v.at.Sub(began).Seconds()
	} else {
		r.Why = fmt.Sprintf("no attempt of a link has ended in %s", patience)
	}
	if r.Ping, err = m.answered(ctx, pings, beganMono, patience); err != nil {
		r.Way, r.Ping = None, 0
	}
	return err
}

// effort is what the attempts of a pair's links have taken at both ends.
func effort(ends [2][]api.Link) (all api.Attempts) {
	for _, l := range slices.Concat(ends[0], ends[1]) {
		all = sum(all, l.Attempts)
	}
	return all
}

func sum(a, b api.Attempts) api.Attempts {
	return api.Attempts{Begun: a.Begun + b.Begun, Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes}
}

// confirm looks whether the traffic goes where the links say.
func (m *Mesh) confirm(ctx context.Context, r *Result) error {
	if r.Way == None {
		return nil
	}
	t, ok, err := m.until(ctx, r.Way, settleLimit)
	if err != nil {
		return err
	}
	r.Trace = t
	if !ok {
		text, _ := json.Marshal(t)
		r.Why = fmt.Sprintf("the links say %s, the traffic does not: %s", r.Way, text)
		if r.Way = t.way(); r.Way == Direct {
			r.Way = Transit // what the links say
		}
	}
	return nil
}
