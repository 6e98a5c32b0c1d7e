package store

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

var (
	testNow  = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	testMesh = mesh.MeshID{0xaa, 1}

	testPool4 = netip.MustParsePrefix("10.86.0.0/16")
)

// A joiner is a machine with its keys, derived from its name: "oslo#2" is
// another machine that wants the name oslo.
type joiner struct {
	name     string
	private  ed25519.PrivateKey
	identity mesh.IdentityKey
	key      Key
	prefixes []netip.Prefix
	request  string
}

var (
	machines = map[mesh.NodeID]joiner{} // all that were ever made, so that each can sign
	made     = map[string]joiner{}      // by seed: keys take their time
)

func newJoiner(name, seed string, prefixes ...string) *joiner {
	j, known := made[seed]
	if !known {
		sum := sha256.Sum256([]byte(seed))
		j = joiner{private: ed25519.NewKeyFromSeed(sum[:]), request: "r-" + seed}
		j.identity = mesh.IdentityKey(j.private.Public().(ed25519.PublicKey))
		sum = sha256.Sum256(sum[:])
		k, err := ecdh.X25519().NewPrivateKey(sum[:])
		if err != nil {
			panic(err)
		}
		j.key = Key{Epoch: 1, Public: mesh.WireGuardKey(k.PublicKey().Bytes())}
		made[seed], machines[j.id()] = j, j
	}
	j.name = name
	for _, p := range prefixes {
		j.prefixes = append(j.prefixes, netip.MustParsePrefix(p))
	}
	return &j
}

func (j *joiner) id() mesh.NodeID { return j.identity.NodeID() }

func (j *joiner) transcript(token invite.Token) invite.Transcript {
	return invite.Transcript{
		Mesh: testMesh, Token: token.ID, Exporter: [32]byte{1}, Identity: j.identity, Epoch: j.key.Epoch, Key: j.key.Public,
		Name: j.name, Prefixes: j.prefixes, Request: j.request,
	}
}

func (j *joiner) join(token invite.Token) Command {
	b, err := j.transcript(token).Encode()
	if err != nil {
		panic(err)
	}
	return Command{Version: Version, Now: testNow, Join: &Join{
		Token: token.ID, Transcript: b, Signature: token.Sign(b),
		Proof: invite.ProveIdentity(func(m []byte) []byte { return ed25519.Sign(j.private, m) }, b),
		Name:  j.name, Identity: j.identity, Key: j.key, Prefixes: j.prefixes, Request: j.request,
	}}
}

