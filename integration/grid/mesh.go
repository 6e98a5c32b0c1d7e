package grid

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// Limits of what a lab has to do before anything is measured, generous because a machine may be busy.
const (
	joinLimit   = 30 * time.Second // no measure: what counts are the seconds that it took
	surveyLimit = 10 * time.Second // for the left site to know its NAT; one that learns nothing goes on
	settleLimit = 20 * time.Second // for the traffic to take the way that the links promise
	pollEvery   = 200 * time.Millisecond
)

// Options are those of a lab, and what becomes of its logs.
type Options struct {
	lab.Options
	Logs string // they go there, below the lab's name; empty: nowhere
}

// A Mesh is a lab of helpers and the sites that they help, with the real programs in it.
type Mesh struct {
	*world.World
	addrs map[string]netip.Addr // of members in the mesh, IPv4
	logs  string                // where they go at the end; empty: nowhere
	limit time.Duration         // of a join
}

// build makes the lab, and a mesh of the helpers in it, which the sites can join. The caller closes it.
func build(ctx context.Context, opts Options, n *lab.Network, sites ...string) (*Mesh, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	built, err := lab.Up(ctx, n, opts.Options)
	if err != nil {
		return nil, err
	}
	m := &Mesh{&world.World{Lab: built, Nodes: built, Exe: exe, Screen: screen.New(io.Discard, false)}, map[string]netip.Addr{}, opts.Logs, joinLimit}
	for _, name := range slices.Concat(helpers, sites) {
		m.Sites = append(m.Sites, &world.Site{Name: name})
	}
	if err := m.found(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Close ends the lab.
func (m *Mesh) Close() (err error) {
	if m.logs != "" {
		err = world.KeepLogs(m.Lab.Dir(), filepath.Join(m.logs, m.Lab.Name()))
	}
	return errors.Join(err, m.Lab.Close())
}

// keep copies what the nodes left to dir, before the lab is closed.
func (m *Mesh) keep(dir string) error {
	return os.CopyFS(dir, os.DirFS(filepath.Join(m.Lab.Dir(), "nodes")))
}

func (m *Mesh) found(ctx context.Context) error {
	err := m.Each(m.Sites, func(s *world.Site) error {
		_, err := m.Lab.Start(ctx, s.Name, "", nil)
		return err
	})
	if err != nil {
		return err
	}
	var e api.Enrolled
	if err := m.ctl(ctx, helpers[0], &e, "init", "--mesh", "grid", "--name", helpers[0]); err != nil {
		return err
	}
	m.addrs[helpers[0]], _ = world.IPv4Of(e.Node.Addrs)
	for _, h := range helpers[1:] {
		if err := m.join(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mesh) ctl(ctx context.Context, node string, doc any, args ...string) error {
	return m.Ctl(ctx, &world.Site{Name: node}, doc, args...)
}

// token makes one for the site.
func (m *Mesh) token(ctx context.Context, site string) (string, error) {
	var token api.CreatedToken
	err := m.ctl(ctx, helpers[0], &token, "token", "create", "--name", site)
	return token.Text, err
}

func (m *Mesh) join(ctx context.Context, site string) error {
	token, err := m.token(ctx, site)
	if err != nil {
		return err
	}
	return m.enter(ctx, site, token)
}

func (m *Mesh) enter(ctx context.Context, site, token string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.limit, fmt.Errorf("%s does not join within %s", site, m.limit))
	defer cancel()
	joined := &world.Site{Name: site}
	if _, err := m.Enter(ctx, joined, token); err != nil {
		return err
	}
	m.addrs[site], _ = world.IPv4Of(joined.Overlay)
	return nil
}

// enterTimed lets the site join with the token, and returns the seconds from the start of `meshctl join` until a member first
// answered its ping; each waits no longer than its limit.
func (m *Mesh) enterTimed(ctx context.Context, site, token, member string) (ping float64, err error) {
	pings := m.await(ctx, site, member, 2*m.limit)
	defer pings.Kill()
	if _, err := pings.Started(ctx); err != nil {
		return 0, err
	}
	began := flow.Monotonic()
	if err := m.enter(ctx, site, token); err != nil {
		return 0, err
	}
	return m.answered(ctx, pings, began, 2*m.limit)
}

// await pings a member from a site until it answers, or the limit is over.
func (m *Mesh) await(ctx context.Context, site, member string, limit time.Duration) *world.Program {
	return m.Launch(ctx, site, m.Exe, world.InsideVerb, "await", "--to", m.addrs[member].String(), "--limit", limit.String())
}

// answered waits for the answer and returns the seconds until it came, since a time of flow.Monotonic.
func (m *Mesh) answered(ctx context.Context, pings *world.Program, since, limit time.Duration) (float64, error) {
	var first struct {
		At time.Duration `json:"at_mono_ns"`
	}
	err := pings.Finish(ctx, limit, &first)
	return (first.At - since).Seconds(), err
}

// surveyed waits until the site knows its NAT, but not for ever: it may never.
func (m *Mesh) surveyed(ctx context.Context, site string) error {
	_, err := poll(ctx, surveyLimit, func() (bool, error) {
		var st api.Status
		if err := m.ctl(ctx, site, &st, "status"); err != nil {
			return false, err
		}
		return len(st.Uplinks) > 0 && !slices.ContainsFunc(st.Uplinks, func(u api.Uplink) bool {
			return u.NAT == "" || u.NAT == "unknown" || u.NAT == "absent" && u.NAT6 == "unknown"
		}), nil
	})
	return err
}

// links returns those between left and right, as each tells them.
func (m *Mesh) links(ctx context.Context) (of [2][]api.Link, err error) {
	ends := [2]string{left, right}
	var errs [2]error
	_ = m.Each([]*world.Site{{Name: left}, {Name: right}}, func(s *world.Site) error {
		k := slices.Index(ends[:], s.Name)
		var all api.Links
		errs[k] = m.Ctl(ctx, s, &all, "links")
		for _, l := range all.Links {
			if l.Peer == ends[1-k] {
				of[k] = append(of[k], l)
			}
		}
		return nil
	})
	return of, errors.Join(errs[:]...)
}

// A trace is what became of some pings from right to left.
type trace struct {
	Sent      int `json:"sent"`
	Answered  int `json:"answered"`
	Forwarded int `json:"forwarded"` // packets that the helpers forwarded meanwhile, of whatever kind
}

// way tells what the pings say. In transit each counts twice, as does its answer with every further helper; whatever else is
// forwarded, such as gossip, is less.
func (t trace) way() Way {
	switch {
	case 2*t.Answered < t.Sent:
		return None
	case t.Forwarded < t.Answered:
		return Direct
	default:
		return Transit
	}
}

// takes reports whether the pings went that way. Where TLS carries the links of a site, traffic is shared among those that
// lead to the other one and to helpers.
func (t trace) takes(way Way) bool {
	if way == Carrier {
		return t.way() != None
	}
	return t.way() == way
}

const (
	tracePings   = 6
	traceTimeout = 500 * time.Millisecond
)

// trace pings left from right and counts what the helpers forward.
func (m *Mesh) trace(ctx context.Context) (trace, error) {
	before, err := m.forwarded(ctx)
	if err != nil {
		return trace{}, err
	}
	out, err := m.Run(ctx, right, "", m.Exe, "flow", "ping", "--target", left+"="+m.addrs[left].String(),
		"--count", fmt.Sprint(tracePings), "--timeout", traceTimeout.String())
	if err != nil {
		return trace{}, err
	}
	var r flow.PingReport
	if err := json.Unmarshal(out, &r); err != nil {
		return trace{}, fmt.Errorf("read the report of ping: %w", err)
	}
	after, err := m.forwarded(ctx)
	t := trace{Sent: tracePings, Forwarded: after - before}
	if len(r.Cells) == 1 && r.Cells[0].ICMP != nil {
		t.Answered = r.Cells[0].ICMP.Received
	}
	return t, err
}

// forwarded counts the packets that the helpers have forwarded so far.
func (m *Mesh) forwarded(ctx context.Context) (sum int, err error) {
	for _, h := range helpers {
		var n int
		out, err := m.Run(ctx, h, "", m.Exe, world.InsideVerb, "forwarded")
		if err == nil {
			_, err = fmt.Sscan(strings.TrimSpace(string(out)), &n)
		}
		if err != nil {
			return 0, fmt.Errorf("count what %s forwards: %w", h, err)
		}
		sum += n
	}
	return sum, nil
}

// until traces until the traffic takes the way, and returns the last trace and whether it does.
func (m *Mesh) until(ctx context.Context, way Way, limit time.Duration) (t trace, ok bool, err error) {
	ok, err = poll(ctx, limit, func() (bool, error) {
		t, err = m.trace(ctx)
		return err == nil && t.takes(way), err
	})
	return t, ok, err
}

// poll asks until it is told yes, or the limit is over.
func poll(ctx context.Context, limit time.Duration, ask func() (bool, error)) (bool, error) {
	for deadline := time.Now().Add(limit); ; {
		yes, err := ask()
		if yes || err != nil {
			return yes, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		if err := world.Pause(ctx, pollEvery); err != nil {
			return false, err
		}
	}
}
