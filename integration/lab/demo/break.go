package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// cutSilently is step 3.
func (d *demo) cutSilently(ctx context.Context) error {
	if len(d.Sites) < 3 {
		return fmt.Errorf("a way round a tunnel needs a third site: %w", errTooFew)
	}
	d.Screen.Heading(3, "A link goes silent", "A router drops all packets between two sites whose traffic takes the tunnel between them. No carrier is lost, nobody is told.")
	a, b, err := d.DirectPair(ctx)
	if err != nil {
		return err
	}
	row, heal, err := d.CutTunnel(ctx, a, b, 0)
	if err != nil {
		return err
	}
	d.told(silentDeath.judged(3, row))
	if err := heal(ctx); err != nil {
		return err
	}
	return d.UntilHealthy(ctx, "the link is back", d.Sites)
}

// dualHomed returns the first site with several uplinks that is not excluded.
func (d *demo) dualHomed(excluded ...string) (*world.Site, error) {
	for _, s := range d.Sites {
		if len(s.WAN) > 1 && !slices.Contains(excluded, s.Name) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no site with several uplinks is left to break one (without %s): %w", strings.Join(excluded, ", "), errTooFew)
}

// behindNAT returns the sites behind a NAT.
func (d *demo) behindNAT() (sites []*world.Site) {
	for _, s := range d.Sites {
		if !s.Public() {
			sites = append(sites, s)
		}
	}
	return sites
}

// lastPublic returns the public site that joined last, other than a.
func (d *demo) lastPublic(a *world.Site) (*world.Site, error) {
	for _, s := range slices.Backward(d.Sites) {
		if s != a && s.Public() && len(s.WAN) == 1 {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no site besides %s is public: %w", a.Name, errTooFew)
}

// pullUplink is step 4.
func (d *demo) pullUplink(ctx context.Context) error {
	a, err := d.dualHomed()
	if err != nil {
		return err
	}
	b, err := d.lastPublic(a) // far away: its delay shows
	if err != nil {
		return err
	}
	d.Screen.Heading(4, "An ISP is unplugged", fmt.Sprintf("The uplink of %s that carries its flow to %s loses its carrier.", a.Name, b.Name))
	var link string
	row, err := d.Hit(ctx, world.Strike{
		A: a, B: b,
		Act: func(ctx context.Context, ways [2]world.Trace) (string, time.Duration, error) {
			link = a.Name + ":" + a.UplinkInterface(ways[0][0].Local)
			at := flow.Monotonic()
			return link + " unplugged", at, d.Nodes.Carrier(ctx, link, false)
		},
	})
	if err != nil {
		return err
	}
	d.told(carrierLost.judged(4, row))
	if err := d.Nodes.Carrier(ctx, link, true); err != nil {
		return err
	}
	return d.UntilHealthy(ctx, "the uplink is back", d.Sites)
}

// transitPair returns the two sites between which no tunnel is possible.
func (d *demo) transitPair() (a, b *world.Site, err error) {
	hidden := d.behindNAT()
	if len(hidden) < 2 {
		return nil, nil, fmt.Errorf("the demo needs two sites behind NATs, and %d say they are: is a NAT taken for public? Or %w", len(hidden), errTooFew)
	}
	return hidden[0], hidden[1], nil
}

// transitOf returns the site that forwards a flow.
func transitOf(way world.Trace) (string, error) {
	t := way.Transit()
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
	d.Screen.Heading(5, "A transit site dies", fmt.Sprintf("%s and %s have no tunnel to each other. The site that forwards between them falls silent: "+
		"uplinks cut, every process killed, the data plane too.", a.Name, b.Name))
	var dead *world.Site
	row, err := d.Hit(ctx, world.Strike{
		A: a, B: b,
		Act: func(ctx context.Context, ways [2]world.Trace) (string, time.Duration, error) {
			name, err := transitOf(ways[0])
			if err != nil {
				return "", 0, err
			}
			dead = d.ByName[name]
			at := flow.Monotonic()
			// First the cut: what dies must have no chance to say so.
			for _, iface := range dead.WAN {
				if err := d.Nodes.Cut(ctx, name+":"+iface, ""); err != nil {
					return "", 0, err
				}
			}
			return "transit " + name + " dead", at, d.Nodes.KillAll(ctx, name, 0)
		},
	})
	if err != nil {
		return err
	}
	d.told(silentDeath.judged(5, row))
	for _, iface := range dead.WAN {
		if err := d.Nodes.Heal(ctx, dead.Name+":"+iface); err != nil {
			return err
		}
	}
	if _, err := d.Nodes.Start(ctx, dead.Name, "", nil); err != nil {
		return err
	}
	return d.UntilHealthy(ctx, dead.Name+" is back", d.Sites)
}

// away is how long a killed agent stays dead.
const away = time.Second

// killAgent is step 6.
func (d *demo) killAgent(ctx context.Context) error {
	a, b, err := d.transitPair()
	if err != nil {
		return err
	}
	d.Screen.Heading(6, "An agent is killed under traffic", fmt.Sprintf("SIGKILL to the meshd of the site that forwards between %s and %s; its data plane lives. "+
		"It is started again after %s.", a.Name, b.Name, away))
	row, err := d.Hit(ctx, world.Strike{
		A: a, B: b,
		Act: func(ctx context.Context, ways [2]world.Trace) (string, time.Duration, error) {
			name, err := transitOf(ways[0])
			if err != nil {
				return "", 0, err
			}
			at := flow.Monotonic()
			if err := d.Nodes.Kill(ctx, name, "", 0); err != nil {
				return "", 0, err
			}
			if err := world.Pause(ctx, away); err != nil {
				return "", 0, err
			}
			if _, err := d.Nodes.Start(ctx, name, "", nil); err != nil {
				return "", 0, err
			}
			return "agent of " + name + " restarted", at, d.UntilHealthy(ctx, name+" is back", []*world.Site{d.ByName[name]})
		},
	})
	if err != nil {
		return err
	}
	d.told(lossless.judged(6, row))
	return d.UntilHealthy(ctx, "all sites well", d.Sites)
}

// without is how long traffic is watched after the voters' agents died.
const without = 4 * time.Second

// killVoters is step 7.
func (d *demo) killVoters(ctx context.Context) error {
	var nodes api.Nodes
	if err := d.Ctl(ctx, d.Sites[0], &nodes, "nodes"); err != nil {
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
	d.Screen.Heading(7, "All voters are dead", fmt.Sprintf("SIGKILL to the meshd of %s. Traffic between %s and %s is watched for %s; then the uplink of %s that carries it "+
		"goes silent. Then the voters come back.", strings.Join(dead, ", "), a.Name, b.Name, without, a.Name))
	row, err := d.Hit(ctx, world.Strike{
		A: a, B: b, Linger: without,
		Act: func(ctx context.Context, _ [2]world.Trace) (string, time.Duration, error) {
			at := flow.Monotonic()
			for _, name := range dead {
				if err := d.Nodes.Kill(ctx, name, "", 0); err != nil {
					return "", 0, err
				}
			}
			return "all voters killed", at, nil
		},
	})
	if err != nil {
		return err
	}
	d.told(lossless.judged(7, row))
	var link string
	row, err = d.Hit(ctx, world.Strike{
		A: a, B: b,
		Act: func(ctx context.Context, ways [2]world.Trace) (string, time.Duration, error) {
			link = a.Name + ":" + a.UplinkInterface(ways[0][0].Local)
			at := flow.Monotonic()
			return link + " silent, no voters", at, d.Nodes.Cut(ctx, link, "")
		},
	})
	if err != nil {
		return err
	}
	d.told(silentDeath.judged(7, row))
	for _, name := range dead {
		if _, err := d.Nodes.Start(ctx, name, "", nil); err != nil {
			return err
		}
	}
	if err := d.Nodes.Heal(ctx, link); err != nil {
		return err
	}
	return d.UntilHealthy(ctx, "a leader, and all sites well", d.Sites)
}

// far returns a site with a living agent to talk to, other than a.
func (d *demo) far(dead []string, a *world.Site) (*world.Site, error) {
	for _, s := range d.Sites {
		if s != a && !slices.Contains(dead, s.Name) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("besides %s every site is a voter (%s): %w", a.Name, strings.Join(dead, ", "), errTooFew)
}
