package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// TestB01TokenRacedThroughALeaderKill: a hundred machines use one token through
// three voters, of which the leader is killed in between.
func TestB01TokenRacedThroughALeaderKill(t *testing.T) { // alone: it takes the whole machine
	all := three(t, "four")
	four := all[3]
	token := mustParse(t, all[0].token(TokenRequest{}))
	if len(token.Servers) != 3 {
		t.Fatalf("the token names %d servers, want 3", len(token.Servers))
	}
	sameState(t, all, all[0].State().Index)
	members := map[mesh.NodeID]*exec.Cmd{}
	for _, m := range all[:3] {
		members[m.ID()] = m.forked()
	}
	var leader mesh.NodeID
	eventually(t, "somebody leads", func() bool { leader = leaderSeenBy(t, four, members); return !leader.IsZero() })

	const racers = 100
	machines := make([]*machine, racers)
	for i := range machines {
		machines[i] = newMachine(t)
	}
	var (
		tasks   sync.WaitGroup
		reached atomic.Int32 // racers that have proven a server
		once    sync.Once
		won     atomic.Int32
		at      = make(chan struct{}, 50) // at a time: a server takes 64 connections from one address
	)
	kill := func() {
		if err := members[leader].Process.Kill(); err != nil {
			t.Error(err)
		}
	}
	for i, m := range machines {
		mine := token // of all servers, another one first
		mine.Servers = append(append([]netip.AddrPort(nil), token.Servers[i%3:]...), token.Servers[:i%3]...)
		tasks.Go(func() {
			at <- struct{}{}
			defer func() { <-at }()
			given, err := redeem(t.Context(), m.config, mine, JoinRequest{Name: fmt.Sprintf("n%d", i)}, func(step string, _ ...any) {
				if step == "server verified" && reached.Add(1) > racers/4 {
					once.Do(kill)
				}
			})
			switch {
			case err == nil:
				won.Add(1)
				if self := given.state.Nodes[m.config.id()]; self.Name != fmt.Sprintf("n%d", i) {
					t.Errorf("racer %d got the answer of %q", i, self.Name)
				}
			case !strings.Contains(err.Error(), "has been used"):
				t.Errorf("racer %d: %v", i, err)
			}
		})
	}
	tasks.Wait()
	if won.Load() != 1 {
		t.Errorf("%d joined with one token", won.Load())
	}
	_ = members[leader].Wait() // killed
	for _, m := range all[:3] {
		if m.ID() != leader {
			if err := members[m.ID()].Process.Kill(); err != nil {
				t.Error(err)
			}
			_ = members[m.ID()].Wait()
		}
		m.load()
		m.run(Open(m.config))
	}
	r := four.propose(four.grant(1))
	sameState(t, all, r.Index)
	if state := four.State(); len(state.Nodes) != 5 || state.Tokens[token.ID].Uses != 0 {
		t.Errorf("%d nodes, want 5; the token has %d uses left", len(state.Nodes), state.Tokens[token.ID].Uses)
	}
}

