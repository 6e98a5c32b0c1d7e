package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

// failoverMs is the gap that is promised when a path dies.
const failoverMs = 300

// failover is the claim on every event that takes a path away.
var failover = claim{limitMs: failoverMs, moves: true}

// cutSilently is step 3.
func (d *demo) cutSilently(ctx context.Context) error {
	d.screen.heading(3, "A link goes silent", "A router drops all packets between two sites whose traffic takes the tunnel between them. No carrier is lost, nobody is told.")
	a, b, err := d.direct(ctx)
	if err != nil {
		return err
	}
	row, heal, err := d.cutTunnel(ctx, a, b)
	if err != nil {
		return err
	}
	d.told(row)
	if err := heal(ctx); err != nil {
		return err
	}
	return d.untilHealthy(ctx, "the link is back", d.sites)
}

// direct chooses the pair whose tunnel is cut.
func (d *demo) direct(ctx context.Context) (a, b *site, err error) {
	routes := map[string][]api.Route{}
	err = d.until(ctx, "a pair with one direct tunnel", talkLimit, func(ctx context.Context) (string, error) {
		for _, s := range d.sites {
			var r api.Routes
			if err := d.ctl(ctx, s, &r, "routes"); err != nil {
				return oneLine(err), nil
			}
			routes[s.name] = r.Routes
		}
		var err error
		a, b, err = directPair(d.sites, routes)
		return oneLine(err), nil
	})
	return a, b, err
}

// cutTunnel cuts the tunnel that carries the flow from a to b, and nothing else. heal undoes it.
func (d *demo) cutTunnel(ctx context.Context, a, b *site) (row Row, heal func(context.Context) error, err error) {
	row, err = d.hit(ctx, strike{
		step: 3, a: a, b: b, claim: failover,
		act: func(ctx context.Context, ways [2]trace) (event string, at time.Duration, err error) {
			hop := ways[0][0]
			heal, at, err = d.silence(ctx, hop)
			return fmt.Sprintf("%s – %s silent", hop.Node, hop.Peer), at, err
		},
	})
	if err != nil && heal != nil {
		err = errors.Join(err, heal(ctx))
	}
	return row, heal, err
}

