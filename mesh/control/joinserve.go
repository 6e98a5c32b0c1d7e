package control

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
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

// joinAnswer is all that a newcomer needs to start. Whoever carries it is
// believed in nothing: the voter that admitted it seals it with the CA's key.
type joinAnswer struct {
	Answer    []byte `json:"answer"`    // invite.Answer
	Authority []byte `json:"authority"` // the CA's certificate, DER
	Seal      []byte `json:"seal"`      // of Answer
}

// joins is the patience with those who want to join here: anyone may ask.
type joins struct {
	mu      sync.Mutex
	begun   limiter // by source, or by the member that relays them
	wrong   limiter // wrong proofs, by token
	refused tally
}

func (j *joins) init(now time.Time) {
	j.begun = newLimiter(joinsOfOne, joinsOfAll, now)
	j.wrong = newLimiter(wrongProofs, joinsOfAll, now)
}

func (j *joins) may(l *limiter, who string, now time.Time) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if l.allow(who, now) {
		return nil
	}
	return newError(http.StatusTooManyRequests, CodeBusy, "too many joins, or attempts to, at a time; wait a minute and try again")
}

// refuse answers a joiner late, so that guessing is slow, and tells of many
// refusals in one line.
func (p *Plane) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p.joins.mu.Lock()
	count, due := p.joins.refused.add(p.clock.now(), refusalReport)
	p.joins.mu.Unlock()
	if due {
		p.logger.Info("joins refused", "count", count, "from", r.RemoteAddr, mesh.LogReason, err)
	}
	timer := time.NewTimer(refusalPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
	Fail(w, err)
}

func (p *Plane) serveJoinBegin(w http.ResponseWriter, r *http.Request) {
	j, ok := r.Context().Value(connKey{}).(*joining)
	if !ok {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "joining needs a TLS connection"))
		return
	}
	source, err := netip.ParseAddrPort(r.RemoteAddr)
	if err == nil {
		err = p.joins.may(&p.joins.begun, sourceOf(source.Addr()), p.clock.now())
	}
	if err != nil {
		p.refuse(w, r, err)
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
		p.refuse(w, r, err)
		return
	}
	join, err := checkJoin(r.Context(), request)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	answer, err := p.admit(r.Context(), join)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	p.logger.Info("node joined", mesh.LogNode, join.Name, "token", join.Token)
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

// admit has a join applied and gets the answer: here on a voter, else at one.
func (p *Plane) admit(ctx context.Context, join store.Join) (joinAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if p.voter.authority() == nil {
		var answer joinAnswer
		err := p.atVoter(ctx, http.MethodPost, "/v1/admit", join, &answer)
		return answer, err
	}
	return p.admitHere(ctx, join)
}

func (p *Plane) admitHere(ctx context.Context, join store.Join) (joinAnswer, error) {
	if err := p.vet(ctx, join); err != nil {
		return joinAnswer{}, err
	}
	// Who is in already lost the answer, and gets another one.
	if p.State().Nodes[join.Identity.NodeID()].Request != join.Request {
		join.Copies = p.copiesFor(p.State(), join.Identity.NodeID(), join.Key)
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
	}
	return p.welcome(join)
}

// vet refuses what the log would refuse, before it costs a write: anyone may
// ask to join. This voter may be behind, so unless the proof is wrong, which no
// other state would mend, the leader's word and clock decide.
func (p *Plane) vet(ctx context.Context, join store.Join) error {
	command := store.Command{Join: &join}
	refused := refusal(p.State(), command, p.clock.now())
	if refused == nil {
		return nil
	}
	if refused.Code == store.CodeTokenProof {
		if err := p.joins.may(&p.joins.wrong, join.Token, p.clock.now()); err != nil {
			return err
		}
		return refused
	}
	state, point, err := p.read(ctx)
	if err != nil {
		return err
	}
	if refused := refusal(state, command, point.Time); refused != nil {
		return refused
	}
	return nil
}

// welcome makes the answer to a node that was admitted.
func (p *Plane) welcome(join store.Join) (joinAnswer, error) {
	authority := p.voter.authority()
	if authority == nil {
		return joinAnswer{}, p.notVoter()
	}
	// The newcomer must be in what it gets: it may have been removed meanwhile.
	state := p.State()
	if state.Nodes[join.Identity.NodeID()].Identity != join.Identity {
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
	answer, err := invite.Answer{
		Mesh: state.Mesh.ID, Transcript: sha256.Sum256(join.Transcript), Certificate: leaf, State: snapshot,
	}.Encode()
	if err != nil {
		return joinAnswer{}, err
	}
	return joinAnswer{Answer: answer, Authority: authority.Certificate(), Seal: authority.Seal(answer)}, nil
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
		Fail(w, p.notVoter())
		return
	}
	if err := p.joins.may(&p.joins.begun, Caller(r.Context()).String(), p.clock.now()); err != nil {
		Fail(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-time.Second)
	defer cancel()
	answer, err := p.admitHere(ctx, join)
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
		Fail(w, p.notVoter())
		return
	}
	peer, ok := p.peerOf(r.Context())
	if !ok {
		Fail(w, newError(http.StatusUnauthorized, CodeNoCertificate, "this call needs the certificate of a member"))
		return
	}
	if log := p.voter.store(); log != nil && !p.rightClock(r.Context(), log) {
		Fail(w, newError(http.StatusServiceUnavailable, CodeInternal, "the clock of %s is wrong; set it, or let NTP do so", p.name(p.id)))
		return
	}
	leaf, err := authority.Issue(peer.Key, time.Now())
	if err != nil {
		Fail(w, err)
		return
	}
	Reply(w, certificate{Node: leaf, Authority: authority.Certificate()})
}
