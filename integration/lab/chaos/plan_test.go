package chaos

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func someTargets() targets {
	return targets{
		cables:  []cable{{"a:isp1", [2]string{"a", "r"}}, {"b:isp1", [2]string{"b", "r"}}, {"r-s", [2]string{"r", "s"}}},
		uplinks: []string{"a:isp1", "b:isp1"},
		paths:   []string{"a:isp1 – b:isp1"},
		sites:   []string{"a", "b"},
	}
}

func TestPlan(t *testing.T) {
	const span = 5 * time.Minute
	faults := plan(7, span, someTargets())
	if again := plan(7, span, someTargets()); !cmp.Equal(faults, again, cmp.AllowUnexported(fault{})) {
		t.Error("equal seeds give different plans")
	}
	if other := plan(8, span, someTargets()); cmp.Equal(faults, other, cmp.AllowUnexported(fault{})) {
		t.Error("different seeds give equal plans")
	}
	seen := map[kind]bool{}
	for i, f := range faults {
		seen[f.kind] = true
		if f.at < firstFault || f.span < shortestFault || f.at+f.span > span {
			t.Errorf("%s, within %v", f, span)
		}
		if f.target == "" || (f.from != "") != (f.kind == cutOneWay) || (f.bad.Loss > 0 || f.bad.Delay > 0) != (f.kind == impair) {
			t.Errorf("%+v", f)
		}
		at := 1
		for _, o := range faults[:i] {
			if o.at+o.span < f.at {
				continue
			}
			at++
			if o.target == f.target {
				t.Errorf("%s while %s", f, o)
			}
		}
		if at > together {
			t.Errorf("%d faults at %v", at, f.at)
		}
	}
	if len(seen) != int(kinds) {
		t.Errorf("of %d kinds of fault only %v in %v", kinds, seen, span)
	}
}
