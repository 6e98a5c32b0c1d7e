package grid

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Way is how the traffic of two sites travels.
type Way string

// The ways, from the best to the worst.
const (
	Direct  Way = "direct"  // by a link between the two
	Carrier Way = "carrier" // by a link between the two that TLS carries
	Transit Way = "transit" // through other sites
	None    Way = "none"    // not at all
)

var order = []Way{Direct, Carrier, Transit, None}

// Worse reports whether w is worse than other.
func (w Way) Worse(other Way) bool { return slices.Index(order, w) > slices.Index(order, other) }

// A Cell is a pair of sites by their kinds, and what it should get. Kinds that are one box for both sites are in the pair
// with themselves only.
type Cell struct {
	Left   string `json:"left"`
	Right  string `json:"right"` // joins second
	Expect Way    `json:"expect"`
	Test   bool   `json:"test"` // of the share that `make test` measures
}

func (c Cell) String() string { return c.Left + "~" + c.Right }

//go:embed expected.txt
var expected string

// Expected returns all cells, in the order of the file.
func Expected() ([]Cell, error) { return parse(expected) }

// Choose returns the cells that a regular expression matches as a whole, written as in easy~port; or, if it is empty, the
// share of `make test`.
func Choose(pattern string) ([]Cell, error) {
	cells, err := Expected()
	if err != nil {
		return nil, err
	}
	matches, err := regexp.Compile("^(?:" + pattern + ")$")
	if err != nil {
		return nil, fmt.Errorf("choose pairs of networks: %w", err)
	}
	cells = slices.DeleteFunc(cells, func(c Cell) bool {
		return pattern == "" && !c.Test || pattern != "" && !matches.MatchString(c.String())
	})
	if len(cells) == 0 {
		return nil, fmt.Errorf("no pair of networks is called %q; they are called as in easy~port", pattern)
	}
	return cells, nil
}

func parse(text string) ([]Cell, error) {
	var cells []Cell
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		fail := func(format string, args ...any) ([]Cell, error) {
			return nil, fmt.Errorf("expected.txt, line %d: %s", i+1, fmt.Sprintf(format, args...))
		}
		if len(f) < 3 || len(f) > 4 || len(f) == 4 && f[3] != "test" {
			return fail("write two kinds, a way, and perhaps test")
		}
		c := Cell{Left: f[0], Right: f[1], Expect: Way(f[2]), Test: len(f) == 4}
		for _, kind := range f[:2] {
			if _, known := kinds[kind]; !known {
				return fail("there is no kind %q", kind)
			}
		}
		if !slices.Contains(order[:3], c.Expect) {
			return fail("%q is no way; use direct, carrier or transit", c.Expect)
		}
		if c.Left != c.Right && (kinds[c.Left].shared || kinds[c.Right].shared) {
			return fail("%s is one box for two sites, and pairs with itself only", c)
		}
		if slices.ContainsFunc(cells, func(o Cell) bool { return o.has(c.Left, c.Right) }) {
			return fail("%s is there already", c)
		}
		cells = append(cells, c)
	}
	return cells, nil
}

// has reports whether the cell is of the two kinds, in any order.
func (c Cell) has(a, b string) bool {
	return c.Left == a && c.Right == b || c.Left == b && c.Right == a
}
