package apitest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
)

// New gives a backend that speaks for berlin-1: six sites, two uplinks here,
// one link down, one site reached by transit, one not reached.
func New() *Backend {
	b := &Backend{}
	b.EventsDoc = sampleEvents()
	b.StatusDoc = sampleStatus(&b.EventsDoc[len(b.EventsDoc)-1])
	b.NodesDoc = sampleNodes()
	b.LinksDoc = sampleLinks()
	b.CheckDoc = sampleNetcheck(b.StatusDoc.Uplinks)
	b.RoutesDoc = sampleRoutes()
	b.PathDoc = samplePath()
	b.Shape = sampleTopology()
	b.DrainsDoc = sampleDrains()
	b.DrainedDoc = api.Drained{Done: true, Draining: api.Draining{Drain: b.DrainsDoc.Drains[0].Drain}}
	b.RaftDoc = sampleRaft()
	b.Records = sampleAudit()
	b.PlanDoc = api.RecoverPlan{
		Plan: "8f14e45fceea167a5a36dedd4bea2543", Generation: 1, Source: "paris-1", Index: 4711, Trusted: true,
		Reached: []string{"berlin-1", "paris-1"}, Silent: []string{"kyiv-1", "rome-1"}, LostVoters: []string{"rome-1"},
		Appear: []api.Uncommitted{{Index: 4712, Time: ago(3 * time.Hour), Author: "berlin-1", Action: "add_token", About: "k7m2"}},
	}
	b.Reserved = api.Reservations{Reservations: []api.Reservation{{Name: "oslo-2", Addrs: addrs("10.86.0.20", "fd12:3456:789a::14")}}}
	b.People = api.Operators{
		Mesh: mesh.MeshID{0xac, 0xe}, Pins: []string{strings.Repeat("ab", 32)}, Servers: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.20:8686")},
		Operators: []api.Operator{
			{Name: "ann", Key: mesh.IdentityKey{1}, Right: api.RightRead, Created: ago(time.Hour), Expires: new(Now.Add(30 * 24 * time.Hour))},
			{Name: "berlin-1", Node: true, Key: mesh.IdentityKey{2}, Right: api.RightChange, Created: ago(72 * time.Hour)},
		},
	}
	b.CADoc = api.Authorities{Authorities: []api.Authority{{Pin: strings.Repeat("cd", 32), State: "retired"}, {Pin: strings.Repeat("ab", 32), State: "current"}, {Pin: strings.Repeat("ef", 32), State: "next", From: new(Now.Add(12 * 24 * time.Hour))}}}
	b.SettingDoc = api.Settings{Voters: 3, CacheMaxAgeMs: api.Millis(30 * 24 * time.Hour)}
	b.TokensDoc = api.Tokens{Tokens: []api.Token{
		{ID: "k7m2", Name: "oslo-1", Prefixes: prefixes("10.70.0.0/16"), Tags: []string{"office"}, Uses: 1, Created: ago(time.Hour), Expires: Now.Add(23 * time.Hour)},
		{ID: "q9x4", AnyPrefix: true, Roles: []string{api.RoleOperator}, Uses: 12, Created: ago(48 * time.Hour), Expires: Now.Add(90 * time.Second)},
		{ID: "z3c8", Uses: 1, Created: ago(500 * time.Hour), Expires: Now.Add(50 * time.Hour), Unusable: "made before the CA was replaced"},
	}}
	b.Replies = []api.PingReply{
		{Index: 1, Node: "paris-1", Addr: addrs("10.86.0.2")[0], Answered: true, RTTMs: new(12.4), Path: "direct, fibre → wan"},
		{Index: 2, Node: "paris-1", Addr: addrs("10.86.0.2")[0], Answered: true, RTTMs: new(12.612), Path: "direct, fibre → wan"},
		{Index: 3, Node: "paris-1", Addr: addrs("10.86.0.2")[0], Reason: "no answer in 1 s", Path: "direct, fibre → wan"},
		{Index: 4, Node: "paris-1", Addr: addrs("10.86.0.2")[0], Answered: true, RTTMs: new(48.05), Path: "direct, lte → wan"},
	}
	b.EnrolledAs = api.Enrolled{
		Mesh: *b.StatusDoc.Mesh, Node: *b.StatusDoc.Node, Neighbour: "paris-1", NeighbourMs: new(812.0),
	}
	b.Steps = []api.JoinStep{
		{ElapsedMs: 1.2, Kind: "token", Sentence: "token k7m2, valid until 2026-03-02 12:00 UTC"},
		{ElapsedMs: 96.4, Kind: "server", Sentence: "203.0.113.20:8686 answers, its key is the one in the token"},
		{ElapsedMs: 210.9, Kind: "admitted", Sentence: "admitted as berlin-1 with 10.86.0.1 and fd12:3456:789a::1", Addrs: addrs("10.86.0.1", "fd12:3456:789a::1")},
		{ElapsedMs: 340, Kind: "uplink", Sentence: "uplink fibre (eth0): public, 203.0.113.10", Uplink: &b.StatusDoc.Uplinks[0]},
		{ElapsedMs: 341, Kind: "uplink", Sentence: "uplink lte (wwan0): behind symmetric NAT, seen as 198.18.9.9", Uplink: &b.StatusDoc.Uplinks[1]},
		{ElapsedMs: 812, Kind: "link", Sentence: "first neighbour: paris-1 over fibre → wan, 12.4 ms", Peer: "paris-1"},
	}
	return b
}

