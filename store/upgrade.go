package store

import (
	"maps"
	"slices"

	"guywire/mesh"
)

// upgrade gives a state of versions 1 and 2 the form of version 3, as
// SetVersion does it in the log; one of version 3 is given back as it is.
//
// Nothing that was promised is lost, except that not every member is an
// operator any more: the mesh's first node is, or the oldest one that is left,
// and gives the role on. Tokens that named no prefixes go on to allow any. The
// audit trail begins at the hash of the old state.
func upgrade(s *State) *State {
	if s.Mesh.Version >= signedVersion || s.Mesh.ID.IsZero() {
		return s
	}
	next := *s
	next.Audit = Audit{Head: Hash(s)}
	next.Mesh.Version = signedVersion
	next.Mesh.adoptCA()
	next.Nodes, next.Tokens = maps.Clone(s.Nodes), maps.Clone(s.Tokens)
	if first := s.first(); !first.IsZero() {
		n := next.Nodes[first]
		n.Roles = []NodeRole{NodeOperator}
		next.Nodes[first] = n
	}
	for id, n := range next.Nodes {
		n.EverVoted = n.Voter
		next.Nodes[id] = n
	}
	for id, t := range next.Tokens {
		t.AnyPrefix = len(t.Prefixes) == 0
		next.Tokens[id] = t
	}
	return &next
}

// first is the node that made the mesh, the only one that did not join; or the
// oldest; zero: there is none.
func (s *State) first() mesh.NodeID {
	ids := s.ids()
	if len(ids) == 0 {
		return mesh.NodeID{}
	}
	return slices.MinFunc(ids, func(a, b mesh.NodeID) int {
		x, y := s.Nodes[a], s.Nodes[b]
		switch {
		case x.Request == "" && y.Request != "":
			return -1
		case x.Request != "" && y.Request == "":
			return 1
		default:
			return x.Joined.Compare(y.Joined)
		}
	})
}

// Recovered gives the state with which a mesh begins again when its log is
// lost: s, and then the signed command Recover of one node, which becomes the
// only voter and an operator. The generation grows, so that whoever still has
// the lost log is known to be behind. A node that was no voter has no key of a
// CA: CADue says so. A state before version 3 is upgraded.
//
// It is Apply outside the log, and is refused in the same way.
func Recovered(s *State, c Command) (*State, Result) {
	if s == nil {
		s = New()
	}
	next := *upgrade(s)
	next.Index++
	c.Now = c.Now.UTC().Round(0)
	refused := next.recover(c)
	if refused != nil {
		return s, Result{Index: s.Index, Refused: refused}
	}
	n := next.Nodes[c.Recover.Node]
	return &next, Result{Index: next.Index, Node: &n, Record: next.record(c, c.Author, OutcomeOK)}
}

func (s *State) recover(c Command) *Refusal {
	if s.Mesh.ID.IsZero() {
		return refuse(CodeNotFound, "there is no mesh here to recover; make one: meshctl init")
	}
	if c.Recover == nil || c.action() != "recover" || !validTime(c.Now) {
		return refuse(CodeInvalid, "only the command recover recovers a mesh; run meshctl raft recover")
	}
	if !c.signed(s.Mesh.ID) {
		return refuseUnsigned()
	}
	n, refused := s.live(c.Recover.Node)
	if refused != nil {
		return refused
	}
	if n.Identity != c.Author {
		return refuse(CodeForbidden, "only the node itself may recover the mesh from its state; run meshctl on that node")
	}
	if c.Recover.Generation != s.Mesh.Generation+1 {
		return refuse(CodeInvalid, "after generation %d comes %d, not %d; run meshctl raft recover again", s.Mesh.Generation, s.Mesh.Generation+1, c.Recover.Generation)
	}
	s.Mesh.Generation++
	s.Mesh.CADue = s.Mesh.CADue || !n.Voter
	s.Nodes = maps.Clone(s.Nodes)
	for id, other := range s.Nodes {
		other.Voter, other.Boot = false, Boot{}
		s.Nodes[id] = other
	}
	n.Voter, n.EverVoted, n.Boot, n.Roles = true, true, Boot{}, []NodeRole{NodeOperator}
	s.put(n)
	return nil
}

// NextVersion is the version after that of the state: what SetVersion may set.
func (s *State) NextVersion() int { return max(s.Mesh.Version, signedVersion-1) + 1 }

func (s *State) setVersion(c SetVersion) *Refusal {
	if next := s.NextVersion(); c.Version != next {
		return refuse(CodeVersion, "the mesh is at version %d, after which comes %d, not %d", next-1, next, c.Version)
	}
	if c.Version == signedVersion {
		*s = *upgrade(s)
	}
	s.Mesh.Version = c.Version
	return nil
}

func (s *State) registerBoot(c RegisterBoot) (*Node, *Refusal) {
	n, refused := s.live(c.Node)
	if refused != nil {
		return nil, refused
	}
	switch {
	case c.Boot.N == 0 || c.Boot.Instance.IsZero():
		return nil, refuse(CodeInvalid, "a voter's log was opened once at least")
	case c.Boot.N < n.Boot.N:
		return nil, refuse(CodeStaleBoot, "the log of %s is an old copy: it was opened %d times and the mesh knows of %d; let it begin without that log", n.Name, c.Boot.N, n.Boot.N)
	case c.Boot.N == n.Boot.N && c.Boot.Instance != n.Boot.Instance:
		return nil, refuse(CodeStaleBoot, "two machines run with the identity and the log of %s; stop one, and let it join as a node of its own with an empty state directory", n.Name)
	}
	n.Boot = c.Boot
	return s.put(n), nil
}
