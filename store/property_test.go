package store

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// A history makes random commands, of which many are wrong, over few enough
// machines, tokens and prefixes that they clash all the time.
type history struct {
	*rand.Rand
	joiners []*joiner
	invites []invite.Token
	now     time.Time
}

func newHistory(seed uint64) *history {
	return &history{Rand: rand.New(rand.NewPCG(seed, 86)), now: testNow}
}

func (h *history) next(s *State) Command {
	h.now = h.now.Add(time.Duration(h.IntN(120)) * time.Second)
	c := Command{Version: Version, Now: h.now}
	if h.IntN(8) > 0 {
		c.By = Authority{Operator: h.IntN(6) > 0, Node: h.member(s)}
		if s.Mesh.Version >= signedVersion && c.By.Operator {
			c.By.Node = h.who(s, func(n Node) bool { return slices.Contains(n.Roles, NodeOperator) })
		}
	}
	kind := h.IntN(19)
	if s.Mesh.Version >= signedVersion && h.IntN(4) == 0 {
		kind = 19 + h.IntN(11)
	} else if s.Mesh.Version >= GossipVersion && h.IntN(6) == 0 {
		kind = 30
	}
	if len(s.Nodes) < 3 && (kind == 4 || kind == 8 || kind == 18) {
		kind = 9 // the mesh lives on
	}
	switch kind {
	case 0, 1, 2:
		inv := newInvite(len(h.invites))
		h.invites = append(h.invites, inv)
		t := tokenOf(inv)
		t.AnyPrefix = s.Mesh.Version >= signedVersion && h.IntN(4) > 0
		t.Uses, t.Expires = h.IntN(5), h.now.Add(time.Duration(h.IntN(7200))*time.Second)
		c.AddToken = &AddToken{t}
	case 3:
		c.RevokeToken = &RevokeToken{h.token().ID}
	case 4, 18:
		c.RemoveNode = &RemoveNode{Node: h.someone().id(), Revoke: h.IntN(2) == 0}
	case 5:
		c.SetVoter = &SetVoter{Node: h.member(s), Voter: h.IntN(2) == 0}
		c.By.Node = h.who(s, func(n Node) bool { return n.Voter })
	case 6:
		c.SetControl = &SetControl{Node: h.someone().id(), Control: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(h.IntN(3))}), uint16(h.IntN(3)))}}
	case 7:
		c.Grant = &Grant{Node: h.member(s), Prefixes: h.prefixes()}
	case 8: // a member leaves by itself
		j := h.someone()
		c.By, c.RemoveNode = Authority{Node: j.id()}, &RemoveNode{Node: j.id()}
	case 14:
		c.SetTopology = &SetTopology{Mode: []TopologyMode{TopologyAuto, TopologyFull, TopologyHub, "star"}[h.IntN(4)], Dense: h.IntN(4) == 0}
		if c.SetTopology.Mode == TopologyHub || h.IntN(8) == 0 {
			c.SetTopology.Hub = h.tags()[0]
		}
	case 15:
		c.SetPairs = &SetPairs{Pin: h.pairs(s), Forbid: h.pairs(s), Unpin: h.pairs(s), Allow: h.pairs(s)}
	case 16:
		c.SetNode = &SetNode{Node: h.member(s)}
		if h.IntN(2) == 0 {
			c.SetNode.Transit = new(h.IntN(2) == 0)
		}
		if h.IntN(2) == 0 {
			c.SetNode.MaxDegree = new(h.IntN(12) - 1)
		}
		if h.IntN(2) == 0 {
			c.SetNode.Tags = new(h.tags()[h.IntN(3):])
		}
	case 17:
		c.SetDrain = &SetDrain{Node: h.member(s), Drain: h.IntN(3) > 0}
		switch h.IntN(4) {
		case 0: // the whole node
		case 1:
			c.SetDrain.Uplink = h.uplink()
		case 2:
			c.SetDrain.Uplink, c.SetDrain.Peer, c.SetDrain.Remote = h.uplink(), h.member(s), h.uplink()
		default:
			c.SetDrain.Peer = h.member(s)
		}
	case 19:
		c.SetRoles = &SetRoles{h.member(s), [][]NodeRole{{NodeOperator}, {NodeNoVote, NodeOperator}, {NodeNoVote}, nil, {"root"}}[h.IntN(5)]}
	case 20:
		c.SetOperator = &SetOperator{h.tags()[0], Operator{Key: h.someone().identity, Right: []Right{RightRead, RightChange, "all"}[h.IntN(3)]}}
		if h.IntN(2) == 0 {
			c.SetOperator.Operator.Key = newJoiner("laptop", fmt.Sprint("laptop", h.IntN(5))).identity
		}
		if h.IntN(2) == 0 {
			c.SetOperator.Operator.Expires = h.now.Add(time.Duration(h.IntN(3)-1) * time.Hour)
		}
	case 21:
		c.RemoveOperator = &RemoveOperator{h.tags()[0]}
	case 22:
		c.Reserve = &Reserve{fmt.Sprintf("site-%d", h.IntN(40)), nth(testPool4, uint64(h.IntN(40)))}
	case 23:
		c.Unreserve = &Unreserve{fmt.Sprintf("site-%d", h.IntN(40))}
	case 24: // its own key, mostly
		id := h.member(s)
		c.By, c.AddKey = Authority{Node: id}, &AddKey{id, Key{s.Nodes[id].lastEpoch() + mesh.Epoch(h.IntN(3)), newJoiner("", fmt.Sprint("key", h.IntN(200))).key.Public}}
	case 25:
		id := h.member(s)
		c.By, c.DropKey = Authority{Node: id}, &DropKey{id, mesh.Epoch(h.IntN(4))}
	case 26:
		c.SetSettings = &SetSettings{Voters: new(h.IntN(6))}
	case 27:
		c.By.Node = h.who(s, func(n Node) bool { return n.Voter })
		c.RotateCA = &RotateCA{Step: []CAStep{CAAdd, CAPromote, CARetire}[h.IntN(3)], Pin: Digest{byte(h.IntN(4))}}
		if h.IntN(8) > 0 && c.RotateCA.Step == CAAdd {
			c.RotateCA.Root = []byte{0x30, byte(h.IntN(3))}
			c.RotateCA.Aged = c.RotateCA.Root[1] > 0
		}
	case 28:
		id := h.member(s)
		c.By, c.RegisterBoot = Authority{Node: id}, &RegisterBoot{id, Boot{N: uint64(h.IntN(5)), Instance: Nonce{byte(h.IntN(3))}}}
	case 30: // mostly a voter, and a step that is possible
		c.By.Node = h.who(s, func(n Node) bool { return n.Voter })
		r := RotateGossip{Step: []GossipStep{GossipAdd, GossipSeal, GossipSeal, GossipUse, GossipRetire}[h.IntN(5)]}
		switch next, _ := s.GossipKey(GossipNext); r.Step {
		case GossipAdd:
			r.Epoch, r.Check = s.Mesh.GossipEpoch+1, Digest{byte(h.IntN(8))}
		case GossipUse:
			r.Epoch = next.Epoch
		case GossipRetire:
			r.Epoch = s.Mesh.GossipEpoch - mesh.Epoch(min(int(s.Mesh.GossipEpoch), h.IntN(3)))
		}
		if r.Step == GossipSeal || h.IntN(4) == 0 {
			r.Copies = map[mesh.NodeID][]Copy{}
			for id, n := range s.Nodes {
				for _, epoch := range s.Lacks(n) {
					r.Copies[id] = append(r.Copies[id], copyOf(epoch, n.Keys[len(n.Keys)-1].Epoch-mesh.Epoch(h.IntN(200)/199)))
				}
			}
		}
		c.RotateGossip = &r
	case 29:
		c.Grant = &Grant{Node: h.member(s), Prefixes: prefixes("172.16.0.0/24")}
		if h.IntN(4) > 0 {
			c.Grant.Shared = c.Grant.Prefixes
		}
	default:
		j := h.someone()
		if h.IntN(4) > 0 {
			j = newJoiner(fmt.Sprintf("site-%d", h.IntN(40)), fmt.Sprint(len(h.joiners)))
			j.prefixes = h.prefixes()
			h.joiners = append(h.joiners, j)
		}
		join := j.join(h.token())
		c.Join = join.Join
		if s.Mesh.Version >= GossipVersion && h.IntN(2) == 0 {
			for _, k := range s.Mesh.Gossip {
				c.Join.Copies = append(c.Join.Copies, copyOf(k.Epoch, j.key.Epoch))
			}
		}
	}
	return c
}