func newInvite(seed int) invite.Token {
	var random [invite.RandomSize]byte
	copy(random[:], fmt.Sprintf("%05d-secret-of-a-token", seed))
	t, err := invite.New(random, testMesh, [][32]byte{{1}}, []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:8686")}, testNow.Add(time.Hour))
	if err != nil {
		panic(err)
	}
	return t
}

func tokenOf(inv invite.Token) Token {
	return Token{ID: inv.ID, Key: inv.Public(), Expires: inv.Expires, Uses: 1}
}

// A world is a state under test with the members that it began with.
type world struct {
	testing.TB
	s     *State
	index uint64
	root  *joiner // first node; its operator has authority
	rare  uint64  // look at all rules only at every so many commands; 0: at each
	asked uint64  // signed requests until now
}

func (w *world) operator() Authority { return Authority{Operator: true, Node: w.root.id()} }

// initCommand makes a mesh of version 2, signedInit one of version 3, sealedInit
// the newest.
func initCommand(root *joiner) Command {
	return Command{Version: Version, Now: testNow, By: Authority{Operator: true, Node: root.id()}, Init: &Init{
		Settings: Settings{
			ID: testMesh, Name: "acme", Pool4: testPool4, Pool6: RandomULA([5]byte{1, 2, 3, 4, 5}),
			CA: [][32]byte{{1}}, Roots: [][]byte{{0x30}}, Secret: make([]byte, SecretSize),
		},
		Name: root.name, Identity: root.identity, Key: root.key, Prefixes: root.prefixes,
		Control: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:8686")},
	}}
}

func signedInit(root *joiner) Command {
	c := initCommand(root)
	c.Init.Settings.Version = signedVersion
	return c
}

func sealedInit(root *joiner) Command {
	c := signedInit(root)
	c.Init.Settings.Version, c.Init.Settings.Secret = GossipVersion, nil
	c.Init.Check, c.Init.Copy = Digest{1}, new(copyOf(1, root.key.Epoch))
	return c
}

// copyOf is a copy of a gossip key that looks like one.
func copyOf(epoch, key mesh.Epoch) Copy {
	return Copy{Epoch: epoch, Key: key, Sealed: bytes.Repeat([]byte{byte(epoch), byte(key)}, CopySize/2)}
}

func newWorld(t testing.TB) *world { return newWorldOf(t, sealedInit) }

// oldWorld is a mesh of version 2, where nobody signs.
func oldWorld(t testing.TB) *world { return newWorldOf(t, initCommand) }

func newWorldOf(t testing.TB, init func(*joiner) Command) *world {
	w := &world{TB: t, s: New(), root: newJoiner("hub", "hub", "192.168.1.0/24")}
	w.must(init(w.root))
	return w
}

// signs reports whether commands are signed in this world.
func (w *world) signs() bool { return w.s.Mesh.Version >= signedVersion }

// signed signs in the name of By, where this is what the mesh expects.
func (w *world) signed(c Command) Command {
	wanted := w.signs() || c.SetVersion != nil || c.Init != nil && c.Init.Settings.Version != 0
	j, known := machines[c.By.Node]
	if !wanted || c.Join != nil || !c.Author.IsZero() || !known {
		return c
	}
	w.asked++
	c.Author, c.After = j.identity, w.s.Index
	binary.BigEndian.PutUint64(c.Request[:], w.asked)
	return signAs(w, &j, c)
}

func signAs(t testing.TB, j *joiner, c Command) Command {
	t.Helper()
	id := testMesh
	if c.Init != nil {
		id = c.Init.Settings.ID
	}
	signed, err := SignCommand(c, id, func(m []byte) []byte { return ed25519.Sign(j.private, m) })
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// apply signs, applies and checks what must hold after every command.
func (w *world) apply(c Command) Result {
	w.Helper()
	c = w.signed(c)
	w.index++
	before, hash, thorough := w.s, [32]byte{}, w.index%max(1, w.rare) == 0
	if thorough {
		hash = Hash(before)
	}
	next, r := Apply(before, w.index, c)
	if thorough {
		if Hash(before) != hash {
			w.Fatalf("command %d changed the old state", w.index)
		}
		if err := next.check(); err != nil {
			w.Fatalf("after command %d: %v", w.index, err)
		}
		if refused := Check(before, c); (refused == nil) != (r.Refused == nil) {
			w.Fatalf("command %d: %v, and %v in advance", w.index, r.Refused, refused)
		}
	}
	repeated := r.Record != nil && r.Record.Outcome == OutcomeRepeated
	if next.Index != w.index || (r.Index != w.index) != repeated {
		w.Fatalf("index %d and result %d after command %d", next.Index, r.Index, w.index)
	}
	if r.Refused != nil || repeated {
		same := *before
		same.Index, same.Audit, same.Answered = w.index, next.Audit, next.Answered
		if Hash(&same) != Hash(next) {
			w.Fatalf("command %d did nothing and changed the state", w.index)
		}
	}
	if r.Refused != nil && (r.Refused.Message == "" || r.Node != nil) {
		w.Fatalf("command %d: %+v", w.index, r)
	}
	if r.Record != nil && (r.Record.Head() != next.Audit.Head || r.Record.Prev != before.Audit.Head && before.Mesh.Version != 0) {
		w.Fatalf("command %d: its record does not continue the trail", w.index)
	}
	w.s = next
	return r
}

func (w *world) must(c Command) Result {
	w.Helper()
	r := w.apply(c)
	if r.Refused != nil {
		w.Fatalf("refused: %s: %s", r.Refused.Code, r.Refused.Message)
	}
	return r
}

func (w *world) refused(code string, c Command) {
	w.Helper()
	if r := w.apply(c); r.Refused == nil || r.Refused.Code != code {
		w.Errorf("got %+v, want a refusal %s", r.Refused, code)
	}
}

// by makes an operator's command.
func (w *world) by(c Command) Command {
	c.Version, c.Now, c.By = Version, testNow, w.operator()
	return c
}

// as makes a node's command.
func (w *world) as(j *joiner, c Command) Command {
	c.Version, c.Now, c.By = Version, testNow, Authority{Node: j.id()}
	return c
}

// join lets a machine in that may claim any prefix.
func (w *world) join(j *joiner, change ...func(*Token)) Node {
	w.Helper()
	w.asked++
	return *w.must(j.join(w.addToken(50_000+int(w.asked), change...))).Node
}

func (w *world) addToken(seed int, change ...func(*Token)) invite.Token {
	w.Helper()
	inv := newInvite(seed)
	t := tokenOf(inv)
	for _, f := range change {
		f(&t)
	}
	t.AnyPrefix = w.signs() && len(t.Prefixes) == 0
	w.must(w.by(Command{AddToken: &AddToken{t}}))
	return inv
}