func sampleStatus(last *api.Event) api.Status {
	return api.Status{
		Time: Now, Version: "v0.1.0", Started: ago(3 * time.Hour), Enrolled: true, Ready: true,
		Health: api.NewHealth(
			api.Finding{Level: api.Degraded, Sentence: "Link to rome-1 (lte → isp1) is down: no probe came back in 400 ms", Next: "meshctl links rome-1"},
			api.Finding{Level: api.Down, Sentence: "No path to kyiv-1", Next: "meshctl links shows why"},
		),
		Mesh: &api.MeshInfo{ID: mesh.MeshID{0xac, 0xe}, Name: "acme", Pool4: prefixes("10.86.0.0/16")[0], Pool6: prefixes("fd12:3456:789a::/48")[0]},
		Node: &api.SelfInfo{
			ID: ID(1), Name: "berlin-1", Addrs: addrs("10.86.0.1", "fd12:3456:789a::1"),
			Prefixes: prefixes("10.20.0.0/16"), Tags: []string{"hub"}, Role: "voter", Leader: "paris-1",
		},
		Nodes: api.Count{Good: 4, Total: 5}, Links: api.Count{Good: 3, Total: 5},
		Uplinks: []api.Uplink{
			{
				Name: "fibre", Interface: "eth0", Addrs: addrs("203.0.113.10", "2001:db8:a::10"), Up: true, NAT: "none", NAT6: "none",
				Reflexive: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:51800")}, MTU: 1500,
			},
			{
				Name: "lte", Interface: "wwan0", Addrs: addrs("10.200.7.3"), Up: true, Metered: true, NAT: "symmetric", NAT6: "absent",
				Reflexive: []netip.AddrPort{netip.MustParseAddrPort("198.18.9.9:40211")}, MTU: 1420,
			},
		},
		Dataplane: "kernel", Kernel: api.Revision{Wanted: 312, Applied: 312}, LastEvent: last,
	}
}

