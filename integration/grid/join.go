package grid

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Kinds returns the kinds of network that a site can be behind alone, in the order of expected.txt, and what they are.
func Kinds() (names []string, says map[string]string, err error) {
	cells, err := Expected()
	says = map[string]string{}
	for _, c := range cells {
		if k := kinds[c.Left]; c.Left == c.Right && !k.shared {
			names, says[c.Left] = append(names, c.Left), k.says
		}
	}
	return names, says, err
}

// Joins lets that many sites, each behind a network of the kind, join a mesh one after the other, and returns the seconds
// that each took from the start of `meshctl join` until a member of the mesh answered its ping.
func Joins(ctx context.Context, opts Options, name string, times int) (seconds []float64, err error) {
	k, known := kinds[name]
	if !known {
		return nil, fmt.Errorf("there is no kind of network %q", name)
	}
	sites := map[string]kind{}
	for i := range times {
		sites[fmt.Sprintf("site%d", i+1)] = k
	}
	order := slices.Sorted(maps.Keys(sites))
	m, err := build(ctx, opts, network(sites), order...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for _, site := range order {
		token, err := m.token(ctx, site)
		if err != nil {
			return seconds, err
		}
		s, err := m.enterTimed(ctx, site, token, helpers[0])
		if err != nil {
			return seconds, err
		}
		if err := m.surveyed(ctx, site); err != nil {
			return seconds, err
		}
		seconds = append(seconds, s)
	}
	return seconds, nil
}