func (h *history) someone() *joiner {
	if len(h.joiners) == 0 {
		h.joiners = append(h.joiners, newJoiner("hub", "hub"))
	}
	return h.joiners[h.IntN(len(h.joiners))]
}

// who is a live node of a kind, if there is one.
func (h *history) who(s *State, is func(Node) bool) mesh.NodeID {
	ids := slices.DeleteFunc(s.ids(), func(id mesh.NodeID) bool { return !is(s.Nodes[id]) })
	if len(ids) == 0 {
		return h.member(s)
	}
	return ids[h.IntN(len(ids))]
}

// member is mostly a live one.
func (h *history) member(s *State) mesh.NodeID {
	if ids := s.ids(); len(ids) > 0 && h.IntN(10) > 0 {
		return ids[h.IntN(len(ids))]
	}
	return h.someone().id()
}

func (h *history) token() invite.Token {
	if len(h.invites) == 0 {
		return newInvite(0)
	}
	return h.invites[max(0, len(h.invites)-1-h.IntN(4))]
}

func (h *history) pairs(s *State) (out []Pair) {
	for range max(0, h.IntN(5)-2) {
		out = append(out, Pair{h.member(s), h.member(s)})
	}
	return out
}

func (h *history) tags() []string {
	tags := []string{"hub", "site", "branch"}
	h.Shuffle(len(tags), func(i, j int) { tags[i], tags[j] = tags[j], tags[i] })
	return tags
}

