package store

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// init makes the mesh. Its authority is that there is nothing yet.
func (s *State) init(command Command) (*Node, *Refusal) {
	c, now := *command.Init, command.Now
	if !s.Mesh.ID.IsZero() {
		return nil, refuse(CodeInitialised, "this node is in the mesh %s already; leave it first: meshctl leave", s.Mesh.Name)
	}
	m := c.Settings
	if m.ID.IsZero() {
		return nil, refuse(CodeInvalid, "the mesh has no id; run meshctl init again")
	}
	if err := mesh.CheckName(m.Name); err != nil {
		return nil, refuse(CodeNameInvalid, "mesh %s; choose another", err)
	}
	if refused := checkPools(m.Pool4, m.Pool6); refused != nil {
		return nil, refused
	}
	if len(m.CA) > MaxRoots || len(m.Roots) > MaxRoots {
		return nil, refuse(CodeInvalid, "a mesh may have %d CA certificates; leave some out", MaxRoots)
	}
	if !m.Topology.IsZero() {
		return nil, refuse(CodeInvalid, "a topology is chosen once there is a mesh; run meshctl init, then meshctl topology set")
	}
	sealed := m.Version >= GossipVersion
	if !sealed && len(m.Secret) != SecretSize || sealed && m.Secret != nil {
		return nil, refuse(CodeInvalid, "before version %d the secret of a mesh has %d bytes, and from there on it is sealed; this one has %d", GossipVersion, SecretSize, len(m.Secret))
	}
	if sealed != (c.Copy != nil) || sealed == c.Check.IsZero() {
		return nil, refuse(CodeInvalid, "a mesh begins with a gossip key from version %d on, and its first node with a copy of it", GossipVersion)
	}
	for _, root := range m.Roots {
		if len(root) > MaxRootBytes {
			return nil, refuse(CodeInvalid, "a CA certificate of %d bytes is longer than %d; make a smaller one", len(root), MaxRootBytes)
		}
	}
	if m.Generation != 0 || len(m.Authorities) > 0 || m.CADue || m.CacheMaxAge != 0 || m.Voters != 0 || m.beyond3() {
		return nil, refuse(CodeInvalid, "these settings are chosen once there is a mesh; run meshctl init, then change them")
	}
	signed := m.Version != 0
	switch {
	case !signed && command.since() >= signedVersion:
		return nil, refuse(CodeInvalid, "a mesh that says no version is one of version %d, and this asks for more; run meshctl init again", signedVersion-1)
	case !signed:
	case m.Version < signedVersion:
		return nil, refuse(CodeVersion, "a mesh begins at version %d, not %d; run meshctl init again", signedVersion, m.Version)
	case command.Author != c.Identity || !command.signed(m.ID):
		return nil, refuseUnsigned()
	case len(m.CA) == 0 || len(m.CA) != len(m.Roots):
		return nil, refuse(CodeInvalid, "a mesh begins with a CA: a pin and a certificate for each; run meshctl init again")
	}
	m.CA, m.Roots = clone(m.CA), clone(m.Roots)
	if !sealed {
		m.Secret = append([]byte{}, m.Secret...)
	}
	for i, root := range m.Roots {
		m.Roots[i] = append([]byte{}, root...)
	}
	first := Node{Name: c.Name, Identity: c.Identity, Keys: []Key{c.Key}, Joined: now, Site: c.Site}
	if signed {
		m.adoptCA()
		if err := checkAuthorities(m.Authorities); err != nil {
			return nil, refuse(CodeInvalid, "the CAs of the mesh are not usable; run meshctl init again")
		}
		first.Roles, first.EverVoted = []NodeRole{NodeOperator}, true
	}
	s.Mesh = m
	n, refused := s.admit(first, c.Prefixes)
	if refused != nil {
		return nil, refused
	}
	if refused := cmp.Or(checkControl(c.Control), checkSite(c.Site)); refused != nil {
		return nil, refused
	}
	if sealed {
		s.addGossip(1, c.Check, GossipCurrent, now)
		if n.Copies, refused = s.takeCopies(n, []Copy{*c.Copy}); refused != nil {
			return nil, refused
		}
		if len(n.Copies) == 0 {
			return nil, refuse(CodeInvalid, "the first gossip key of a mesh is that of epoch 1")
		}
	}
	n.Control = clone(c.Control)
	n.Voter = true // the log has one member, and this is it
	return s.put(n), nil
}

