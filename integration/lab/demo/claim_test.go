package demo

import (
	"errors"
	"slices"
	"testing"

	"guywire/integration/lab/world"
)

func TestVerdict(t *testing.T) {
	moved := world.Felt{Sent: 1000, Lost: 40, Before: "a → b", After: "a → c → b"}
	with := func(r world.Felt, change func(*world.Felt)) world.Felt {
		change(&r)
		return r
	}
	for name, c := range map[string]struct {
		row   world.Felt
		claim claim
		want  string
	}{
		"good":                {with(moved, func(r *world.Felt) { r.GapMs = 80 }), silentDeath, verdictOK},
		"hit nothing":         {with(moved, func(r *world.Felt) { r.Lost = 0 }), silentDeath, verdictMissed},
		"over the promise":    {with(moved, func(r *world.Felt) { r.GapMs = 151 }), silentDeath, verdictSlow},
		"far over":            {with(moved, func(r *world.Felt) { r.GapMs = 1001 }), silentDeath, verdictFail},
		"not moved":           {with(moved, func(r *world.Felt) { r.After = r.Before }), silentDeath, verdictFail},
		"moved back only":     {with(moved, func(r *world.Felt) { r.After, r.BackAfter = r.Before, "b → c → a" }), silentDeath, verdictOK},
		"astray":              {with(moved, func(r *world.Felt) { r.Astray = "flow is lost" }), silentDeath, verdictFail},
		"endless":             {with(moved, func(r *world.Felt) { r.Open = true }), silentDeath, verdictFail},
		"nothing sent":        {with(moved, func(r *world.Felt) { r.Sent = 0 }), silentDeath, verdictFail},
		"one lost":            {with(moved, func(r *world.Felt) { r.Lost = 1 }), lossless, verdictFail},
		"none lost":           {with(moved, func(r *world.Felt) { r.Lost = 0 }), lossless, verdictOK},
		"a wait but no loss":  {with(moved, func(r *world.Felt) { r.GapMs, r.Lost = 400, 0 }), lossless, verdictOK},
		"too long without it": {with(moved, func(r *world.Felt) { r.GapMs, r.Lost = 1200, 0 }), lossless, verdictFail},
	} {
		if got, why := verdict(c.row, c.claim); got != c.want || (got == verdictOK) != (why == "") {
			t.Errorf("%s: %s (%s), want %s", name, got, why, c.want)
		}
	}
}

func TestConcerned(t *testing.T) {
	var sites []*world.Site
	for _, name := range []string{"fra", "lon", "nyc", "sto", "mad"} {
		sites = append(sites, &world.Site{Name: name})
	}
	names := func(sites []*world.Site) (out []string) {
		for _, s := range sites {
			out = append(out, s.Name)
		}
		return out
	}
	for _, c := range []struct {
		rows []Row
		err  error
		want []string
	}{
		{nil, errors.New("fra→lon is silent, friday too"), []string{"fra", "lon"}},
		{[]Row{{Felt: world.Felt{Sites: []string{"mad", "nyc"}}}}, nil, []string{"nyc", "mad"}},
		{nil, errors.New("nothing is known"), names(sites)},
	} {
		if got := names(concerned(sites, c.rows, c.err)); !slices.Equal(got, c.want) {
			t.Errorf("%v, %v: got %v, want %v", c.rows, c.err, got, c.want)
		}
	}
}