func (h *history) uplink() string { return []string{"wan", "lte", "", "isp2"}[h.IntN(4)] }

func (h *history) prefixes() (out []netip.Prefix) {
	for range h.IntN(3) {
		a := netip.AddrFrom4([4]byte{192, 168, byte(h.IntN(256)), 0})
		out = append(out, netip.PrefixFrom(a, 22+h.IntN(4)).Masked())
	}
	return out
}

// TestHistories runs random histories and checks against a slow model that no
// address is ever given to two nodes (I3, B37), that every token admits at
// most as many as it says (B1), and that two replicas and one that restarts
// from snapshots agree at every index.
func TestHistories(t *testing.T) {
	t.Run("unsigned", func(t *testing.T) { testHistories(t, initCommand, 4, 260) })
	t.Run("signed", func(t *testing.T) { testHistories(t, signedInit, 1, 500) })
	t.Run("sealed", func(t *testing.T) { testHistories(t, sealedInit, 1, 500) })
}

func testHistories(t *testing.T, init func(*joiner) Command, seeds uint64, steps int) {
	for seed := range seeds {
		h := newHistory(seed)
		w := &world{TB: t, s: New(), root: h.someone(), rare: 10}
		first := w.signed(init(w.root))
		w.must(first)
		replica, _ := Apply(nil, 1, first)
		given := map[netip.Addr]mesh.NodeID{}
		admitted, allowed := map[string]int{}, map[string]int{}
		joined, left, policies := 0, 0, 0
		for step := range steps {
			c := w.signed(h.next(w.s))
			known := false
			if c.Join != nil {
				_, known = w.s.Nodes[c.Join.Identity.NodeID()]
			}
			r := w.apply(c)

			b, err := EncodeCommand(c)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			decoded, err := DecodeCommand(b)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			var r2 Result
			replica, r2 = Apply(replica, w.index, decoded)
			whole := !w.signs() || step%8 == 0 // the head of the trail tells them apart at once
			if replica.Audit.Head != w.s.Audit.Head || whole && Hash(replica) != Hash(w.s) || (r.Refused == nil) != (r2.Refused == nil) {
				t.Fatalf("seed %d: replicas differ at %d", seed, w.index)
			}
			if h.IntN(40) == 0 {
				replica = restored(t, replica)
			}
			if r.Refused != nil {
				continue
			}
			switch {
			case c.AddToken != nil:
				allowed[c.AddToken.Token.ID] = c.AddToken.Token.Uses
			case c.RemoveNode != nil:
				left++
				checkForgotten(t, w.s, c.RemoveNode.Node)
			case c.SetTopology != nil, c.SetPairs != nil, c.SetNode != nil, c.SetDrain != nil:
				policies++
				if w.signs() {
					break // asked again, it is the same request
				}
				again, _ := Apply(w.s, w.index+1, c)
				checkSame(t, w.s, again, c)
			case c.Join != nil && !known:
				joined++
				admitted[c.Join.Token]++
			}
			if r.Node != nil {
				for _, a := range []netip.Addr{r.Node.Addr4, r.Node.Addr6} {
					if owner, taken := given[a]; taken && owner != r.Node.ID {
						t.Fatalf("seed %d: %s was given to %s and to %s", seed, a, owner, r.Node.ID)
					}
					given[a] = r.Node.ID
				}
			}
		}
		for id, n := range admitted {
			if left := w.s.Tokens[id].Uses; n > allowed[id] || left != 0 && n+left != allowed[id] {
				t.Errorf("seed %d: token %s allows %d, admitted %d, has %d left", seed, id, allowed[id], n, left)
			}
		}
		if joined < 12 || left < 3 || policies < 10 {
			t.Errorf("seed %d: only %d joins, %d departures and %d changes of policy; the test proves little", seed, joined, left, policies)
		}
	}
}

func restored(t testing.TB, s *State) *State {
	t.Helper()
	b, err := Snapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Restore(b)
	if err != nil {
		t.Fatal(err)
	}
	if Hash(again) != Hash(s) {
		t.Fatal("a restored state differs")
	}
	return again
}

// A token with n uses admits exactly n of many that race with it.
func TestTokenIsUsedExactly(t *testing.T) {
	for uses := 1; uses <= 4; uses++ {
		w := newWorld(t)
		inv := w.addToken(1, func(t *Token) { t.Uses = uses })
		admitted := 0
		for i := range 20 {
			j := newJoiner(fmt.Sprintf("n%d", i), fmt.Sprint(i))
			for range 2 { // every client asks twice
				if r := w.apply(j.join(inv)); r.Refused == nil {
					admitted++
				} else if r.Refused.Code != CodeTokenUsed {
					t.Errorf("%v", r.Refused)
				}
			}
		}
		if admitted != 2*uses || len(w.s.Nodes) != 1+uses {
			t.Errorf("%d uses: %d answers, %d nodes", uses, admitted, len(w.s.Nodes))
		}
	}
}