// dualHomed returns the first site with several uplinks that is not excluded.
func (d *demo) dualHomed(excluded ...string) (*site, error) {
	for _, s := range d.sites {
		if len(s.wan) > 1 && !slices.Contains(excluded, s.name) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no site with several uplinks is left to break one (without %s)", strings.Join(excluded, ", "))
}

// behindNAT returns the sites behind a NAT.
func (d *demo) behindNAT() (sites []*site) {
	for _, s := range d.sites {
		if !s.public() {
			sites = append(sites, s)
		}
	}
	return sites
}

// pullUplink is step 4.
func (d *demo) pullUplink(ctx context.Context) error {
	a, err := d.dualHomed()
	if err != nil {
		return err
	}
	b := d.sites[2] // far away: its delay shows
	d.screen.heading(4, "An ISP is unplugged", fmt.Sprintf("The uplink of %s that carries its flow to %s loses its carrier.", a.name, b.name))
	var link string
	row, err := d.hit(ctx, strike{
		step: 4, a: a, b: b, claim: failover,
		act: func(ctx context.Context, ways [2]trace) (string, time.Duration, error) {
			link = a.name + ":" + a.uplinkInterface(ways[0][0].Local)
			at := flow.Monotonic()
			return link + " unplugged", at, d.lab.Carrier(ctx, link, false)
		},
	})
	if err != nil {
		return err
	}
	d.told(row)
	if err := d.lab.Carrier(ctx, link, true); err != nil {
		return err
	}
	return d.untilHealthy(ctx, "the uplink is back", d.sites)
}

// transitPair returns the two sites between which no tunnel is possible.
func (d *demo) transitPair() (a, b *site, err error) {
	hidden := d.behindNAT()
	if len(hidden) < 2 {
		return nil, nil, fmt.Errorf("the demo needs two sites behind NATs, and %d say they are: is a NAT taken for public?", len(hidden))
	}
	return hidden[0], hidden[1], nil
}

// transitOf returns the site that forwards a flow.
func transitOf(way trace) (string, error) {
	t := way.transit()
	if len(t) == 0 {
		return "", errors.New("the flow crosses no other site")
	}
	return t[0], nil
}

// killTransit is step 5.
func (d *demo) killTransit(ctx context.Context) error {
	a, b, err := d.transitPair()
	if err != nil {
		return err
	}
	d.screen.heading(5, "A transit site dies", fmt.Sprintf("%s and %s have no tunnel to each other. The site that forwards between them falls silent: "+
		"uplinks cut, every process killed, the data plane too.", a.name, b.name))
	var dead *site
	row, err := d.hit(ctx, strike{
		step: 5, a: a, b: b, claim: failover,
		act: func(ctx context.Context, ways [2]trace) (string, time.Duration, error) {
			name, err := transitOf(ways[0])
			if err != nil {
				return "", 0, err
			}
			dead = d.byName[name]
			at := flow.Monotonic()
			// First the cut: what dies must have no chance to say so.
			for _, iface := range dead.wan {
				if err := d.lab.Cut(ctx, name+":"+iface, ""); err != nil {
					return "", 0, err
				}
			}
			return "transit " + name + " dead", at, d.lab.KillAll(ctx, name, 0)
		},
	})
	if err != nil {
		return err
	}
	d.told(row)
	for _, iface := range dead.wan {
		if err := d.lab.Heal(ctx, dead.name+":"+iface); err != nil {
			return err
		}
	}
	if _, err := d.lab.Start(ctx, dead.name, "", nil); err != nil {
		return err
	}
	return d.untilHealthy(ctx, dead.name+" is back", d.sites)
}

// away is how long a killed agent stays dead.
const away = time.Second

// killAgent is step 6.
func (d *demo) killAgent(ctx context.Context) error {
	a, b, err := d.transitPair()
	if err != nil {
		return err
	}
	d.screen.heading(6, "An agent is killed under traffic", fmt.Sprintf("SIGKILL to the meshd of the site that forwards between %s and %s; its data plane lives. "+
		"It is started again after %s.", a.name, b.name, away))
	row, err := d.hit(ctx, strike{
		step: 6, a: a, b: b, claim: claim{lossless: true},
		act: func(ctx context.Context, ways [2]trace) (string, time.Duration, error) {
			name, err := transitOf(ways[0])
			if err != nil {
				return "", 0, err
			}
			at := flow.Monotonic()
			if err := d.lab.Kill(ctx, name, "", 0); err != nil {
				return "", 0, err
			}
			if err := pause(ctx, away); err != nil {
				return "", 0, err
			}
			if _, err := d.lab.Start(ctx, name, "", nil); err != nil {
				return "", 0, err
			}
			return "agent of " + name + " restarted", at, d.untilHealthy(ctx, name+" is back", []*site{d.byName[name]})
		},
	})
	if err != nil {
		return err
	}
	d.told(row)
	return d.untilHealthy(ctx, "all sites well", d.sites)
}

// without is how long traffic is watched after the voters' agents died.
const without = 4 * time.Second

// killVoters is step 7.
func (d *demo) killVoters(ctx context.Context) error {
	var nodes api.Nodes
	if err := d.ctl(ctx, d.first, &nodes, "nodes"); err != nil {
		return err
	}
	dead := votersOf(nodes)
	a, err := d.dualHomed(dead...)
	if err != nil {
		return err
	}
	b, err := d.far(dead, a)
	if err != nil {
		return err
	}
	d.screen.heading(7, "All voters are dead", fmt.Sprintf("SIGKILL to the meshd of %s. Traffic between %s and %s is watched for %s; then the uplink of %s that carries it "+
		"goes silent. Then the voters come back.", strings.Join(dead, ", "), a.name, b.name, without, a.name))
	row, err := d.hit(ctx, strike{
		step: 7, a: a, b: b, claim: claim{lossless: true}, linger: without,
		act: func(ctx context.Context, _ [2]trace) (string, time.Duration, error) {
			at := flow.Monotonic()
			for _, name := range dead {
				if err := d.lab.Kill(ctx, name, "", 0); err != nil {
					return "", 0, err
				}
			}
			return "all voters killed", at, nil
		},
	})
	if err != nil {
		return err
	}
	d.told(row)
	var link string
	row, err = d.hit(ctx, strike{
		step: 7, a: a, b: b, claim: failover,
		act: func(ctx context.Context, ways [2]trace) (string, time.Duration, error) {
			link = a.name + ":" + a.uplinkInterface(ways[0][0].Local)
			at := flow.Monotonic()
			return link + " silent, no voters", at, d.lab.Cut(ctx, link, "")
		},
	})
	if err != nil {
		return err
	}
	d.told(row)
	for _, name := range dead {
		if _, err := d.lab.Start(ctx, name, "", nil); err != nil {
			return err
		}
	}
	if err := d.lab.Heal(ctx, link); err != nil {
		return err
	}
	return d.untilHealthy(ctx, "a leader, and all sites well", d.sites)
}

// far returns a site with a living agent to talk to, other than a.
func (d *demo) far(dead []string, a *site) (*site, error) {
	for _, s := range d.sites {
		if s != a && !slices.Contains(dead, s.name) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("besides %s every site is a voter: %s", a.name, strings.Join(dead, ", "))
}
