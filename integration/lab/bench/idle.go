package bench

import (
	"context"
	"errors"
	"strings"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/world"
	"guywire/mesh"
)

const (
	calmDown  = 30 * time.Second // before the count
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
	b.screen.Progress("counting")
	before, began := sentBy(ctx, w), time.Now()
	carried, err := w.Rates(ctx, countIdle)
	if err != nil {
		return err
	}
	after, seconds := sentBy(ctx, w), time.Since(began).Seconds()
	var links, packets, inTunnels, onUplinks float64
	for _, s := range w.Sites {
		for name, r := range carried[s.Name] {
			if strings.HasPrefix(name, mesh.InterfacePrefix) {
				links, packets = links+1, packets+r.TX
			}
		}
		for _, name := range s.WAN {
			onUplinks += carried[s.Name][name].TXBits
		}
		inTunnels += float64(8*(after[s.Name]-before[s.Name])) / seconds
	}
	inTunnels += outerBits * packets
	if links == 0 {
		return errors.New("no site has a tunnel")
	}
	nodes := float64(len(w.Sites))
	b.tell(
		figure{What: "a link, each direction", Value: inTunnels / links / 1000, Unit: "kbit/s"}.most(idleLink),
		figure{What: "packets on a link, each direction", Value: packets / links, Unit: "/s"},
		figure{What: "a node, beside its tunnels", Value: max(onUplinks-inTunnels-frameBits*packets, 0) / nodes / 1000, Unit: "kbit/s"}.most(idleNode),
		figure{What: "a node, all that it sends", Value: onUplinks / nodes / 1000, Unit: "kbit/s"},
	)
	return nil
}

// sentBy asks each site what its tunnels have sent, in bytes of WireGuard's packets.
func sentBy(ctx context.Context, w *world.World) map[string]uint64 {
	w.Look(ctx)
	sent := map[string]uint64{}
	for site, links := range w.Links {
		for _, l := range links {
			sent[site] += l.TxBytes
		}
	}
	return sent
}