func sampleNodes() api.Nodes {
	joined := ago(72 * time.Hour)
	change := func(d time.Duration) *time.Time { return new(ago(d)) }
	return api.Nodes{Nodes: []api.Node{
		{ID: ID(1), Name: "berlin-1", Addrs: addrs("10.86.0.1", "fd12:3456:789a::1"), Prefixes: prefixes("10.20.0.0/16"), Tags: []string{"hub"}, Roles: []string{api.RoleOperator}, Site: "north", Voter: true, Transit: true, Reach: api.ReachSelf, Joined: joined},
		{ID: ID(5), Name: "kyiv-1", Addrs: addrs("10.86.0.5", "fd12:3456:789a::5"), Prefixes: prefixes("10.50.0.0/16"), Transit: true, Reach: api.ReachNone, Links: api.Count{Total: 1}, LastChange: change(41 * time.Minute), Joined: joined},
		{ID: ID(4), Name: "oslo-lab-with-a-long-name-7", Addrs: addrs("10.86.0.4", "fd12:3456:789a::4"), Transit: true, Reach: api.ReachTransit, Via: "paris-1", CostMs: new(31.2), LastChange: change(26 * time.Hour), Joined: joined},
		{ID: ID(2), Name: "paris-1", Addrs: addrs("10.86.0.2", "fd12:3456:789a::2"), Prefixes: prefixes("10.30.0.0/16", "10.31.0.0/24", "2001:db8:30::/48"), Tags: []string{"hub", "office"}, Voter: true, Transit: true, Reach: api.ReachDirect, CostMs: new(6.2), RTTMs: new(12.4), Links: api.Count{Good: 2, Total: 2}, LastChange: change(72 * time.Hour), Joined: joined},
		{ID: ID(3), Name: "rome-1", Addrs: addrs("10.86.0.3", "fd12:3456:789a::3"), Prefixes: prefixes("10.40.0.0/16"), Voter: true, Transit: true, Reach: api.ReachDirect, CostMs: new(14.9), RTTMs: new(29.8), Links: api.Count{Good: 1, Total: 2}, LastChange: change(2 * time.Minute), Joined: joined},
	}}
}

func sampleNetcheck(uplinks []api.Uplink) api.Netcheck {
	at := netip.MustParseAddrPort
	return api.Netcheck{
		Node: "berlin-1", Control: []netip.AddrPort{at("203.0.113.10:8686")},
		Uplinks: []api.UplinkCheck{
			{Uplink: uplinks[0], UDP: "passes", Lifetime: "endless", Lifetime6: "115s", Checked: new(ago(6 * time.Minute)), Servers: []api.ServerCheck{
				{Server: at("203.0.113.20:8686"), Node: "paris-1", RTTMs: new(12.1), Seen: at("203.0.113.10:51820")},
				{Server: at("[2001:db8:c::30]:8686"), Node: "rome-1", RTTMs: new(29.6), Seen: at("[2001:db8:a::10]:51820")},
			}},
			{Uplink: uplinks[1], UDP: "passes", Lifetime: "short", Lifetime6: "unknown", Forwarded: addrs("198.18.9.9"), Mapping: "PCP", Checked: new(ago(40 * time.Second)), Servers: []api.ServerCheck{
				{Server: at("203.0.113.20:8686"), Node: "paris-1", RTTMs: new(47.9), Seen: at("198.18.9.9:40211")},
				{Server: at("203.0.113.30:8686"), Node: "rome-1", RTTMs: new(61.3), Seen: at("198.18.9.9:51007")},
				{Server: at("203.0.113.40:8686"), Node: "kyiv-1"},
			}},
		},
		Pairs: []api.PairCheck{
			{Peer: "kyiv-1", PeerID: ID(5), Local: "fibre", Remote: "wan", Expected: api.ExpectDirect, Reason: "no answer to 20 connectivity checks on 2 candidate pairs", NextTry: new(Now.Add(4 * time.Second))},
			{Peer: "oslo-lab-with-a-long-name-7", PeerID: ID(4), Local: "lte", Remote: "lte", Expected: api.ExpectNever, Why: "both ends are behind symmetric NATs", Via: "paris-1", NextTry: new(Now.Add(11 * time.Minute))},
		},
		Advice: []api.Finding{
			{Level: api.Degraded, Sentence: "Others reach the control port of this node, but get no answer from its STUN server", Next: "let UDP port 8686 in as well as TCP"},
			{Level: api.OK, Sentence: "Uplink lte is behind a symmetric NAT: direct links by it are made to public nodes only", Next: "ask its provider for IPv6 or a public address"},
		},
	}
}