// join admits a node. Proofs come first: who cannot prove anything learns
// nothing about tokens, names or addresses.
func (s *State) join(c Join, now time.Time) (*Node, *Refusal) {
	if refused := s.checkTranscript(c); refused != nil {
		return nil, refused
	}
	id := c.Identity.NodeID()
	if old, known := s.Nodes[id]; known {
		if old.Identity == c.Identity && old.Request == c.Request {
			return &old, nil // the answer was lost; the token is not consumed twice
		}
		return nil, refuse(CodeIdentityTaken, "this machine's identity is the member %s already; leave first (meshctl leave), or if it is a copy of that machine, give it an empty state directory", old.Name)
	}
	if old, gone := s.Removed[id]; gone {
		if old.Revoked {
			return nil, refuse(CodeRevoked, "this machine was revoked as %s and its identity is refused for ever; reinstall it with an empty state directory and a new token", old.Name)
		}
		return nil, refuse(CodeIdentityTaken, "this machine's identity left the mesh as %s and is not taken back; join with an empty state directory", old.Name)
	}
	token, refused := s.checkToken(c, now)
	if refused != nil {
		return nil, refused
	}
	if token.Name != "" && c.Name != token.Name {
		return nil, refuse(CodeNameInvalid, "this token admits only a node named %s; join with --name %s", token.Name, token.Name)
	}
	free := token.AnyPrefix || len(token.Prefixes) == 0 && s.Mesh.Version < signedVersion
	var beyond []string
	for _, p := range c.Prefixes {
		if !free && !slices.ContainsFunc(token.Prefixes, func(allowed prefix) bool { return contains(allowed, p) }) {
			beyond = append(beyond, p.String())
		}
	}
	if len(beyond) > 0 {
		return nil, refuse(CodePrefixRefused, "this token does not allow %s, which this machine is to announce; leave that out, or ask for another token: meshctl token create --prefix %s",
			strings.Join(beyond, ", "), strings.Join(beyond, " --prefix "))
	}
	n, refused := s.admit(Node{
		Name: c.Name, Identity: c.Identity, Keys: []Key{c.Key}, Tags: token.Tags, Roles: token.Roles, Site: token.Site,
		Joined: now, Request: c.Request,
	}, c.Prefixes)
	if refused != nil {
		return nil, refused
	}
	if n.Copies, refused = s.takeCopies(n, c.Copies); refused != nil {
		return nil, refused
	}
	if _, reserved := s.Reserved[n.Name]; reserved {
		s.release(n.Name)
	}
	token.Uses--
	s.putToken(token)
	return s.put(n), nil
}

// checkTranscript ties the command to what the joiner signed: this mesh, this
// token, and every fact about itself.
func (s *State) checkTranscript(c Join) *Refusal {
	t, err := invite.DecodeTranscript(c.Transcript)
	if err != nil {
		return refuse(CodeTokenProof, "the join request is malformed; run the same version of Guywire on both sides")
	}
	if t.Mesh != s.Mesh.ID {
		return refuse(CodeTokenProof, "the token is for another mesh; ask for one of this mesh: meshctl token create")
	}
	if t.Token != c.Token || t.Identity != c.Identity || t.Epoch != c.Key.Epoch || t.Key != c.Key.Public ||
		t.Name != c.Name || t.Request != c.Request || !slices.Equal(t.Prefixes, c.Prefixes) {
		return refuse(CodeTokenProof, "the join request says something else than what was signed; join again")
	}
	if !invite.VerifyIdentity(c.Identity, c.Transcript, c.Proof) {
		return refuse(CodeTokenProof, "the joiner did not prove its identity key; join again")
	}
	if c.Request == "" || !printable(c.Request) {
		return refuse(CodeInvalid, "the join request has no usable request id; join again")
	}
	return nil
}