// TestB04GuessedTokens: a thousand wrong tokens write nothing into the log, are
// answered slowly and told of in one line a minute; the right one still works.
func TestB04GuessedTokens(t *testing.T) { // alone: it takes the whole machine
	var logs safeBuffer
	m := newMachine(t)
	m.config.Logger = slog.New(slog.NewTextHandler(&logs, nil))
	one := m.run(Init(t.Context(), m.config, initRequest))
	text := one.token(TokenRequest{})
	right := mustParse(t, text)
	registered(t, []*machine{one})
	if _, err := one.Read(t.Context()); err != nil { // the first read of a term writes
		t.Fatal(err)
	}
	before, began := one.Status(), time.Now()

	guesser := newMachine(t)
	const guesses = 1000
	var tasks sync.WaitGroup
	var limited, unknown atomic.Int32
	work := make(chan int)
	for range 40 {
		tasks.Go(func() {
			for i := range work {
				var random [invite.RandomSize]byte
				rand.Read(random[:])
				guess, err := invite.New(random, right.Mesh, right.Pins, right.Servers, right.Expires)
				if err != nil {
					t.Error(err)
					continue
				}
				for d := range dialServers(t.Context(), Config{}, guess) {
					if d.err == nil {
						_, d.err = redeemAt(t.Context(), guesser.config, guess, d, JoinRequest{Name: "guess"})
					}
					e, answered := errors.AsType[*Error](d.err)
					switch {
					case d.err == nil:
						t.Errorf("guess %d was admitted", i)
					case !answered: // this machine is too busy to answer in time
					case hasCode(e, CodeBusy):
						limited.Add(1)
					case hasCode(e, store.CodeTokenUnknown):
						unknown.Add(1)
					default:
						t.Errorf("guess %d: %v", i, d.err)
					}
				}
			}
		})
	}
	for i := range guesses {
		work <- i
	}
	close(work)
	tasks.Wait()
	lasted := time.Since(began)
	if most := joinsOfOne.burst + joinsOfOne.each*lasted.Seconds(); unknown.Load() == 0 || limited.Load() == 0 || float64(unknown.Load()) > most {
		t.Errorf("%d of %d guesses were looked at in %s, at most %.0f may be", unknown.Load(), guesses, lasted, most)
	}
	if after := one.Status(); after.Index != before.Index || after.Raft.Last != before.Raft.Last {
		t.Errorf("the log went from %d to %d", before.Raft.Last, after.Raft.Last)
	}
	if lines := strings.Count(logs.String(), "joins refused"); lines < 1 || lines > 1+int(lasted/refusalReport) {
		t.Errorf("%d lines in the log", lines)
	}

	// Wrong proofs of a token whose id is known.
	join := func(token invite.Token, by *machine) store.Join {
		t.Helper()
		r, err := prove(by.config, token, exporting(t, one), [32]byte{9}, JoinRequest{Name: "two"})
		if err != nil {
			t.Fatal(err)
		}
		tr, err := invite.DecodeTranscript(r.Transcript)
		if err != nil {
			t.Fatal(err)
		}
		return store.Join{
			Token: tr.Token, Transcript: r.Transcript, Signature: r.Signature, Proof: r.Proof, Name: tr.Name,
			Identity: tr.Identity, Key: store.Key{Epoch: tr.Epoch, Public: tr.Key}, Prefixes: tr.Prefixes, Request: tr.Request,
		}
	}
	wrong := join(right, guesser)
	wrong.Signature[3] ^= 1
	answered := 0
	for began = time.Now(); answered < 20; answered++ {
		e := answerTo(one.vet(t.Context(), wrong))
		if e.Code == CodeBusy {
			break
		}
		if e.Code != store.CodeTokenProof {
			t.Errorf("wrong proof: %v", e)
		}
	}
	if most := wrongProofs.burst + wrongProofs.each*time.Since(began).Seconds(); answered < int(wrongProofs.burst) || float64(answered) > most {
		t.Errorf("%d wrong proofs of one token were answered, at most %.1f may be", answered, most)
	}
	two := newMachine(t)
	two.run(Join(t.Context(), two.config, text, JoinRequest{Name: "two"}, nil)) // with patience
}

// exporting is some connection's state.
func exporting(t *testing.T, m *machine) tls.ConnectionState {
	t.Helper()
	conn, err := m.dialer.DialAddr(t.Context(), m.config.Listen, transport.Control)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.ConnectionState()
}

// A liar is a member that serves joins as it likes, with its own certificate.
func liar(t *testing.T, m *machine, finish func(joinRequest) joinAnswer) netip.AddrPort {
	t.Helper()
	listener, err := transport.Listen(transport.ListenConfig{
		Address: freePort(t), Logger: slog.New(slog.DiscardHandler),
		Trust: transport.Trust{Certificate: m.certificate.Load, Pins: m.State().Pins},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join/begin", func(w http.ResponseWriter, _ *http.Request) {
		challenge := invite.NewChallenge([32]byte{1, 2, 3}).Public()
		s := m.State().Mesh
		Reply(w, joinBegun{Mesh: s.ID, Pool4: s.Pool4, Pool6: s.Pool6, Challenge: challenge[:]})
	})
	mux.HandleFunc("POST /v1/join/finish", func(w http.ResponseWriter, r *http.Request) {
		var request joinRequest
		if err := Decode(r, &request); err != nil {
			Fail(w, err)
			return
		}
		Reply(w, finish(request))
	})
	server := &http.Server{Handler: mux}
	go server.Serve(apiListener{listener.Stream(transport.Control)}) // until Close
	t.Cleanup(func() { server.Close(); listener.Close() })
	return listener.Addr()
}

