package world

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
	TalkLimit   = 60 * time.Second // for all pairs to talk
	healLimit   = 60 * time.Second // for everything to be as it was
)

// answering waits until all agents answer on their sockets.
func (w *World) answering(ctx context.Context) error {
	return w.Until(ctx, "meshd of all sites", answerLimit, func(ctx context.Context) (string, error) {
		err := w.Each(w.Sites, func(s *Site) error { return w.Ctl(ctx, s, new(api.Status), "status") })
		return OneLine(err), nil
	})
}

func OneLine(err error) string {
	if err == nil {
		return ""
	}
	return sentence(err.Error())
}

// found makes the mesh on the site.
func (w *World) found(ctx context.Context, s *Site) error {
	args := []string{"init", "--mesh", "demo", "--name", s.Name}
	for _, p := range s.LAN {
		args = append(args, "--prefix", p.String())
	}
	var e api.Enrolled
	if err := w.Ctl(ctx, s, &e, args...); err != nil {
		return err
	}
	s.Overlay = e.Node.Addrs
	return nil
}

// join brings a site into the mesh of another, by token, and returns the time from the start of `meshctl join` to the first
// ping that the other answered over the mesh.
func (w *World) join(ctx context.Context, s, through *Site) (time.Duration, error) {
	target, found := IPv4Of(through.Overlay)
	if !found {
		return 0, fmt.Errorf("%s has no IPv4 address in the mesh, only %v", through.Name, through.Overlay)
	}
	args := []string{"token", "create", "--name", s.Name}
	for _, p := range s.LAN {
		args = append(args, "--prefix", p.String())
	}
	var token api.CreatedToken
	if err := w.Ctl(ctx, through, &token, args...); err != nil {
		return 0, err
	}
	pings := w.Launch(ctx, s.Name, w.Exe, InsideVerb, "await", "--to", target.String(), "--limit", w.paced(joinLimit).String())
	defer pings.Kill()
	if _, err := pings.Started(ctx); err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, w.paced(joinLimit))
	defer cancel()
	began := flow.Monotonic()
	steps, err := w.Enter(limited, s, token.Text)
	if err != nil {
		return 0, err
	}
	var first arrival
	if err := pings.Finish(ctx, joinLimit, &first); err != nil {
		return 0, fmt.Errorf("%s has joined but does not reach %s: %w%s", s.Name, through.Name, err, lastStep(steps))
	}
	return first.At - began, nil
}

// Enter lets the site join with the token, notes its addresses and returns the transcript, which ends with the result.
func (w *World) Enter(ctx context.Context, s *Site, token string) ([]api.JoinStep, error) {
	out, err := w.Run(ctx, s.Name, token+"\n", "meshctl", "join", "-", "--json")
	if e, isExit := errors.AsType[*exitError](err); isExit {
		e.said = apiSentence(e.said)
	}
	steps, decodeErr := transcriptOf(out)
	if err == nil {
		err = decodeErr // a join that failed has no result
	}
	if err != nil {
		return steps, fmt.Errorf("join %s: %w%s", s.Name, err, lastStep(steps))
	}
	s.Overlay = steps[len(steps)-1].Result.Node.Addrs
	return steps, nil
}

// IPv4Of returns the first IPv4 address.
func IPv4Of(addrs []netip.Addr) (netip.Addr, bool) {
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

// JoinAll makes the mesh on the first site, brings the others into it one after the other, and waits until each knows what
// its uplinks are.
func (w *World) JoinAll(ctx context.Context) ([]Join, error) {
	if err := w.answering(ctx); err != nil {
		return nil, err
	}
	first := w.Sites[0]
	if err := w.found(ctx, first); err != nil {
		return nil, err
	}
	took := map[*Site]time.Duration{}
	for _, s := range w.Sites[1:] {
		w.Screen.Progress("%s joins", s.Name)
		t, err := w.join(ctx, s, first)
		if err != nil {
			return nil, err
		}
		took[s] = t
	}
	if err := w.facts(ctx); err != nil {
		return nil, err
	}
	joins := []Join{}
	for _, s := range w.Sites {
		joins = append(joins, Join{s.Name, took[s].Seconds(), s.Overlay, s.NAT()})
	}
	return joins, nil
}

// facts waits until each site knows what NAT its uplinks have, and notes its uplinks.
func (w *World) facts(ctx context.Context) error {
	return w.Until(ctx, "NAT kinds", TalkLimit, func(ctx context.Context) (string, error) {
		var missing []string
		err := w.Each(w.Sites, func(s *Site) error {
			var st api.Status
			if err := w.Ctl(ctx, s, &st, "status"); err != nil {
				return err
			}
			s.Uplinks = st.Uplinks
			return nil
		})
		for _, s := range w.Sites {
			if len(s.Uplinks) == 0 {
				missing = append(missing, s.Name+" has no uplink")
			}
			for _, u := range s.Uplinks {
				if kind := natOf(u); kind == "unknown" || kind == "" {
					missing = append(missing, s.Name+" does not know its NAT on "+u.Name)
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
	return []string{OneLine(err)}
}
