package model

import (
	"guywire/mesh"
	"guywire/routing"
)

// shortest replaces a plan by plain shortest paths over the router's
// database, one next hop each, with every filter open.
func (n *node) shortest(p *plan) {
	w := n.w
	var dist [maxNodes][maxNodes]mesh.Cost // and at first the edges
	for i := range dist {
		for j := range dist {
			dist[i][j] = mesh.Infinite
		}
		dist[i][i] = 0
	}
	origins := make([]set, len(w.space.prefixes))
	for i := range w.nodes {
		origins[i] = set(0).with(i)
	}
	for _, s := range n.router.Announcements() {
		l, err := s.LSA()
		if err != nil {
			continue
		}
		from := w.number[l.Origin]
		for _, a := range l.Adjacencies {
			dist[from][w.number[a.Peer]] = a.Cost
			if a.Drain {
				dist[from][w.number[a.Peer]] = min(a.Cost.Add(routing.DrainPenalty), mesh.Infinite-1)
			}
		}
		for _, prefix := range l.Prefixes {
			if i := w.space.index[prefix]; w.history[n.log][i].has(from) {
				origins[i] = origins[i].with(from)
			}
		}
	}
	for i := range dist {
		for j := range i {
			if dist[i][j] == mesh.Infinite || dist[j][i] == mesh.Infinite {
				dist[i][j], dist[j][i] = mesh.Infinite, mesh.Infinite
			}
		}
	}
	edges := dist[n.i]
	for k := range dist {
		for i := range dist {
			for j := range dist {
				dist[i][j] = min(dist[i][j], dist[i][k].Add(dist[k][j]))
			}
		}
	}
	p.want.has, p.want.admits = 0, 0
	for _, e := range n.ends {
		p.want.admits = p.want.admits.with(e.peer.i)
	}
	for i, from := range origins {
		best := mesh.Infinite
		p.want.legs[i] = 0
		for o := range from.all {
			for _, e := range n.ends {
				if k := e.peer.i; e.up && edges[k].Add(dist[k][o]) < best {
					best = edges[k].Add(dist[k][o])
					p.want.legs[i] = set(0).with(k)
				}
			}
		}
		if best < mesh.Infinite && !p.want.local.has(i) {
			p.want.has = p.want.has.with(i)
		} else {
			p.want.legs[i] = 0
		}
	}
}
