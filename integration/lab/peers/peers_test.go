package peers

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata")

// TestSettings compares what each daemon is given with files; -update rewrites them.
func TestSettings(t *testing.T) {
	n := node{
		name: "fra", dir: "/lab/fra", exe: "/bin/meshlab", id: netip.MustParseAddr("10.99.255.1"), lan: netip.MustParsePrefix("10.1.0.0/24"),
		ports: []port{{"gw-lon", 100}, {"gw-ams", 80}},
	}
	for _, c := range All() {
		if c.daemons == nil {
			continue
		}
		if why := c.Missing(); why != "" {
			t.Logf("%s is not compared: %s", c.Name, why)
			continue
		}
		var text strings.Builder
		for _, d := range c.daemons(n) {
			for i, a := range d.argv { // where a machine has its programs does not matter
				if a == find(d.name) {
					d.argv[i] = d.name
				}
			}
			text.WriteString("$ " + strings.Join(d.argv, " ") + "\n")
			for name, config := range d.config {
				text.WriteString("--- " + name + "\n" + config)
			}
		}
		file := filepath.Join("testdata", c.Name+".txt")
		if *update {
			if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if text.String() != string(want) {
			t.Errorf("%s gets\n%s\nwant\n%s", c.Name, text.String(), want)
		}
	}
}

// TestMissing: a program that is not there is named with its package.
func TestMissing(t *testing.T) {
	c := Contender{Name: "x", programs: []program{{"sh", "dash"}, {"no-such-router", "router-suite"}}}
	if why := c.Missing(); !strings.Contains(why, "no-such-router") || !strings.Contains(why, "router-suite") {
		t.Errorf("%q", why)
	}
	c.programs = c.programs[:1]
	if why := c.Missing(); why != "" {
		t.Errorf("%q, and nothing is missing", why)
	}
}

func TestNames(t *testing.T) {
	var names []string
	for i, c := range All() {
		if (c.daemons == nil) != (i == 0) || slices.Contains(names, c.Name) {
			t.Errorf("%s is in place %d of %v", c.Name, i, names)
		}
		names = append(names, c.Name)
	}
}
