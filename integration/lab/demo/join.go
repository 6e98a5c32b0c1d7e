package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

// A Join is how a site came into the mesh.
type Join struct {
	Site    string       `json:"site"`
	Seconds float64      `json:"seconds"` // from the start of `meshctl join` to the first answered ping over the mesh; 0: made the mesh
	Addrs   []netip.Addr `json:"addrs"`
	NAT     string       `json:"nat"`
}

// Limits of the waits.
const (
	answerLimit = 20 * time.Second // for meshd to answer on its socket
	joinLimit   = 30 * time.Second // for a site to join and ping
	talkLimit   = 60 * time.Second // for all pairs to talk
	healLimit   = 60 * time.Second // for everything to be as it was
)

// answering waits until all agents answer on their sockets.
func (w *world) answering(ctx context.Context) error {
	return w.until(ctx, "meshd of all sites", answerLimit, func(ctx context.Context) (string, error) {
		err := w.each(w.sites, func(s *site) error { return w.ctl(ctx, s, new(api.Status), "status") })
		return oneLine(err), nil
	})
}

func oneLine(err error) string {
	if err == nil {
		return ""
	}
	return sentence(err.Error())
}

// found makes the mesh on the site.
func (w *world) found(ctx context.Context, s *site) error {
	args := []string{"init", "--mesh", "demo", "--name", s.name}
	for _, p := range s.lan {
		args = append(args, "--prefix", p.String())
	}
	var e api.Enrolled
	if err := w.ctl(ctx, s, &e, args...); err != nil {
		return err
	}
	s.overlay = e.Node.Addrs
	return nil
}

// join brings a site into the mesh of another, by token, and returns the time from the start of `meshctl join` to the first
// ping that the other answered over the mesh.
func (w *world) join(ctx context.Context, s, through *site) (time.Duration, error) {
	target, found := ipv4Of(through.overlay)
	if !found {
		return 0, fmt.Errorf("%s has no IPv4 address in the mesh, only %v", through.name, through.overlay)
	}
	args := []string{"token", "create", "--name", s.name}
	for _, p := range s.lan {
		args = append(args, "--prefix", p.String())
	}
	var token api.CreatedToken
	if err := w.ctl(ctx, through, &token, args...); err != nil {
		return 0, err
	}
	pings := w.launch(ctx, s.name, "", w.exe, insideVerb, "await", "--to", target.String(), "--limit", joinLimit.String())
	defer pings.kill()
	if _, err := pings.started(ctx); err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	began := flow.Monotonic()
	out, err := w.run(limited, s.name, token.Text+"\n", "meshctl", "join", "-", "--json")
	if e, isExit := errors.AsType[*exitError](err); isExit {
		e.said = apiSentence(e.said)
	}
	steps, decodeErr := transcriptOf(out)
	if err = errors.Join(err, decodeErr); err != nil {
		return 0, fmt.Errorf("join %s: %w%s", s.name, err, lastStep(steps))
	}
	result := steps[len(steps)-1].Result
	s.overlay = result.Node.Addrs
	var first arrival
	if err := pings.finish(ctx, joinLimit, &first); err != nil {
		return 0, fmt.Errorf("%s has joined but does not reach %s: %w%s", s.name, through.name, err, lastStep(steps))
	}
	return first.At - began, nil
}

func ipv4Of(addrs []netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(addrs, netip.Addr.Is4)
	if i < 0 {
		return netip.Addr{}, false
	}
	return addrs[i], true
}

// transcriptOf reads the transcript of a join. Without an error its last step has the result.
func transcriptOf(out []byte) ([]api.JoinStep, error) {
	var steps []api.JoinStep
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var s api.JoinStep
		if err := d.Decode(&s); err != nil {
			return steps, fmt.Errorf("read the transcript: %w", err)
		}
		steps = append(steps, s)
	}
	if len(steps) == 0 || steps[len(steps)-1].Result == nil {
		return steps, errors.New("the transcript ends without a result")
	}
	return steps, nil
}

// lastStep tells how far a join has come.
func lastStep(steps []api.JoinStep) string {
	if len(steps) == 0 {
		return ""
	}
	s := steps[len(steps)-1]
	return fmt.Sprintf(" (after %.2f s: %s %s)", s.ElapsedMs/1000, s.Kind, s.Sentence)
}

// joinAll is step 1.
func (d *demo) joinAll(ctx context.Context) error {
	d.screen.heading(1, "Join", fmt.Sprintf("`meshctl init` on %s; for each other site a token from there, and `meshctl join` on the site. "+
		"The seconds are from its start to the first ping through the mesh.", d.first.name))
	if err := d.found(ctx, d.first); err != nil {
		return err
	}
	took := map[*site]time.Duration{}
	for _, s := range d.sites[1:] {
		d.screen.progress("%s joins", s.name)
		t, err := d.join(ctx, s, d.first)
		if err != nil {
			return err
		}
		took[s] = t
	}
	if err := d.facts(ctx); err != nil {
		return err
	}
	for _, s := range d.sites {
		d.report.Joins = append(d.report.Joins, Join{s.name, took[s].Seconds(), s.overlay, s.nat()})
	}
	joinTable(d.report.Joins).print(d.screen)
	return nil
}

// facts waits until each site knows what NAT its uplinks have, and notes its uplinks.
func (d *demo) facts(ctx context.Context) error {
	return d.until(ctx, "NAT kinds", talkLimit, func(ctx context.Context) (string, error) {
		var missing []string
		err := d.each(d.sites, func(s *site) error {
			var st api.Status
			if err := d.ctl(ctx, s, &st, "status"); err != nil {
				return err
			}
			s.uplinks = st.Uplinks
			return nil
		})
		for _, s := range d.sites {
			if len(s.uplinks) == 0 {
				missing = append(missing, s.name+" has no uplink")
			}
			for _, u := range s.uplinks {
				if u.NAT == "unknown" || u.NAT == "" {
					missing = append(missing, s.name+" does not know its NAT on "+u.Name)
				}
			}
		}
		return strings.Join(append(missing, oneLineIf(err)...), ", "), nil
	})
}

func oneLineIf(err error) []string {
	if err == nil {
		return nil
	}
	return []string{oneLine(err)}
}

func joinTable(joins []Join) *table {
	t := &table{heads: []string{"SITE", ">SECONDS", "ADDRESS", "NAT"}}
	for _, j := range joins {
		seconds := "–"
		if j.Seconds > 0 {
			seconds = fmt.Sprintf("%.2f", j.Seconds)
		}
		var addrs []string
		for _, a := range j.Addrs {
			addrs = append(addrs, a.String())
		}
		t.add(j.Site, seconds, strings.Join(addrs, ", "), j.NAT)
	}
	return t
}
