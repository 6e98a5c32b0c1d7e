package control

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/store"
)

// exporterLabel names the TLS exporter value (RFC 8446 section 7.5) that ties
// the proofs of a join to one connection.
const exporterLabel = "EXPORTER-guywire-join-v1"

func exporter(state tls.ConnectionState) (value [32]byte, err error) {
	b, err := state.ExportKeyingMaterial(exporterLabel, nil, len(value))
	copy(value[:], b)
	return value, err
}

// joining is what a server remembers of a joiner: its challenge, for as long
// as the connection lives and for one answer.
type joining struct {
	conn *tls.Conn

	mu        sync.Mutex // guards challenge
	challenge *invite.Challenge
}

// joinBegun holds the pools, too, so that a machine whose own networks overlap
// them finds out before the token is used. They are not a secret.
type joinBegun struct {
	Mesh      mesh.MeshID  `json:"mesh"`
	Pool4     netip.Prefix `json:"pool4"`
	Pool6     netip.Prefix `json:"pool6"`
	Challenge []byte       `json:"challenge"`
}

type joinRequest struct {
	Transcript []byte `json:"transcript"`
	Signature  []byte `json:"signature"` // by the token's key
	Proof      []byte `json:"proof"`     // by the identity key
	Answer     []byte `json:"answer"`    // to the challenge, by the WireGuard key
}

// joinAnswer is all that a newcomer needs to start.
type joinAnswer struct {
	Node        store.Node  `json:"node"`
	Certificate certificate `json:"certificate"`
	State       []byte      `json:"state"` // store.Snapshot
}

func (p *Plane) serveJoinBegin(w http.ResponseWriter, r *http.Request) {
	j, ok := r.Context().Value(connKey{}).(*joining)
	if !ok {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "joining needs a TLS connection"))
		return
	}
	var random [32]byte
	rand.Read(random[:]) // never fails since Go 1.24
	challenge := invite.NewChallenge(random)
	public := challenge.Public()
	j.mu.Lock()
	j.challenge = &challenge
	j.mu.Unlock()
	m := p.State().Mesh
	Reply(w, joinBegun{Mesh: m.ID, Pool4: m.Pool4, Pool6: m.Pool6, Challenge: public[:]})
}

// serveJoinFinish checks what only this connection can show (the exporter, the
// answer to the challenge); all else is checked again where the join is
// applied, against the state at that moment.
func (p *Plane) serveJoinFinish(w http.ResponseWriter, r *http.Request) {
	var request joinRequest
	if err := Decode(r, &request); err != nil {
		Fail(w, err)
		return
	}
	join, err := checkJoin(r.Context(), request)
	if err != nil {
		Fail(w, err)
		return
	}
	answer, err := p.admit(r.Context(), join)
	if err != nil {
		Fail(w, err)
		return
	}
	p.logger.Info("node joined", mesh.LogNode, answer.Node.Name, "token", join.Token)
	Reply(w, answer)
}

func checkJoin(ctx context.Context, request joinRequest) (store.Join, error) {
	j, ok := ctx.Value(connKey{}).(*joining)
	if !ok {
		return store.Join{}, newError(http.StatusBadRequest, CodeMalformed, "joining needs a TLS connection")
	}
	j.mu.Lock()
	challenge := j.challenge
	j.challenge = nil
	j.mu.Unlock()
	if challenge == nil {
		return store.Join{}, newError(http.StatusConflict, CodeMalformed, "a join must begin and finish on one connection; join again")
	}
	t, err := invite.DecodeTranscript(request.Transcript)
	if err != nil {
		return store.Join{}, newError(http.StatusBadRequest, CodeMalformed, "%s; run the same version of Guywire on both sides", err)
	}
	value, err := exporter(j.conn.ConnectionState())
	if err != nil {
		return store.Join{}, newError(http.StatusInternalServerError, CodeInternal, "the connection has no exporter")
	}
	if t.Exporter != value {
		return store.Join{}, newError(http.StatusForbidden, store.CodeTokenProof, "the proofs were made for another connection; somebody may be in between")
	}
	if err := challenge.Verify(t.Key, request.Transcript, request.Answer); err != nil {
		return store.Join{}, newError(http.StatusForbidden, store.CodeTokenProof, "the WireGuard key is not proven: %s", err)
	}
	return store.Join{
		Token: t.Token, Transcript: request.Transcript, Signature: request.Signature, Proof: request.Proof,
		Name: t.Name, Identity: t.Identity, Key: store.Key{Epoch: t.Epoch, Public: t.Key},
		Prefixes: t.Prefixes, Request: t.Request,
	}, nil
}

// admit has a join applied and makes the answer: here on a voter, else at one.
func (p *Plane) admit(ctx context.Context, join store.Join) (joinAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	authority := p.voter.authority()
	if authority == nil {
		var answer joinAnswer
		_, err := p.atVoter(ctx, "/v1/admit", join, &answer)
		return answer, err
	}
	result, err := p.submit(ctx, store.Command{Join: &join})
	if err != nil {
		return joinAnswer{}, err
	}
	if result.Refused != nil {
		return joinAnswer{}, result.Refused
	}
	if !p.await(ctx, func(s *store.State) bool { return s.Index >= result.Index }) {
		return joinAnswer{}, newError(http.StatusServiceUnavailable, CodeInternal, "the node is admitted, but %s is behind; join again with the same token", p.name(p.id))
	}
	// The newcomer must be in what it gets: it may have been removed meanwhile.
	state := p.State()
	node, member := state.Nodes[join.Identity.NodeID()]
	if !member {
		return joinAnswer{}, newError(http.StatusForbidden, CodeRemoved, "the node was removed as soon as it had joined")
	}
	leaf, err := authority.Issue(join.Identity, time.Now())
	if err != nil {
		return joinAnswer{}, err
	}
	snapshot, err := store.Snapshot(state)
	if err != nil {
		return joinAnswer{}, err
	}
	return joinAnswer{Node: node, Certificate: certificate{Node: leaf, Authority: authority.Certificate()}, State: snapshot}, nil
}

// serveAdmit is admit for a member that was asked by a joiner and is no voter.
// That member is believed about the connection and the WireGuard key; token
// and identity prove themselves.
func (p *Plane) serveAdmit(w http.ResponseWriter, r *http.Request) {
	var join store.Join
	if err := Decode(r, &join); err != nil {
		Fail(w, err)
		return
	}
	if p.voter.authority() == nil {
		Fail(w, newError(http.StatusConflict, CodeNotVoter, "%s is not a voter", p.name(p.id)))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-time.Second)
	defer cancel()
	answer, err := p.admit(ctx, join)
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, answer)
}

// serveCertificate renews the certificate of the caller.
func (p *Plane) serveCertificate(w http.ResponseWriter, r *http.Request) {
	authority := p.voter.authority()
	if authority == nil {
		Fail(w, newError(http.StatusConflict, CodeNotVoter, "%s is not a voter", p.name(p.id)))
		return
	}
	peer, ok := p.peerOf(r.Context())
	if !ok {
		Fail(w, newError(http.StatusUnauthorized, CodeNoCertificate, "this call needs the certificate of a member"))
		return
	}
	leaf, err := authority.Issue(peer.Key, time.Now())
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, certificate{Node: leaf, Authority: authority.Certificate()})
}
