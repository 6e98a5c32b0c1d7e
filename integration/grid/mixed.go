package grid

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
)

// mix is what the sites of a company may be behind: some in data centres, offices with a firewall or a router of their own,
// homes, a few on mobile networks, and a guest network. The helpers are two public sites more.
var mix = map[string]int{
	"public": 4, "firewall": 4, "easy": 9, "open": 1, "port": 2, "restricted": 1, "cone": 1, "cgn": 3, "symmetric": 2, "blocked": 1,
}

// Mixture tells the mix in words.
func Mixture() (string, error) {
	names, _, err := Kinds()
	var words []string
	for _, name := range names {
		n := mix[name]
		if name == "public" {
			n += len(helpers)
		}
		if n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, name))
		}
	}
	return strings.Join(words, ", "), err
}

// A Mixed is what became of a mesh of many sites.
type Mixed struct {
	Sites   int          `json:"sites"`
	Stopped string       `json:"stopped"`   // why there are no more; empty: these are all
	Joins   []float64    `json:"joins_s"`   // of each site, from its start of `meshctl join` to its first answered ping
	Settled float64      `json:"settled_s"` // from the last join until every pair that the mesh wants a link for had it or knew why not
	Open    int          `json:"open"`      // pairs that were not settled when patience was over
	Ways    map[Way]int  `json:"ways"`      // of the others
	Worse   []string     `json:"worse"`     // these pairs are worse than expected.txt promises
	Pairs   int          `json:"pairs"`     // of any two sites
	Reached int          `json:"reached"`   // of these, that ping each other
	Effort  api.Attempts `json:"effort"`    // of all attempts at all ends
	Promise map[Way]int  `json:"promise"`   // of all pairs of the whole mix, by expected.txt
}

// Decided counts the pairs that have a link, or know why they have none.
func (r Mixed) Decided() (n int) {
	for _, count := range r.Ways {
		n += count
	}
	return n
}

const (
	mixedJoin = time.Minute      // for a site to join such a mesh
	mixedSlow = 30 * time.Second // a join that takes longer is the last: the machine bears no more
	// mixedLimit is how long a mesh of many sites on few processors may take until it knows all its links.
	mixedLimit = 5 * time.Minute
	mixedEvery = 5 * time.Second // a look asks every site
)

// Mix joins the sites of the mix, one after the other, as many as the machine bears, and tells how their traffic travels.
// progress is told what happens.
func Mix(ctx context.Context, opts Options, progress func(format string, args ...any)) (r Mixed, err error) {
	names, _, err := Kinds()
	if err != nil {
		return r, err
	}
	sites, kindOf := mixedSites(names)
	order := slices.Sorted(maps.Keys(sites))
	shuffle := rand.New(rand.NewPCG(1, 1)) // any first sites of the order are a fair part of the mix
	shuffle.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	n := network(sites)
	for site := range kindOf { // slow probes: so many sites share few processors
		n.Nodes[site].Meshd = lab.Settings{"uplinks": []any{map[string]any{"interface": "isp1", "metered": true}}}
	}
	m, err := build(ctx, opts, n, order...)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	m.limit = mixedJoin
	all := m.Sites
	m.Sites = all[:len(helpers)]
	for i, site := range order {
		progress("site %d of %d joins: %s", len(helpers)+i+1, len(all), kindOf[site])
		token, err := m.token(ctx, site)
		if err != nil {
			r.Stopped = world.OneLine(err)
			break
		}
		s, err := m.enterTimed(ctx, site, token, helpers[0])
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		if err != nil {
			r.Stopped = world.OneLine(err)
			break
		}
		r.Joins, m.Sites = append(r.Joins, s), all[:len(helpers)+i+1]
		if s > mixedSlow.Seconds() {
			r.Stopped = fmt.Sprintf("the join of the last one took %.0f s", s)
			break
		}
		_ = m.surveyed(ctx, site) // a machine that is too busy shows below
	}
	r.Sites = len(m.Sites)
	since := time.Now()
	pairs := map[[2]string]verdict{}
	_, err = poll(ctx, mixedLimit, func() (bool, error) {
		links, err := m.allLinks(ctx)
		if err != nil {
			progress("%v", err)
			return false, world.Pause(ctx, mixedEvery)
		}
		r.Open, r.Effort = 0, api.Attempts{}
		now := time.Now()
		seen := map[[2]string]verdict{}
		for p, ends := range byPair(links) {
			seen[p] = judge(now, ends, pairs[p])
			if !seen[p].final {
				r.Open++
			}
			r.Effort = sum(r.Effort, effort(ends))
		}
		pairs = seen
		progress("%.0f s after the last join %d of %d links are not decided", now.Sub(since).Seconds(), r.Open, len(pairs))
		return r.Open == 0, world.Pause(ctx, mixedEvery)
	})
	if err != nil {
		return r, err
	}
	r.Settled = time.Since(since).Seconds()
	if err := r.sort(pairs, kindOf); err != nil {
		return r, err
	}
	progress("all ping each other")
	r.Pairs = r.Sites * (r.Sites - 1) / 2
	r.Reached, err = m.reached(ctx)
	return r, err
}