// TestJoinAnswerIsSealed: a member that was taken over stands between a newcomer
// and the mesh. It holds a certificate of the mesh, so it is talked to; nothing
// that it makes or changes is believed.
func TestJoinAnswerIsSealed(t *testing.T) {
	t.Parallel()
	one := founded(t)
	bad := one.joined("bad")
	text := one.token(TokenRequest{Uses: 100})
	ca, err := transport.NewAuthority(one.State().Mesh.ID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// A mesh as the liar wants it: the newcomer is in, and bad is the only voter.
	forged := func(r joinRequest) (a invite.Answer) {
		tr, err := invite.DecodeTranscript(r.Transcript)
		if err != nil {
			t.Error(err)
			return a
		}
		next := *bad.State()
		self := next.Nodes[bad.ID()]
		next.Nodes = map[mesh.NodeID]store.Node{bad.ID(): self}
		newcomer := self
		newcomer.ID, newcomer.Identity, newcomer.Name = tr.Identity.NodeID(), tr.Identity, tr.Name
		next.Nodes[newcomer.ID] = newcomer
		state, err := store.Snapshot(&next)
		if err != nil {
			t.Error(err)
		}
		leaf, err := ca.Issue(tr.Identity, time.Now())
		if err != nil {
			t.Error(err)
		}
		return invite.Answer{Mesh: next.Mesh.ID, Transcript: sha256.Sum256(r.Transcript), Certificate: leaf, State: state}
	}
	encode := func(a invite.Answer) []byte {
		b, err := a.Encode()
		if err != nil {
			t.Error(err)
		}
		return b
	}
	// A good answer of a voter, for another machine.
	other := newMachine(t)
	var overheard joinAnswer
	keep := liar(t, bad, func(r joinRequest) joinAnswer {
		tr, _ := invite.DecodeTranscript(r.Transcript)
		overheard, err = one.admit(t.Context(), store.Join{
			Token: tr.Token, Transcript: r.Transcript, Signature: r.Signature, Proof: r.Proof, Name: tr.Name,
			Identity: tr.Identity, Key: store.Key{Epoch: tr.Epoch, Public: tr.Key}, Prefixes: tr.Prefixes, Request: tr.Request,
		})
		if err != nil {
			t.Error(err)
		}
		return overheard
	})
	via := func(server netip.AddrPort) invite.Token {
		token := mustParse(t, text)
		token.Servers = []netip.AddrPort{server}
		return token
	}
	if _, err := redeem(t.Context(), other.config, via(keep), JoinRequest{Name: "other"}, func(string, ...any) {}); err != nil {
		t.Fatalf("what a relay carries unchanged: %v", err)
	}

	root := one.voter.authority().Certificate()
	for name, finish := range map[string]func(joinRequest) joinAnswer{
		"sealed by a CA of its own": func(r joinRequest) joinAnswer {
			b := encode(forged(r))
			return joinAnswer{Answer: b, Authority: ca.Certificate(), Seal: ca.Seal(b)}
		},
		"sealed by a CA of its own, shown as the mesh's": func(r joinRequest) joinAnswer {
			b := encode(forged(r))
			return joinAnswer{Answer: b, Authority: root, Seal: ca.Seal(b)}
		},
		"sealed by the liar's identity": func(r joinRequest) joinAnswer {
			b := encode(forged(r))
			return joinAnswer{Answer: b, Authority: root, Seal: bad.config.Ring.Sign(b)}
		},
		"not sealed":               func(r joinRequest) joinAnswer { return joinAnswer{Answer: encode(forged(r)), Authority: root} },
		"sealed for another join":  func(joinRequest) joinAnswer { return overheard },
		"sealed for another state": func(r joinRequest) joinAnswer { return joinAnswer{encode(forged(r)), root, overheard.Seal} },
		"changed after the seal": func(joinRequest) joinAnswer {
			b := bytes.Clone(overheard.Answer)
			b[len(b)/2] ^= 1
			return joinAnswer{b, root, overheard.Seal}
		},
		"empty": func(joinRequest) joinAnswer { return joinAnswer{} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			token := via(liar(t, bad, finish))
			p, err := join(t.Context(), m.config, prepared(t, m.config), token, JoinRequest{Name: "new"}, func(string, ...any) {})
			if err == nil {
				p.Close()
			}
			if !errors.Is(err, errForged) || !strings.Contains(err.Error(), "nothing of it was kept") {
				t.Errorf("join: %v", err)
			}
			if _, err := m.config.State.Read(certificateFile, maxFile); err == nil {
				t.Error("a certificate was kept")
			}
		})
	}
	// With an honest server beside it the newcomer joins all the same.
	m := newMachine(t)
	token := via(liar(t, bad, func(joinRequest) joinAnswer { return joinAnswer{} }))
	token.Servers = append(token.Servers, mustParse(t, text).Servers[0])
	p, err := join(t.Context(), m.config, prepared(t, m.config), token, JoinRequest{Name: "new"}, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestVoterWithoutItsLogForwardsJoins: it cannot hear who was removed, so it
// vouches for nobody; another voter answers in its place.
func TestVoterWithoutItsLogForwardsJoins(t *testing.T) {
	t.Parallel()
	all := three(t)
	token := mustParse(t, all[0].token(TokenRequest{}))
	sick := all[1]
	token.Servers = []netip.AddrPort{sick.Addr()}
	sick.voter.change.Lock() // it does not open its log again
	log := sick.voter.set(nil, "the disk failed")
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	var c certificate
	if err := all[2].Do(t.Context(), sick.ID(), http.MethodPost, "/v1/cert", struct{}{}, &c); !hasCode(err, CodeNotVoter) {
		t.Errorf("a certificate of a voter without a log: %v", err)
	}
	m := newMachine(t)
	given, err := redeem(t.Context(), m.config, token, JoinRequest{Name: "four"}, func(string, ...any) {})
	if err != nil || given.state.Nodes[m.config.id()].Name != "four" {
		t.Errorf("join through a voter without a log: %v", err)
	}
	sick.voter.change.Unlock()
}

// TestSilentServerCostsOneServer: one that takes the proofs and says nothing
// does not keep a newcomer from the others.
func TestSilentServerCostsOneServer(t *testing.T) {
	t.Parallel()
	one := founded(t)
	bad := one.joined("bad")
	token := mustParse(t, one.token(TokenRequest{}))
	quiet := make(chan struct{})
	defer close(quiet)
	token.Servers = append([]netip.AddrPort{liar(t, bad, func(joinRequest) joinAnswer { <-quiet; return joinAnswer{} })}, token.Servers[0])
	m := newMachine(t)
	ctx, cancel := context.WithTimeout(t.Context(), joinTimeout)
	defer cancel()
	if _, err := redeem(ctx, m.config, token, JoinRequest{Name: "two"}, func(string, ...any) {}); err != nil {
		t.Error(err)
	}
}

func TestReadSeesWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	for n := range 20 {
		writer, reader := all[n%4], all[(n+1+n/4)%4]
		r := writer.propose(writer.grant(n))
		s, err := reader.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.Index < r.Index || numberOf(s, writer.ID()) != n {
			t.Fatalf("read %d is at %d, without the write at %d", n, s.Index, r.Index)
		}
	}
	for _, m := range all[1:3] {
		if err := m.shut(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []*machine{all[0], all[3]} {
		eventually(t, "a read without a majority fails", func() bool { // an answer may have been under way
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := m.Read(ctx)
			return errors.Is(err, ErrNoVoter)
		})
	}
}
