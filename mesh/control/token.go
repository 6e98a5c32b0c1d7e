package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/store"
)

// TokenRequest is what a token shall allow.
type TokenRequest struct {
	Uses     int           // 0: one
	Lifetime time.Duration // 0: a day
	Name     string        // required name of the node; empty: any
	Prefixes []netip.Prefix
	Tags     []string

	AnyPrefix bool             // the joiner may claim any free prefix; Prefixes is empty
	Roles     []store.NodeRole // of the node
	Site      string           // of the node
}

// CreateToken makes a token, on a node with the operator role. The text admits
// a node: it is to be shown once and never logged.
func (p *Plane) CreateToken(ctx context.Context, request TokenRequest) (text string, token store.Token, err error) {
	for {
		if err := p.awaitIssuer(ctx); err != nil {
			return "", store.Token{}, err
		}
		secret, err := p.newToken(request)
		if err != nil {
			return "", store.Token{}, err
		}
		_, err = p.Operate(ctx, store.Command{AddToken: &store.AddToken{Token: store.Token{
			ID: secret.ID, Key: secret.Public(), Expires: secret.Expires, Uses: cmp.Or(request.Uses, 1),
			Name: request.Name, Prefixes: request.Prefixes, Tags: request.Tags,
			AnyPrefix: request.AnyPrefix, Roles: request.Roles, Site: request.Site,
		}}})
		if err != nil {
			return "", store.Token{}, err
		}
		state := p.State()
		if !slices.ContainsFunc(tokenPins(state), func(pin [32]byte) bool { return !secret.Pinned(pin) }) {
			return secret.Text(), state.Tokens[secret.ID], nil
		}
		// This node did not know yet of a CA that the log had.
		if err := p.RevokeToken(ctx, secret.ID); err != nil {
			return "", store.Token{}, err
		}
	}
}

func (p *Plane) newToken(request TokenRequest) (invite.Token, error) {
	state := p.State()
	servers := tokenServers(state, p.id)
	if len(servers) == 0 {
		return invite.Token{}, errors.New("no node of the mesh has a control address that others can reach, so nobody could join; set control.advertise on one that has")
	}
	var random [invite.RandomSize]byte
	rand.Read(random[:]) // never fails since Go 1.24
	expires := time.Now().Add(cmp.Or(request.Lifetime, 24*time.Hour))
	return invite.New(random, state.Mesh.ID, tokenPins(state), servers, expires)
}

// tokenPins are those of the CA that issues certificates and of the one that
// will. Not of those before: their keys may be why they were replaced.
func tokenPins(state *store.State) (pins [][32]byte) {
	if state.Mesh.Version == 0 {
		pins = state.Pins()
		return pins[max(0, len(pins)-invite.MaxPins):]
	}
	for _, ca := range state.Issuers() {
		pins = append(pins, ca.Pin)
	}
	return pins
}

// tokenServers are up to three control addresses, of different nodes first:
// this node's, then the voters', then the others', oldest first. One of them is
// for who has IPv4 only, one for who has IPv6 only, and one for whose network lets
// out what looks like the web, as far as there are such.
func tokenServers(state *store.State, self mesh.NodeID) []netip.AddrPort {
	ids := oldest(state)
	slices.SortStableFunc(ids, func(a, b mesh.NodeID) int {
		return cmp.Or(cmp.Compare(rank(a == self), rank(b == self)), cmp.Compare(rank(state.Nodes[a].Voter), rank(state.Nodes[b].Voter)))
	})
	var all []netip.AddrPort
	for nth := range store.MaxControl {
		for _, id := range ids {
			if control := state.Nodes[id].Control; nth < len(control) && !slices.Contains(all, control[nth]) {
				all = append(all, control[nth])
			}
		}
	}
	servers := slices.Clone(all[:min(len(all), invite.MaxServers)])
	for _, serves := range joinersNeeds {
		i := slices.IndexFunc(all, serves)
		if i < 0 || slices.ContainsFunc(servers, serves) {
			continue
		}
		for last := len(servers) - 1; last >= 0; last-- {
			if rest := slices.Delete(slices.Clone(servers), last, last+1); serveAlike(rest, servers) {
				servers = append(rest, all[i])
				break
			}
		}
	}
	return servers
}

// joinersNeeds are what different joiners need of at least one server: no more than
// a token has places for.
var joinersNeeds = [invite.MaxServers]func(netip.AddrPort) bool{
	func(a netip.AddrPort) bool { return a.Addr().Is4() },
	func(a netip.AddrPort) bool { return a.Addr().Is6() },
	func(a netip.AddrPort) bool { return a.Port() == 443 },
}

// serveAlike reports whether a list serves all whom another serves.
func serveAlike(list, other []netip.AddrPort) bool {
	for _, serves := range joinersNeeds {
		if slices.ContainsFunc(other, serves) && !slices.ContainsFunc(list, serves) {
			return false
		}
	}
	return true
}

// Tokens are those that the mesh knows, by id. None of them admits anyone:
// the secrets are not there.
func (p *Plane) Tokens() []store.Token {
	tokens := make([]store.Token, 0, len(p.State().Tokens))
	for _, t := range p.State().Tokens {
		tokens = append(tokens, t)
	}
	slices.SortFunc(tokens, func(a, b store.Token) int { return cmp.Compare(a.ID, b.ID) })
	return tokens
}

// RevokeToken makes a token unusable, on a node with the operator role.
func (p *Plane) RevokeToken(ctx context.Context, id string) error {
	_, err := p.Operate(ctx, store.Command{RevokeToken: &store.RevokeToken{ID: id}})
	return err
}
