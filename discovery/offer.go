package discovery

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"time"

	"guywire/mesh"
)

// Limits of an offer.
const (
	MaxCandidates  = 8
	MaxOffer       = 512
	MaxOfferLife   = 2 * time.Minute
	MaxOfferDelay  = time.Second
	maxClockSkew   = 5 * time.Minute
	MaxOfferUse    = MaxOfferLife + 2*maxClockSkew // from the first to the last moment at which Validate may accept one
	minUfrag       = 4                             // RFC 8445, section 5.3
	minPassword    = 22                            // the same
	maxCredential  = 32
	offerVersion   = 2
	offerSpread    = 3 // the same, of an offer with Spread: who does not know that refuses it
	offerDelayUnit = time.Millisecond
)

// An AttemptID names one attempt to make a link; it is random.
type AttemptID [16]byte

// String gives the id in hexadecimal.
func (a AttemptID) String() string { return hex.EncodeToString(a[:]) }

// MarshalText implements encoding.TextMarshaler.
func (a AttemptID) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler for what String writes.
func (a *AttemptID) UnmarshalText(b []byte) error {
	var id AttemptID
	if n, err := hex.Decode(id[:], b[:min(len(b), 2*len(id))]); err != nil || n != len(id) || len(b) != 2*len(id) {
		return fmt.Errorf("%w: attempt %q", ErrMalformed, b)
	}
	*a = id
	return nil
}

// Credentials protect the checks of one attempt in one direction (RFC 8445,
// section 5.3): random letters and digits, made by the end that they admit to.
type Credentials struct {
	Ufrag    string
	Password string
}

// An Offer is what the two ends of a future link tell each other before they
// check which addresses work: the first one asks, the other answers in kind
// with the same Attempt and From and To exchanged.
type Offer struct {
	Mesh        mesh.MeshID
	From, To    mesh.NodeID
	FromUplink  string    // name of the sender's uplink
	ToUplink    string    // name of the receiver's uplink
	Lane        uint8     // of the link, see mesh.LinkID
	Below       PathClass // a path of this class, or worse, will not do; zero: any will
	Attempt     AttemptID
	Candidates  []Candidate
	Credentials Credentials
	NAT         NAT        // of the uplink's IPv4
	NAT6        NAT        // of its IPv6
	Epoch       mesh.Epoch // generation of the WireGuard key that the link will use
	Key         mesh.WireGuardKey
	// Spread asks for, or agrees to, a search by chance; see Spread.
	Spread bool
	// Carrier asks for, or agrees to, a stream instead of a path for UDP; nil: none.
	Carrier *CarrierTerms
	// Delay is how long the answering end waits after its answer before it
	// sends the first check, so that both begin at the same moment: the time
	// its answer needs to arrive. Whole milliseconds.
	Delay   time.Duration
	Expires time.Time // whole seconds
}

// CarrierTerms are what one end of a stream knows the other by.
type CarrierTerms struct {
	Pin   [32]byte // SHA-256 of the SubjectPublicKeyInfo of the sender's key
	Token [16]byte // chosen by the end that dials, repeated by the other
}

// MarshalBinary gives the one encoding of o, or says what is wrong with it.
func (o Offer) MarshalBinary() ([]byte, error) {
	w := &writer{}
	w.byte(o.version())
	w.bytes(o.Mesh[:])
	w.bytes(o.From[:])
	w.bytes(o.To[:])
	w.text("uplink name", o.FromUplink, 32)
	w.text("uplink name", o.ToUplink, 32)
	w.byte(o.Lane)
	w.byte(byte(o.Below))
	w.bytes(o.Attempt[:])
	w.count("candidates", len(o.Candidates), MaxCandidates)
	for _, c := range o.Candidates {
		w.byte(byte(c.Kind))
		w.addrPort(c.Addr)
	}
	w.text("ufrag", o.Credentials.Ufrag, maxCredential)
	w.text("password", o.Credentials.Password, maxCredential)
	w.byte(byte(o.NAT))
	w.byte(byte(o.NAT6))
	w.uint32(uint32(o.Epoch))
	w.bytes(o.Key[:])
	w.bool(o.Carrier != nil)
	if o.Carrier != nil {
		w.bytes(o.Carrier.Pin[:])
		w.bytes(o.Carrier.Token[:])
	}
	w.uint16(uint16(o.Delay / offerDelayUnit))
	w.uint64(uint64(o.Expires.Unix()))
	if w.err == nil {
		w.err = o.check()
	}
	if w.err != nil {
		return nil, fmt.Errorf("encode offer: %w", w.err)
	}
	return w.b, nil
}

// UnmarshalBinary reads what MarshalBinary writes, and nothing else.
func (o *Offer) UnmarshalBinary(b []byte) error {
	r := &reader{b: b}
	if len(b) > MaxOffer {
		r.fail("%d bytes, at most %d", len(b), MaxOffer)
	}
	v := r.byte()
	if v != offerVersion && v != offerSpread {
		r.fail("version %d", v)
	}
	p := Offer{
		Mesh: mesh.MeshID(r.take(8)), From: mesh.NodeID(r.take(8)), To: mesh.NodeID(r.take(8)),
		FromUplink: r.text("uplink name", 32), ToUplink: r.text("uplink name", 32),
		Lane: r.byte(), Below: PathClass(r.byte()), Attempt: AttemptID(r.take(16)), Spread: v == offerSpread,
	}
	for range r.count("candidates", MaxCandidates) {
		p.Candidates = append(p.Candidates, Candidate{Kind: CandidateKind(r.byte()), Addr: r.addrPort()})
	}
	p.Credentials = Credentials{Ufrag: r.text("ufrag", maxCredential), Password: r.text("password", maxCredential)}
	p.NAT, p.NAT6 = NAT(r.byte()), NAT(r.byte())
	p.Epoch = mesh.Epoch(r.uint32())
	p.Key = mesh.WireGuardKey(r.take(32))
	if r.bool() {
		p.Carrier = &CarrierTerms{Pin: [32]byte(r.take(32)), Token: [16]byte(r.take(16))}
	}
	p.Delay = time.Duration(r.uint16()) * offerDelayUnit
	expires := r.uint64()
	if expires > 1<<40 { // the year 36812; beyond, time arithmetic would overflow
		r.fail("expiry %d", expires)
	}
	p.Expires = time.Unix(int64(expires&(1<<41-1)), 0).UTC()
	err := r.end()
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return fmt.Errorf("decode offer: %w", err)
	}
	*o = p
	return nil
}