func sampleLinks() api.Links {
	return api.Links{Links: []api.Link{
		{
			Peer: "kyiv-1", PeerID: ID(5), Local: "fibre", Remote: "wan", State: api.LinkIdle, Since: ago(41 * time.Minute),
			Reason: "no answer to 20 connectivity checks on 2 candidate pairs", NextTry: new(Now.Add(4 * time.Second)),
			Device: "gw-5a", LocalPort: 51803, Attempts: api.Attempts{Begun: 3, Packets: 66, Bytes: 6204},
		},
		{
			Peer: "paris-1", PeerID: ID(2), Local: "fibre", Remote: "wan", Path: "direct", State: api.LinkUp, Since: ago(72 * time.Hour), Reason: "measured",
			Device: "gw-2a", LocalPort: 51800, Endpoint: netip.MustParseAddrPort("203.0.113.20:51801"),
			RTTMs: new(12.4), JitterMs: new(0.31), LossOut: new(0.0), LossIn: new(0.0), Share: 100, MTU: 1420, TxBytes: 48_318_382_080, RxBytes: 1_234_567,
		},
		{
			Peer: "paris-1", PeerID: ID(2), Local: "lte", Remote: "wan", Path: "carrier", State: api.LinkDegraded, Since: ago(35 * time.Second),
			Reason: "loss 4.2 % out, limit 2 %",
			Device: "gw-2b", LocalPort: 51801, Endpoint: netip.MustParseAddrPort("203.0.113.20:51802"),
			RTTMs: new(48.05), JitterMs: new(9.4), LossOut: new(4.2), LossIn: new(0.1), MTU: 1340, TxBytes: 9000, RxBytes: 8000,
		},
		{
			Peer: "rome-1", PeerID: ID(3), Local: "fibre", Remote: "isp1", Path: "translated", State: api.LinkUp, Since: ago(5 * time.Hour), Reason: "measured",
			Device: "gw-3a", LocalPort: 51802, Endpoint: netip.MustParseAddrPort("[2001:db8:c::30]:51900"),
			RTTMs: new(29.8), JitterMs: new(1.2), LossOut: new(0.0), LossIn: new(0.4), Share: 100, MTU: 1400, TxBytes: 7_340_032, RxBytes: 6_000_000,
		},
		{
			Peer: "rome-1", PeerID: ID(3), Local: "lte", Remote: "isp1", Path: "translated", State: api.LinkDown, Since: ago(2 * time.Minute),
			Reason: "no probe came back in 400 ms while the other link of rome-1 answered", NextTry: new(Now.Add(11 * time.Second)),
			Device: "gw-3b", LocalPort: 51804, Endpoint: netip.MustParseAddrPort("[2001:db8:c::30]:51901"),
			LossOut: new(100.0), LossIn: new(100.0), MTU: 1340,
		},
	}}
}

func sampleRoutes() api.Routes {
	return api.Routes{Routes: []api.Route{
		{Prefix: prefixes("10.20.0.0/16")[0], Origins: []string{"berlin-1"}, Installed: true, Why: "this site"},
		{
			Prefix: prefixes("10.30.0.0/16")[0], Origins: []string{"paris-1"}, CostMs: new(6.2), Installed: true, Why: "lowest cost",
			NextHops: []api.NextHop{{Peer: "paris-1", Device: "gw-2a", Weight: 255, Share: 100}},
			RunnerUp: &api.Alternative{Peer: "paris-1", Device: "gw-2b", CostMs: new(66.0), Why: "cost above 1.4 × the best"},
			Feasibility: &api.Feasibility{DistanceMs: new(6.2), ReportedMs: new(6.2), FeasibleMs: new(6.2), Neighbours: []api.Successor{
				{Peer: "paris-1", ReportedMs: new(0.0), ThroughMs: new(6.2), Successor: true, Use: api.UseCarries},
				{Peer: "rome-1", ReportedMs: new(5.9), ThroughMs: new(20.8), Successor: true, Use: api.UseArmed},
			}},
		},
		{
			Prefix: prefixes("10.40.0.0/16")[0], Origins: []string{"rome-1"}, CostMs: new(14.9), Installed: true, Why: "two successors within 1.4 × the best",
			NextHops: []api.NextHop{{Peer: "rome-1", Device: "gw-3a", Weight: 170, Share: 66.7}, {Peer: "paris-1", Device: "gw-2a", Weight: 85, Share: 33.3}},
			Feasibility: &api.Feasibility{DistanceMs: new(14.9), ReportedMs: new(14.9), FeasibleMs: new(14.9), Neighbours: []api.Successor{
				{Peer: "rome-1", ReportedMs: new(0.0), ThroughMs: new(14.9), Successor: true, Use: api.UseCarries},
				{Peer: "paris-1", ReportedMs: new(12.1), ThroughMs: new(18.3), Successor: true, Use: api.UseCarries},
				{Peer: "kyiv-1", ReportedMs: new(20.2), ThroughMs: new(40.0), Use: api.UseNone},
			}},
		},
		{Prefix: prefixes("10.50.0.0/16")[0], Origins: []string{"kyiv-1"}, Why: "kyiv-1 is not reached: no neighbour announces a path", Feasibility: &api.Feasibility{
			FeasibleMs: new(31.0), Active: true, Neighbours: []api.Successor{{Peer: "paris-1", Use: api.UseNone}},
		}},
		{
			Prefix: prefixes("10.99.0.0/24")[0], Origins: []string{"paris-1", "rome-1"}, CostMs: new(6.2), Why: "waiting for the kernel",
			NextHops: []api.NextHop{{Peer: "paris-1", Device: "gw-2a", Weight: 255, Share: 100}},
			RunnerUp: &api.Alternative{Peer: "rome-1", Device: "gw-3a", CostMs: new(14.9), Why: "cost above 1.4 × the best"},
		},
		{
			Prefix: prefixes("2001:db8:30::/48")[0], Origins: []string{"paris-1"}, CostMs: new(6.2), Installed: true, Why: "lowest cost",
			NextHops: []api.NextHop{{Peer: "paris-1", Device: "gw-2a", Weight: 255, Share: 100}},
		},
	}}
}

