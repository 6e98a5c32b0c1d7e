package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

const (
	calmDown  = 6 * time.Minute // before the count: coordinates settle in five
	countIdle = 30 * time.Second
	// What UDP and IPv4 add to a packet of WireGuard, and Ethernet to that, in bits.
	outerBits, frameBits = 8 * (8 + 20), 8 * 14
	// The targets, in kbit/s.
	idleLink, idleNode = 2, 8
)

// idle counts what a mesh without traffic sends.
func (b *bench) idle(ctx context.Context) (err error) {
	b.heading("Five sites, a link between each two, no traffic: what is sent in %s, %s after the mesh was complete.", countIdle, calmDown)
	n, err := lab.Load(fiveSites)
	if err != nil {
		return err
	}
	w, err := b.mesh(ctx, "idle", n, fiveOrder...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(w)) }()
	b.screen.Progress("until all is quiet")
	if err := world.Pause(ctx, calmDown); err != nil {
		return err
	}
	var members api.Nodes
	if err := w.Ctl(ctx, w.Sites[0], &members, "nodes"); err != nil {
		return err
	}
	voter := map[string]bool{}
	for _, m := range members.Nodes {
		voter[m.Name] = m.Voter
	}
	b.screen.Progress("counting")
	before, began := sentBy(ctx, w), time.Now()
	carried, err := w.Rates(ctx, countIdle)
	if err != nil {
		return err
	}
	after, seconds := sentBy(ctx, w), time.Since(began).Seconds()
	// Bits and packets a second in one direction of a link, summed over them:
	// voters keep the log together, over their tunnels or beside them.
	var ordinary, voters struct{ links, packets, bits float64 }
	var onUplinks float64
	for _, s := range w.Sites {
		for _, l := range w.Links[s.Name] {
			sum := &ordinary
			if voter[s.Name] && voter[l.Peer] {
				sum = &voters
			}
			packets := carried[s.Name][l.Device].TX
			sum.links++
			sum.packets += packets
			sum.bits += float64(8*(after[s.Name+" "+l.Device]-before[s.Name+" "+l.Device]))/seconds + outerBits*packets
		}
		for _, name := range s.WAN {
			onUplinks += carried[s.Name][name].TXBits
		}
	}
	if ordinary.links == 0 || voters.links == 0 {
		return fmt.Errorf("%.0f directions of links are between voters, %.0f are not; there must be both", voters.links, ordinary.links)
	}
	nodes := float64(len(w.Sites))
	beside := onUplinks - voters.bits - ordinary.bits - frameBits*(voters.packets+ordinary.packets)
	b.tell(
		figure{What: "a link, each direction", Value: ordinary.bits / ordinary.links / 1000, Unit: "kbit/s"}.most(idleLink),
		figure{What: "packets on it", Value: ordinary.packets / ordinary.links, Unit: "/s"},
		figure{What: "a link between two voters, each direction", Value: voters.bits / voters.links / 1000, Unit: "kbit/s"},
		figure{What: "packets on it", Value: voters.packets / voters.links, Unit: "/s"},
		figure{What: "a node, beside its tunnels", Value: max(beside, 0) / nodes / 1000, Unit: "kbit/s"}.most(idleNode),
		figure{What: "a node, all that it sends", Value: onUplinks / nodes / 1000, Unit: "kbit/s"},
	)
	return nil
}

// sentBy gives what each tunnel has sent, in bytes of WireGuard's packets, by site and device.
func sentBy(ctx context.Context, w *world.World) map[string]uint64 {
	w.Look(ctx)
	sent := map[string]uint64{}
	for site, links := range w.Links {
		for _, l := range links {
			sent[site+" "+l.Device] += l.TxBytes
		}
	}
	return sent
}
