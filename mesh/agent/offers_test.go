package agent

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/mesh/rendezvous"
)

// TestOfferTravels: directly where that works, and over voters as soon as there is
// doubt.
func TestOfferTravels(t *testing.T) {
	var direct, relayed discovery.Offer
	direct.From[0], relayed.From[0] = 1, 2
	dead := errors.New("no path")
	refusal := &control.Error{Code: "busy", Message: "busy"}
	const never = time.Hour
	for name, c := range map[string]struct {
		connected, called time.Duration // since the beginning
		err               error         // of the call
		errs              int           // calls that end so; 0: all
		relayErr          error
		answered          time.Duration // after the relay has it
		want              discovery.Offer
		wantErr           string
		relayAt, end      time.Duration // never: it is not relayed
	}{
		"direct":                {connected: 0, called: 200 * time.Millisecond, want: direct, relayAt: never, end: 200 * time.Millisecond},
		"no path at all":        {connected: never, err: dead, answered: time.Second, want: relayed, end: time.Second},
		"no connection":         {connected: never, called: never, answered: time.Second, want: relayed, relayAt: connectPatience, end: connectPatience + time.Second},
		"a dead connection":     {connected: 0, called: never, answered: time.Second, want: relayed, relayAt: answerPatience, end: answerPatience + time.Second},
		"late":                  {connected: 2 * time.Second, called: 2500 * time.Millisecond, answered: never, want: direct, relayAt: connectPatience, end: 2500 * time.Millisecond},
		"refused":               {connected: 0, called: time.Millisecond, err: refusal, wantErr: "busy", relayAt: never, end: time.Millisecond},
		"yielded":               {connected: 0, called: 5 * time.Second, err: rendezvous.ErrYielded, answered: never, wantErr: rendezvous.ErrYielded.Error(), relayAt: answerPatience, end: 5 * time.Second},
		"refused, but answered": {connected: 0, called: 4 * time.Second, err: refusal, answered: 2 * time.Second, want: relayed, relayAt: answerPatience, end: 5 * time.Second},
		"neither":               {connected: never, err: dead, relayErr: errors.New("no voter"), wantErr: "no path; by a voter: no voter"},
		"nobody answers":        {connected: never, err: dead, answered: never, wantErr: "deadline exceeded\nno path", end: 7 * time.Second},
		"a path comes":          {connected: never, err: dead, errs: 3, answered: never, want: direct, end: 3 * callAgain},
		"no voter, then direct": {connected: 2 * time.Second, called: 3 * time.Second, relayErr: dead, want: direct, relayAt: connectPatience, end: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				relayAt, calls := never, 0
				answers := make(chan discovery.Offer, 1)
				wait := func(ctx context.Context, d time.Duration) error {
					select {
					case <-time.After(d):
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
				defer cancel()
				got, err := mail{
					call: func(ctx context.Context, connected func()) (discovery.Offer, error) {
						if c.connected <= c.called && wait(ctx, c.connected) == nil {
							connected()
						}
						if err := wait(ctx, c.called-time.Since(began)); err != nil {
							return discovery.Offer{}, err
						}
						if calls++; c.err != nil && (c.errs == 0 || calls <= c.errs) {
							return discovery.Offer{}, c.err
						}
						return direct, nil
					},
					relay: func(ctx context.Context) error {
						relayAt = time.Since(began)
						if c.relayErr == nil {
							go func() {
								if wait(ctx, c.answered) == nil {
									answers <- relayed
								}
							}()
						}
						return c.relayErr
					},
					answers: answers,
				}.exchange(ctx)
				if got.From != c.want.From || (err == nil) != (c.wantErr == "") || err != nil && !strings.Contains(err.Error(), c.wantErr) {
					t.Errorf("%v, %v", got.From, err)
				}
				if took := time.Since(began); took != c.end || relayAt != c.relayAt {
					t.Errorf("took %s, want %s; relayed at %s, want %s", took, c.end, relayAt, c.relayAt)
				}
			})
		})
	}
}