func sampleTopology() api.Topology {
	edges := func(list ...string) (out api.List[api.Neighbour]) {
		for i := 0; i < len(list); i += 2 {
			out = append(out, api.Neighbour{Node: list[i], Reason: list[i+1]})
		}
		return out
	}
	return api.Topology{
		Mode: api.TopologyAuto, Dense: true,
		Pinned:    []api.Pair{{A: "berlin-1", B: "oslo-lab-with-a-long-name-7"}},
		Forbidden: []api.Pair{{A: "kyiv-1", B: "rome-1"}, {A: "kyiv-1", B: "paris-1"}},
		Nodes: []api.TopologyNode{
			{ID: ID(1), Name: "berlin-1", Transit: true, MaxDegree: 20, Tags: []string{"hub"}, Degree: new(4), Neighbours: edges(
				"kyiv-1", "ring", "oslo-lab-with-a-long-name-7", "pin", "paris-1", "nearest", "rome-1", "stratum")},
			{ID: ID(5), Name: "kyiv-1", Transit: true, Degree: new(1), Neighbours: edges("berlin-1", "ring"), Drain: &api.Drain{
				Target: "kyiv-1", Node: "kyiv-1", By: "paris-1", Since: ago(26 * time.Hour),
			}},
			{ID: ID(4), Name: "oslo-lab-with-a-long-name-7", Degree: new(2), Neighbours: edges("berlin-1", "pin", "paris-1", "ring")},
			{ID: ID(2), Name: "paris-1", Transit: true, Tags: []string{"hub", "office"}},
			{ID: ID(3), Name: "rome-1", Transit: true, Degree: new(0)},
		},
	}
}

func sampleDrains() api.Drains {
	return api.Drains{Drains: []api.Draining{
		{
			Drain:      api.Drain{Target: "berlin-1/lte", Node: "berlin-1", Uplink: "lte", By: "berlin-1", Since: ago(35 * time.Second)},
			Carries:    prefixes("10.40.0.0/16", "10.50.0.0/16"),
			NoOtherWay: prefixes("10.50.0.0/16"),
		},
		{Drain: api.Drain{Target: "kyiv-1", Node: "kyiv-1", By: "paris-1", Since: ago(26 * time.Hour)}},
		{Drain: api.Drain{
			Target: "paris-1/wan:rome-1/isp1", Node: "paris-1", Uplink: "wan", Peer: "rome-1", Remote: "isp1",
			By: "paris-1", Since: ago(3 * time.Minute),
		}},
	}}
}

