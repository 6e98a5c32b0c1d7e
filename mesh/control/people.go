package control

import (
	"context"
	"net"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// A Principal is who called by transport.API, as the state and the clock have
// it at the moment.
type Principal struct {
	ID      mesh.NodeID // of a node, or the one that an operator's key would have
	Name    string      // of the node or the operator
	Role    store.Role
	Expires time.Time // when an operator's right ends, or ended; zero: never
	// Stale: a node without a certificate that is valid now.
	Stale bool
}

// API gives the connections of people and programs that call this node from
// elsewhere, from now on until it is closed or the plane is.
func (p *Plane) API() net.Listener { return apiListener{p.listener.Stream(transport.API)} }

// DialAPI connects to the API of another node, as this one.
func (p *Plane) DialAPI(ctx context.Context, id mesh.NodeID) (net.Conn, error) {
	conn, err := p.dialer.Dial(ctx, id, transport.API)
	if err != nil { // not a nil *tls.Conn in an interface
		return nil, err
	}
	return conn, nil
}

// Principal tells who is at the other end of a connection that API gave; the
// zero Principal: nobody.
func (p *Plane) Principal(c net.Conn) Principal {
	a, ok := c.(apiConn)
	if !ok {
		return Principal{}
	}
	now, state := time.Now(), p.State()
	tls := a.ConnectionState()
	peer, known := p.dialer.Trust.Peer(&tls, now)
	if !known {
		return Principal{}
	}
	who := Principal{ID: peer.ID, Name: nameIn(state, peer.ID), Role: state.RoleOf(peer.Key, now)}
	if name, operator := operatorOf(state, peer.Key); operator {
		who.Name, who.Expires = name, state.Operators[name].Expires
		return who // whose certificate is their own
	}
	who.Stale = peer.Stale
	if p.isBanned(peer.ID) {
		who.Role = store.RoleRevoked
	}
	return who
}

// operatorOf finds the operator without a node that has a key.
func operatorOf(s *store.State, key mesh.IdentityKey) (name string, known bool) {
	for name, o := range s.Operators {
		if o.Key == key {
			return name, true
		}
	}
	return "", false
}

// cutOperators closes what those have open who are operators no more. Whose
// right ends by the clock is cut by who serves the API.
func (p *Plane) cutOperators(before, next *store.State) {
	now := time.Now()
	lost := func(key mesh.IdentityKey) bool {
		had, has := before.RoleOf(key, now), next.RoleOf(key, now)
		return had&^has&(store.RoleReader|store.RoleOperator) != 0
	}
	for _, o := range before.Operators {
		if lost(o.Key) {
			p.listener.CutStream(transport.API, o.Key.NodeID())
		}
	}
	for id, n := range before.Nodes {
		if len(n.Roles) > 0 && lost(n.Identity) {
			p.listener.CutStream(transport.API, id)
		}
	}
}