func TestAwaitedAnswers(t *testing.T) {
	var a awaited
	peer := mesh.NodeID{1}
	answer := discovery.Offer{From: peer, Attempt: discovery.AttemptID{7}}
	if a.arrived(answer) {
		t.Error("nobody waits")
	}
	ch := a.await(answer.Attempt, peer)
	if a.arrived(discovery.Offer{From: mesh.NodeID{2}, Attempt: answer.Attempt}) {
		t.Error("it is of somebody else")
	}
	for range 3 { // however often it comes
		if !a.arrived(answer) {
			t.Error("it is not taken")
		}
	}
	if got := <-ch; got.From != peer {
		t.Errorf("got %+v", got)
	}
	a.forget(answer.Attempt)
	if a.arrived(answer) || len(a.list) > 0 {
		t.Error("it is awaited for ever")
	}
}

// signedOffer is an offer as it travels, and the key that it is known by.
func signedOffer(tb testing.TB) ([]byte, discovery.Offer, mesh.IdentityKey) {
	tb.Helper()
	var seed [ed25519.SeedSize]byte
	private := ed25519.NewKeyFromSeed(seed[:])
	key := mesh.IdentityKey(private.Public().(ed25519.PublicKey))
	o := discovery.Offer{
		Mesh: mesh.MeshID{1}, From: key.NodeID(), To: mesh.NodeID{9}, FromUplink: "wan", ToUplink: "dsl", Attempt: discovery.AttemptID{3},
		Credentials: discovery.Credentials{Ufrag: "abcd", Password: strings.Repeat("p", 24)}, Epoch: 1, Key: mesh.WireGuardKey{5},
		Expires: time.Unix(1e9, 0).UTC(),
	}
	signed, err := o.Sign(func(b []byte) []byte { return ed25519.Sign(private, b) })
	if err != nil {
		tb.Fatal(err)
	}
	b, err := json.Marshal(offerBody{Offer: signed, Facts: discovery.Signed{Body: []byte{1}, Signature: []byte{2}}})
	if err != nil {
		tb.Fatal(err)
	}
	return b, o, key
}

// TestRelayedOfferIsItsSenders: who passes an offer on can change nothing in it.
func TestRelayedOfferIsItsSenders(t *testing.T) {
	message, want, key := signedOffer(t)
	identity := func(id mesh.NodeID) (mesh.IdentityKey, bool) { return key, id == want.From }
	body, got, err := readRelayed(message, identity)
	if err != nil || got.From != want.From || got.Attempt != want.Attempt {
		t.Fatalf("%+v, %v", got, err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		forged := offerBody{Offer: append([]byte{}, body.Offer...), Facts: body.Facts}
		forged.Offer[rng.IntN(len(forged.Offer))] ^= byte(1 + rng.IntN(255))
		b, err := json.Marshal(forged)
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := readRelayed(b, identity); err == nil {
			t.Fatalf("a changed offer is taken: %+v", got)
		}
	}
	if _, _, err := readRelayed(message, func(mesh.NodeID) (mesh.IdentityKey, bool) { return key, false }); !errors.Is(err, discovery.ErrForeign) {
		t.Errorf("an offer of who is no member: %v", err)
	}
}

// FuzzRelayed: nothing but what its sender signed is taken of what voters pass on.
func FuzzRelayed(f *testing.F) {
	message, want, key := signedOffer(f)
	f.Add(message)
	f.Add([]byte(`{"offer":"AA==","facts":{}}`))
	f.Add([]byte(`{"offer":[],"facts":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, got, err := readRelayed(b, func(mesh.NodeID) (mesh.IdentityKey, bool) { return key, true })
		if err != nil {
			return
		}
		again, err := got.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		signed, err := want.MarshalBinary()
		if err != nil || string(again) != string(signed) {
			t.Errorf("taken: %+v", got)
		}
	})
}