func samplePath() api.Path {
	return api.Path{
		From: "berlin-1", To: "oslo-lab-with-a-long-name-7", Reached: true,
		Hops: []api.Hop{
			{
				Node: "berlin-1", Prefix: new(prefixes("10.86.0.4/32")[0]), Peer: "paris-1", Device: "gw-2a", RTTMs: new(12.4),
				Kernel: "10.86.0.4 dev gw-2a table 86 proto 86", Agrees: new(true),
				Alternatives: []api.Alternative{{Peer: "rome-1", Device: "gw-3a", CostMs: new(58.1), Why: "cost above 1.4 × the best"}},
			},
			{Node: "paris-1", Prefix: new(prefixes("10.86.0.4/32")[0]), Peer: "oslo-lab-with-a-long-name-7", Device: "gw-4a", RTTMs: new(50.0)},
			{Node: "oslo-lab-with-a-long-name-7"},
		},
	}
}

func sampleEvents() []api.Event {
	return []api.Event{
		{Index: 40, Time: ago(41 * time.Minute), Kind: "node-lost", Sentence: "kyiv-1 is not reached", Cause: "its last link is down", From: "direct", To: "none"},
		{Index: 41, Time: ago(2*time.Minute + 93*time.Millisecond), Kind: "link-down", Sentence: "Link to rome-1 over lte → isp1 is down", Cause: "no probe came back in 400 ms, limit 3 × 120 ms", From: "up", To: "down"},
		{Index: 42, Time: ago(2 * time.Minute), Kind: "reroute", Sentence: "1 prefix of rome-1 moved", Cause: "link rome-1 lte → isp1 down", From: "gw-3b", To: "gw-3a"},
	}
}

func sampleRaft() api.RaftStatus {
	return api.RaftStatus{
		Role: "voter", Leader: "paris-1", Version: 3, Index: 4711, Confirmed: new(ago(time.Second)), Term: new(uint64(7)), Commit: new(uint64(4711)), Complete: true,
		Members: []api.RaftMember{
			{ID: ID(1), Name: "berlin-1", Site: "north", Addr: netip.MustParseAddrPort("203.0.113.10:8686"), Voter: true, Connected: new(true), Healthy: new(true), Since: new(ago(72 * time.Hour)), Last: new(uint64(4711)), Lag: new(uint64(0))},
			{ID: ID(2), Name: "paris-1", Site: "west", Addr: netip.MustParseAddrPort("203.0.113.20:8686"), Voter: true, Leader: true, Connected: new(true), Healthy: new(true), Last: new(uint64(4711)), Lag: new(uint64(0))},
			{ID: ID(3), Name: "rome-1", Addr: netip.MustParseAddrPort("[2001:db8:c::30]:8686"), Voter: true, Connected: new(false), Healthy: new(false), Since: new(ago(2 * time.Minute)), Last: new(uint64(4690)), Lag: new(uint64(21))},
			{ID: ID(4), Name: "oslo-lab-with-a-long-name-7"},
		},
	}
}

// sampleAudit is a trail whose heads are not those of real records, but continue.
func sampleAudit() []api.AuditRecord {
	list := []api.AuditRecord{
		{N: 1, Index: 2, Time: ago(72 * time.Hour), Author: "berlin-1", Action: "init", About: "berlin-1", Outcome: "ok"},
		{N: 2, Index: 3, Time: ago(71 * time.Hour), Author: "berlin-1", Action: "set_control", About: "berlin-1", Outcome: "ok"},
		{N: 3, Index: 4, Time: ago(70 * time.Hour), Author: "berlin-1", Action: "add_token", About: "k7m2", Outcome: "ok"},
		{N: 4, Index: 7, Time: ago(69 * time.Hour), Author: "paris-1", Action: "join", About: "paris-1", Outcome: "ok"},
		{N: 5, Index: 9, Time: ago(time.Hour), Author: "paris-1", Action: "revoke_token", About: "k7m2", Outcome: "refused forbidden"},
	}
	head := strings.Repeat("0", 64)
	for i := range list {
		r := &list[i]
		r.AuthorKey, r.Command, r.Prev = mesh.IdentityKey{2}.String(), strings.Repeat("ef", 32), head
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", head, r.N))
		r.Head = hex.EncodeToString(sum[:])
		head = r.Head
	}
	return list
}
