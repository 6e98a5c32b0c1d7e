package discovery

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/store"
)

// BanLife is how long a ban holds against a log that goes on and still has the
// node. It is measured by the clocks of the author and of the log's leader: who
// holds a ban may have just started, with a clock that stands at 1970.
const BanLife = 24 * time.Hour

// banVersion is the first byte of a ban, where facts have their version.
const banVersion byte = 0x81

// banDomain separates the signature of a ban from every other signature of the
// same key.
const banDomain = "guywire ban v1\x00"

// A Ban is an operator's word that a node is to be cut off at once, ahead of the
// log: where no majority of the voters can be reached, it is all that stops a
// node that was lost or taken over.
type Ban struct {
	Mesh   mesh.MeshID
	Node   mesh.NodeID
	Author mesh.IdentityKey
	// Generation and Index are of the state that the author saw.
	Generation, Index uint64
	// Time is the author's clock, or that of the newest entry of his state, if
	// that is later; whole microseconds since 1970.
	Time time.Time
}

// NewBan is a ban by an author who sees state at the time now.
func NewBan(now time.Time, state *store.State, node mesh.NodeID, author mesh.IdentityKey) Ban {
	if at := state.Audit.Time(); at.After(now) {
		now = at
	}
	return Ban{
		Mesh: state.Mesh.ID, Node: node, Author: author,
		Generation: state.Mesh.Generation, Index: state.Index, Time: now.Truncate(time.Microsecond).UTC(),
	}
}

// Encode gives the one encoding of b: its version, mesh, node, time in
// microseconds since 1970, author, generation and index, 73 bytes.
func (b Ban) Encode() ([]byte, error) {
	w := &writer{}
	w.byte(banVersion)
	w.bytes(b.Mesh[:])
	w.bytes(b.Node[:])
	w.uint64(uint64(b.Time.UnixMicro()))
	w.bytes(b.Author[:])
	w.uint64(b.Generation)
	w.uint64(b.Index)
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("encode ban: %w", err)
	}
	return w.b, nil
}

// DecodeBan reads what Encode writes, and nothing else.
func DecodeBan(body []byte) (Ban, error) {
	r := &reader{b: body}
	if v := r.byte(); v != banVersion {
		r.fail("version %d", v)
	}
	b := Ban{Mesh: mesh.MeshID(r.take(8)), Node: mesh.NodeID(r.take(8))}
	micros := r.uint64()
	if micros > math.MaxInt64 {
		r.fail("time %d", micros)
	}
	b.Time = time.UnixMicro(int64(micros & math.MaxInt64)).UTC()
	b.Author = mesh.IdentityKey(r.take(32))
	b.Generation, b.Index = r.uint64(), r.uint64()
	err := r.end()
	if err == nil {
		err = b.check()
	}
	if err != nil {
		return Ban{}, fmt.Errorf("decode ban: %w", err)
	}
	return b, nil
}

func (b Ban) check() error {
	switch {
	case b.Node.IsZero() || b.Author.IsZero() || b.Author.NodeID() == b.Node:
		return fmt.Errorf("%w: ban of %s by %s", ErrMalformed, b.Node, b.Author.NodeID())
	case b.Time.UnixMicro() <= 0 || b.Time.Nanosecond()%1000 != 0:
		return fmt.Errorf("%w: time %s", ErrMalformed, b.Time)
	}
	return nil
}

// Sign encodes b and signs it. The function signs with the key of b.Author.
func (b Ban) Sign(sign func(message []byte) []byte) (Signed, error) {
	body, err := b.Encode()
	if err != nil {
		return Signed{}, err
	}
	return Signed{Body: body, Signature: sign(append([]byte(banDomain), body...))}, nil
}

// verify checks that the author signed s, of which b is the body.
func (b Ban) verify(s Signed) error {
	if !b.Author.Verify(append([]byte(banDomain), s.Body...), s.Signature) {
		return fmt.Errorf("ban of %s: %w", b.Node, ErrSignature)
	}
	return nil
}

// holds says why b has no effect beside a state of the log; nil: it has.
// The log decides: about a node that it does not have there is nothing to say,
// and an author that it takes the right from has said nothing. An author who is
// banned himself is still heard, or it would depend on the order in which two
// bans arrive which of them counts.
func (b Ban) holds(now time.Time, state *store.State) error {
	_, member := state.Nodes[b.Node]
	newer := cmp.Or(cmp.Compare(state.Mesh.Generation, b.Generation), cmp.Compare(state.Index, b.Index)) > 0
	switch {
	case !member || b.Mesh != state.Mesh.ID:
		return fmt.Errorf("ban of %s in mesh %s: %w", b.Node, b.Mesh, ErrForeign)
	case !state.RoleOf(b.Author, now).Has(store.RoleOperator):
		return fmt.Errorf("ban of %s by %s: %w", b.Node, b.Author.NodeID(), ErrForbidden)
	case newer && state.Audit.Time().After(b.Time.Add(BanLife)):
		return fmt.Errorf("ban of %s: %w: the log went on and did not remove it in %s", b.Node, ErrExpired, BanLife)
	}
	return nil
}

// Bans keeps the newest ban of each node that counts.
type Bans struct {
	words map[mesh.NodeID]word
}

type word struct {
	ban    Ban
	signed Signed
}

// NewBans makes an empty collection.
func NewBans() *Bans { return &Bans{words: map[mesh.NodeID]word{}} }

// Merge takes in a ban when it is newer than what is known of its node and has
// an effect beside state, the newest one here. It reports whether the
// collection changed; an old or repeated ban is no error. There is no more than
// one ban for each node of the state. The collection keeps s; the caller does
// not change it afterwards.
func (b *Bans) Merge(now time.Time, s Signed, state *store.State) (changed bool, err error) {
	about, serial, err := s.Claimed()
	if err != nil {
		return false, err
	}
	if old, known := b.words[about.Node]; known && serial <= uint64(old.ban.Time.UnixMicro()) {
		return false, nil // before the signature: repetition is the common case in gossip
	}
	ban, err := DecodeBan(s.Body)
	if err == nil {
		err = ban.holds(now, state)
	}
	if err == nil { // last: it costs most
		err = ban.verify(s)
	}
	if err != nil {
		return false, err
	}
	b.words[ban.Node] = word{ban, s}
	return true, nil
}

// Prune drops what has no effect any more beside state, the newest one here,
// and gives it: the log confirmed it, took the right from its author, or went on
// with the node for BanLife.
func (b *Bans) Prune(now time.Time, state *store.State) (ended []Ban) {
	for _, ban := range b.All() {
		if ban.holds(now, state) != nil {
			delete(b.words, ban.Node)
			ended = append(ended, ban)
		}
	}
	return ended
}

// All gives the bans, sorted by node.
func (b *Bans) All() []Ban {
	var all []Ban
	for _, id := range b.sorted() {
		all = append(all, b.words[id].ban)
	}
	return all
}

// Signed gives all bans as they were signed, sorted by node: for the cache on
// disk and for other nodes.
func (b *Bans) Signed() []Signed {
	var all []Signed
	for _, id := range b.sorted() {
		all = append(all, b.words[id].signed)
	}
	return all
}

func (b *Bans) sorted() []mesh.NodeID {
	return slices.SortedFunc(maps.Keys(b.words), mesh.NodeID.Compare)
}