func (o Offer) version() byte {
	if o.Spread {
		return offerSpread
	}
	return offerVersion
}

// offerDomain separates the signature of offers from every other signature of the
// same key.
const offerDomain = "guywire offer v2\x00"

// Sign gives the offer as it travels: its encoding and behind it the signature by
// the identity key of o.From. So anybody may carry it.
func (o Offer) Sign(sign func(message []byte) []byte) ([]byte, error) {
	body, err := o.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return append(body, sign(append([]byte(offerDomain), body...))...), nil
}

// OpenOffer reads what Sign writes. key gives the identity key that the log names
// for a node. It fails with ErrMalformed, ErrForeign or ErrSignature.
func OpenOffer(b []byte, key func(mesh.NodeID) (mesh.IdentityKey, bool)) (Offer, error) {
	cut := len(b) - ed25519.SignatureSize
	if cut <= 0 {
		return Offer{}, fmt.Errorf("offer: %w: %d bytes", ErrMalformed, len(b))
	}
	var o Offer
	if err := o.UnmarshalBinary(b[:cut]); err != nil {
		return Offer{}, err
	}
	k, ok := key(o.From)
	if !ok {
		return Offer{}, fmt.Errorf("offer of %s, who is no member: %w", o.From, ErrForeign)
	}
	if !k.Verify(append([]byte(offerDomain), b[:cut]...), b[cut:]) {
		return Offer{}, fmt.Errorf("offer of %s: %w", o.From, ErrSignature)
	}
	return o, nil
}

// check holds what is wrong with an offer at any time and place.
func (o Offer) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
	switch {
	case o.From.IsZero(), o.To.IsZero(), o.From == o.To:
		return bad("offer from %s to %s", o.From, o.To)
	case o.Attempt == AttemptID{}:
		return bad("offer without attempt")
	case o.NAT >= natEnd, o.NAT6 >= natEnd:
		return bad("NAT kinds %d and %d", o.NAT, o.NAT6)
	case o.Lane > 1, o.Below >= classEnd:
		return bad("lane %d, path class %d", o.Lane, o.Below)
	case o.Spread && (o.Carrier != nil || o.Below != 0):
		return bad("a spread for another link than a first one by UDP")
	case len(o.Candidates) > MaxCandidates:
		return bad("%d candidates, at most %d", len(o.Candidates), MaxCandidates)
	case o.Epoch == 0 || o.Key.IsZero():
		return bad("offer without WireGuard key")
	case o.Delay < 0 || o.Delay > MaxOfferDelay || o.Delay%offerDelayUnit != 0:
		return bad("delay %s", o.Delay)
	case o.Expires.Unix() < 0 || o.Expires.Nanosecond() != 0:
		return bad("expiry %s", o.Expires)
	case !credential(o.Credentials.Ufrag, minUfrag) || !credential(o.Credentials.Password, minPassword):
		return bad("credentials are not letters and digits of the right length")
	}
	for _, name := range []string{o.FromUplink, o.ToUplink} {
		if err := mesh.CheckName(name); err != nil {
			return bad("uplink %w", err)
		}
	}
	for i, c := range o.Candidates {
		if err := Usable(c.Addr); err != nil {
			return err
		}
		if c.Kind < CandidateHost || c.Kind >= CandidatePeerReflexive {
			return bad("candidate kind %d", c.Kind)
		}
		for _, d := range o.Candidates[:i] {
			if c.Addr == d.Addr {
				return bad("candidate %s twice", c.Addr)
			}
		}
	}
	return nil
}

func credential(s string, shortest int) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return len(s) >= shortest && len(s) <= maxCredential
}

// Validate reports whether the receiving node may act on the offer: it is well
// formed, made for this mesh and node, and fresh. Clocks may differ by five
// minutes.
func (o Offer) Validate(now time.Time, id mesh.MeshID, self mesh.NodeID) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.Mesh != id || o.To != self {
		return fmt.Errorf("offer to %s in mesh %s: %w", o.To, o.Mesh, ErrForeign)
	}
	if o.Expires.Before(now.Add(-maxClockSkew)) || o.Expires.After(now.Add(MaxOfferLife+maxClockSkew)) {
		return fmt.Errorf("offer of %s: %w: valid until %s, the clock here says %s; check the clocks of both nodes",
			o.From, ErrExpired, o.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// ValidateAnswer reports whether answer replies to o: same attempt and link,
// ends exchanged, fresh.
func (o Offer) ValidateAnswer(now time.Time, answer Offer) error {
	if err := answer.Validate(now, o.Mesh, o.From); err != nil {
		return err
	}
	if answer.From != o.To || answer.Attempt != o.Attempt || answer.FromUplink != o.ToUplink || answer.ToUplink != o.FromUplink || answer.Lane != o.Lane {
		return fmt.Errorf("answer of %s to another offer: %w", answer.From, ErrForeign)
	}
	return nil
}
