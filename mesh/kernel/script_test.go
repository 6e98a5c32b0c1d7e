package kernel

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"guywire/mesh"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs testdata: `have` and `want` set the states, `plan` prints
// the operations, `apply` does them on a Fake and prints what is there then,
// `safe` says whether have is safe for want.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var have, want State
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "have":
				have = parseState(t, d.Input)
				return ""
			case "want":
				want = parseState(t, d.Input)
				want.Complete, want.FilterComplete = !d.HasArg("incomplete"), d.HasArg("filter")
				return ""
			case "plan":
				var b strings.Builder
				for _, op := range Plan(have, want) {
					fmt.Fprintln(&b, describe(op))
				}
				return b.String()
			case "safe":
				m := NewModel(have)
				switch {
				case m.Safe(want):
					return "yes"
				case m.beyond(want) != "":
					return "no, for " + m.beyond(want)
				case !m.Filtered(want):
					return "no, for the filter"
				}
				return "no, it is not complete"
			case "apply":
				fake := NewFake(have)
				for _, op := range Plan(have, want) {
					if err := fake.Do(t.Context(), op); err != nil {
						t.Error(err)
					}
				}
				return fake.String()
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}

// describe adds to an operation what its String leaves out.
func describe(op Op) string {
	switch op := op.(type) {
	case SetFilter:
		var links []string
		for _, l := range op.Filter.Links {
			if l.Held {
				l.Device += "(held)"
			}
			links = append(links, l.Device)
		}
		return "set filter " + strings.Join(links, " ")
	case UpdateTunnel:
		if op.Reseat {
			return op.String() + " and its seat"
		}
	}
	return op.String()
}

func parseState(t *testing.T, input string) State {
	t.Helper()
	var s State
	for line := range strings.SplitSeq(input, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		args := map[string]string{}
		for _, w := range words[1:] {
			k, v, _ := strings.Cut(w, "=")
			args[k] = v
		}
		switch words[0] {
		case "tunnel":
			s.Tunnels = append(s.Tunnels, Tunnel{
				Name: words[1], Alias: args["alias"], Mark: uint32(number(t, args["mark"])),
				MTU: number(t, args["mtu"]), ListenPort: uint16(number(t, args["port"])), Peer: key(number(t, args["peer"])),
			})
		case "address":
			s.Addrs = append(s.Addrs, netip.MustParsePrefix(words[1]))
		case "hop":
			s.NextHops = append(s.NextHops, NextHop{ID: uint32(number(t, words[1])), Device: words[2]})
		case "group":
			n := NextHop{ID: uint32(number(t, words[1]))}
			for _, leg := range words[2:] {
				id, weight, _ := strings.Cut(leg, "*")
				n.Members = append(n.Members, Member{uint32(number(t, id)), uint8(max(1, number(t, weight)))})
			}
			s.NextHops = append(s.NextHops, n)
		case "route":
			r := Route{
				Table: number(t, args["table"]), Prefix: netip.MustParsePrefix(words[1]), Metric: uint32(number(t, args["metric"])),
				NextHop: uint32(number(t, args["hop"])), Device: args["dev"], MTU: number(t, args["mtu"]),
			}
			if r.Table == 0 {
				r.Table = mesh.RouteTable
			}
			if _, ok := args["throw"]; ok {
				r.Kind = Throw
			}
			if _, ok := args["unreachable"]; ok {
				r.Kind = Unreachable
			}
			if src, ok := args["src"]; ok {
				r.Source = netip.MustParseAddr(src)
			}
			s.Routes = append(s.Routes, r)
		case "rule":
			s.Rules = append(s.Rules, Rule{number(t, words[1]), uint32(number(t, args["mark"])), number(t, args["table"])})
		case "filter":
			s.Filter.Own = prefixes(args["own"])
			s.Filter.Mesh = prefixes(args["mesh"])
			_, s.Filter.Foreign = args["foreign"]
		case "link":
			_, held := args["held"]
			s.Filter.Links = append(s.Filter.Links, FilterLink{words[1], prefixes(args["from"]), held})
		case "sysctl":
			path, value, _ := strings.Cut(words[1], "=")
			s.Sysctls = append(s.Sysctls, Sysctl{path, value})
		case "revoked":
			s.Revoked = append(s.Revoked, key(number(t, words[1])))
		default:
			t.Fatalf("unknown object %q", line)
		}
	}
	s.Sort()
	return s
}

func number(t *testing.T, s string) int {
	t.Helper()
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func key(n int) mesh.WireGuardKey { return mesh.WireGuardKey{byte(n)} }

func prefixes(s string) []netip.Prefix {
	if s == "" {
		return nil
	}
	var ps []netip.Prefix
	for text := range strings.SplitSeq(s, ",") {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	return Aggregate(ps)
}