func (s *State) checkToken(c Join, now time.Time) (Token, *Refusal) {
	token, ok := s.Tokens[c.Token]
	switch {
	case !ok:
		return Token{}, refuse(CodeTokenUnknown, "this mesh has no such token, or it was revoked; ask for a new one: meshctl token create")
	case !invite.VerifyToken(token.Key, c.Transcript, c.Signature):
		return Token{}, refuse(CodeTokenProof, "the joiner does not hold token %s; paste the whole token again", token.ID)
	case !now.Before(token.Expires):
		return Token{}, refuse(CodeTokenExpired, "token %s expired at %s; ask for a new one: meshctl token create", token.ID, token.Expires.Format(time.RFC3339))
	case s.Outlived(token):
		return Token{}, refuse(CodeTokenExpired, "token %s was made before the CA of the mesh was replaced, so it cannot tell a member from a stranger; ask for a new one: meshctl token create", token.ID)
	case token.Uses < 1:
		return Token{}, refuse(CodeTokenUsed, "token %s has been used; ask for a new one: meshctl token create", token.ID)
	}
	return token, nil
}

// admit completes a new member: checks its name and keys, gives it addresses
// and the prefixes it claims. It writes nothing.
func (s *State) admit(n Node, prefixes []prefix) (Node, *Refusal) {
	if invite.CheckIdentityKey(n.Identity) != nil {
		return Node{}, refuse(CodeInvalid, "the identity key is unusable; start with an empty state directory")
	}
	n.ID = n.Identity.NodeID()
	if s.Mesh.Version >= GossipVersion { // before, voters would differ about it
		for name, o := range s.Operators {
			if o.Key == n.Identity {
				return Node{}, refuse(CodeIdentityTaken, "this machine's identity is the key of the operator %s; start with an empty state directory", name)
			}
		}
	}
	if refused := checkNodeName(n.Name); refused != nil {
		return Node{}, refused
	}
	if other, taken := s.NodeByName(n.Name); taken {
		return Node{}, refuse(CodeNameTaken, "the name %s is taken by node %s; choose another with --name, or if this machine replaces that one, remove it first: meshctl revoke %s", n.Name, other.ID, n.Name)
	}
	if refused := s.checkKey(n.Keys[0]); refused != nil {
		return Node{}, refused
	}
	var refused *Refusal
	if n.Prefixes, refused = s.claim(n.ID, prefixes, nil); refused != nil {
		return Node{}, refused
	}
	if r, reserved := s.Reserved[n.Name]; reserved {
		n.Addr4, n.Addr6 = r.Addr4, r.Addr6
	} else if n.Addr4, n.Addr6, refused = s.allocate(); refused != nil {
		return Node{}, refused
	}
	return n, nil
}

// checkKey refuses a WireGuard key that proves nothing, or that any node has
// or had: two holders of one key would take each other's tunnels.
func (s *State) checkKey(k Key) *Refusal {
	if k.Epoch == 0 || invite.CheckWireGuardKey(k.Public) != nil {
		return refuse(CodeInvalid, "the WireGuard key is unusable; start with an empty state directory")
	}
	same := func(other Key) bool { return other.Public == k.Public }
	for _, n := range s.Nodes {
		if slices.ContainsFunc(n.Keys, same) {
			return refuse(CodeIdentityTaken, "this WireGuard key is another member's; if this machine is a copy, give it an empty state directory")
		}
	}
	for _, t := range s.Removed {
		if slices.ContainsFunc(t.Keys, same) {
			return refuse(CodeIdentityTaken, "this WireGuard key belonged to a node that is gone; give this machine an empty state directory")
		}
	}
	return nil
}

func checkNodeName(name string) *Refusal {
	if err := mesh.CheckName(name); err != nil {
		return refuse(CodeNameInvalid, "node %s; choose another with --name", err)
	}
	if _, err := mesh.ParseNodeID(name); err == nil {
		return refuse(CodeNameInvalid, "the name %s reads as a node id; choose another with --name", name)
	}
	return nil
}
