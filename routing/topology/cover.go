package topology

// destinations is how many nodes stand for all when next hops are counted: all
// of a small mesh, a sample by hash of a large one.
const destinations = 128

// enough is how many next hops a node wants towards each destination.
const enough = 2

// cover counts next hops: towards each destination, the neighbours that are
// nearer to it than the node itself (RFC 5286 inequality 2). Distances are those
// of the direct paths. Those of the graph are about a tenth longer and would
// count a little better, but a link anywhere would change them everywhere, and
// with them the choice of other links: a node that joins would move hundreds.
type cover struct {
	b        *builder
	to       []int      // destinations
	distance [][]uint32 // by node, by destination, µs
	hops     [][]uint8  // by node, by destination
}

func (b *builder) newCover() *cover {
	c := &cover{b: b, to: b.order[:min(destinations, len(b.order))]}
	c.distance = make([][]uint32, len(b.nodes))
	c.hops = make([][]uint8, len(b.nodes))
	for i := range b.nodes {
		c.distance[i] = make([]uint32, len(c.to))
		c.hops[i] = make([]uint8, len(c.to))
	}
	row := make([]uint32, len(b.nodes))
	for k, d := range c.to {
		b.distances(d, row)
		row[d] = 0
		for i := range b.nodes {
			c.distance[i][k] = row[i]
		}
	}
	for i, list := range b.adj {
		for _, h := range list {
			c.count(i, int(h.to))
		}
	}
	return c
}

// leads reports whether packets from i for destination k may go over j.
func (c *cover) leads(i, j, k int) bool {
	return c.distance[j][k] < c.distance[i][k] && c.distance[i][k] != unknown && (c.b.nodes[j].Transit || c.to[k] == j)
}

// count takes note of a link between i and j, as far as it serves i.
func (c *cover) count(i, j int) {
	for k := range c.to {
		if c.leads(i, j, k) && c.hops[i][k] < enough {
			c.hops[i][k]++
		}
	}
}

// gaps is the number of destinations towards which i has too few next hops.
func (c *cover) gaps(i int) int {
	n := 0
	for k, hops := range c.hops[i] {
		if c.b.placed[i] && hops < enough && c.distance[i][k] != unknown && c.to[k] != i {
			n++
		}
	}
	return n
}

// gain is the number of those towards which j would be another.
func (c *cover) gain(i, j int) int {
	n := 0
	for k, hops := range c.hops[i] {
		if hops < enough && c.leads(i, j, k) {
			n++
		}
	}
	return n
}

// fill adds links to nodes that have fewer than minDegree, or a single next hop
// towards too many destinations: each time, of all that a node wished for and
// did not get, the one that closes most gaps (in the sense of RFC 6571 section 7).
func (b *builder) fill(wishes []wish) {
	c := b.newCover()
	for _, i := range b.order {
		for added := 0; b.room(i); added++ {
			best, most := -1, 0
			if len(b.adj[i]) < minDegree {
				most = -1 // any link will do
			} else if added >= b.fills || c.gaps(i)*100 <= b.gaps*len(c.to) {
				break
			}
			for _, list := range append(wishes[i].strata, wishes[i].near) {
				for _, to := range list {
					j := int(to)
					if b.shut.has(i, j) || !b.room(j) {
						continue
					}
					if gain := c.gain(i, j); gain > most {
						best, most = j, gain
					}
				}
			}
			if best < 0 {
				break
			}
			b.link(i, best, ByFill)
			c.count(i, best)
			c.count(best, i)
		}
	}
}