// mixedSites names the sites of the mix, and tells what is before each of them and the helpers.
// names are those of kinds, in that order.
func mixedSites(names []string) (sites map[string]kind, kindOf map[string]string) {
	sites, kindOf = map[string]kind{}, map[string]string{}
	for _, h := range helpers {
		kindOf[h] = "public"
	}
	for _, name := range names {
		for range mix[name] {
			site := fmt.Sprintf("s%02d", len(kindOf)+1)
			sites[site], kindOf[site] = kinds[name], name
		}
	}
	return sites, kindOf
}

// sort counts the pairs by their ways and compares them with what is expected.
func (r *Mixed) sort(pairs map[[2]string]verdict, kindOf map[string]string) error {
	cells, err := Expected()
	if err != nil {
		return err
	}
	expect := func(a, b string) Way {
		return cells[slices.IndexFunc(cells, func(c Cell) bool { return c.has(kindOf[a], kindOf[b]) })].Expect
	}
	r.Ways, r.Promise = map[Way]int{}, map[Way]int{}
	for a := range kindOf {
		for b := range kindOf {
			if a < b {
				r.Promise[expect(a, b)]++
			}
		}
	}
	for p, v := range pairs {
		if !v.final {
			continue
		}
		r.Ways[v.way]++
		if want := expect(p[0], p[1]); v.way.Worse(want) {
			r.Worse = append(r.Worse, fmt.Sprintf("%s~%s (%s, %s): %s, want %s; %s", kindOf[p[0]], kindOf[p[1]], p[0], p[1], v.way, want, v.why))
		}
	}
	slices.Sort(r.Worse)
	return nil
}

// allLinks asks every site for its links.
func (m *Mesh) allLinks(ctx context.Context) (map[string][]api.Link, error) {
	var mu sync.Mutex // guards links
	links := map[string][]api.Link{}
	err := m.Each(m.Sites, func(s *world.Site) error {
		var all api.Links
		err := m.Ctl(ctx, s, &all, "links")
		mu.Lock()
		defer mu.Unlock()
		links[s.Name] = all.Links
		return err
	})
	return links, err
}

// byPair gives both ends' links of each pair of which one end wants any, as far as both ends were asked.
func byPair(links map[string][]api.Link) map[[2]string][2][]api.Link {
	pairs := map[[2]string][2][]api.Link{}
	for site, list := range links {
		for _, l := range list {
			if _, asked := links[l.Peer]; !asked {
				continue
			}
			p, end := [2]string{site, l.Peer}, 0
			if l.Peer < site {
				p, end = [2]string{l.Peer, site}, 1
			}
			ends := pairs[p]
			ends[end] = append(ends[end], l)
			pairs[p] = ends
		}
	}
	return pairs
}

// reached counts the pairs of sites that ping each other, both ways.
func (m *Mesh) reached(ctx context.Context) (pairs int, err error) {
	var mu sync.Mutex // guards answers
	answers := map[[2]string]int{}
	there := map[string]bool{}
	for _, s := range m.Sites {
		there[s.Name] = true
	}
	err = m.Each(m.Sites, func(s *world.Site) error {
		argv := []string{m.Exe, "flow", "ping", "--count", fmt.Sprint(tracePings), "--timeout", traceTimeout.String()}
		for name, addr := range m.addrs {
			if name != s.Name && there[name] {
				argv = append(argv, "--target", name+"="+addr.String())
			}
		}
		out, err := m.Run(ctx, s.Name, "", argv...)
		if err != nil {
			return err
		}
		var r flow.PingReport
		if err := json.Unmarshal(out, &r); err != nil {
			return fmt.Errorf("read the report of ping: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, c := range r.Cells {
			if c.Reached {
				answers[[2]string{min(s.Name, c.Name), max(s.Name, c.Name)}]++
			}
		}
		return nil
	})
	for _, n := range answers {
		pairs += n / 2
	}
	return pairs, err
}
