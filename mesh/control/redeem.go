package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// admission is what a joiner got, after it was checked.
type admission struct {
	certificate certificate
	state       *store.State
}

// redeem asks the servers of the token.
func redeem(ctx context.Context, config Config, token invite.Token, request JoinRequest, progress Progress) (admission, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	asked := false // a voter may have admitted us, and its answer is lost
	for {
		failures := make([]error, 0, len(token.Servers))
		for d := range dialServers(ctx, config, token) {
			d.refresh()
			err := d.err
			if err == nil {
				progress("server verified", mesh.LogEndpoint, d.server.String())
				var given admission
				given, err = redeemAt(ctx, config, token, d, request)
				if err == nil {
					progress("admitted", mesh.LogEndpoint, d.server.String())
					return given, nil
				}
			}
			if errors.Is(err, errUnfit) {
				return admission{}, err
			}
			if e, answered := errors.AsType[*Error](err); answered && final(e) {
				return admission{}, fmt.Errorf("server %s refuses: %w", d.server, e)
			}
			_, sent := errors.AsType[unanswered](err)
			asked = asked || sent
			failures = append(failures, fmt.Errorf("server %s: %w", d.server, explainJoin(err)))
		}
		if !asked && !slices.ContainsFunc(failures, transient) {
			return admission{}, joinFailed(failures)
		}
		timer := time.NewTimer(jitter(retryMax))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if asked {
				return admission{}, fmt.Errorf("%w: %w", ErrMayBeMember, errors.Join(failures...))
			}
			return admission{}, joinFailed(failures)
		}
	}
}

// unanswered is why a request to be admitted has no answer that can be used: it
// may have been granted.
type unanswered struct{ error }

func (u unanswered) Unwrap() error { return u.error }

// errUnfit marks what JoinRequest.Check found: no server can change it.
var errUnfit = errors.New("this machine does not fit the mesh")

// errForged marks an answer that no voter made for this join.
var errForged = errors.New("it is a member of the mesh, but its answer is not one that a voter made for this machine, so nothing of it was kept; somebody took it over, or runs another version of Guywire")

// errInterrupted marks a connection that was verified and then broke.
var errInterrupted = errors.New("the connection broke in the middle of the join")

type dialled struct {
	server netip.AddrPort
	conn   *tls.Conn
	err    error
	at     time.Time
	dial   func() (*tls.Conn, error)
}

// refresh replaces a connection that has waited for another server so long that
// its own may close it.
func (d *dialled) refresh() {
	if d.err == nil && time.Since(d.at) > headerTimeout/2 {
		d.conn.NetConn().Close()
		d.conn, d.err = d.dial()
	}
}

// dialServers connects to all servers of the token side by side and gives each
// outcome as it comes. Connections that are not taken are closed.
func dialServers(ctx context.Context, config Config, token invite.Token) iter.Seq[dialled] {
	return func(yield func(dialled) bool) {
		ctx, cancel := context.WithCancel(ctx)
		dialer := &transport.Dialer{Trust: transport.Trust{
			Certificate: func() *tls.Certificate { return nil },
			Pins:        func() [][32]byte { return token.Pins },
		}, Network: config.Network}
		outcomes := make(chan dialled, len(token.Servers))
		for _, server := range token.Servers {
			go func() {
				dial := func() (*tls.Conn, error) { return dialer.DialAddr(ctx, server.String(), transport.Control) }
				conn, err := dial()
				outcomes <- dialled{server, conn, err, time.Now(), dial}
			}()
		}
		left := len(token.Servers)
		defer func() {
			cancel()
			for ; left > 0; left-- {
				if d := <-outcomes; d.err == nil {
					d.conn.NetConn().Close()
				}
			}
		}()
		for left > 0 {
			d := <-outcomes
			left--
			if !yield(d) {
				return
			}
		}
	}
}

func joinFailed(failures []error) error {
	return fmt.Errorf("no server of the token admits this machine: %w", errors.Join(failures...))
}

// final reports whether another server, or another try, would say the same.
func final(e *Error) bool {
	switch e.Code {
	case CodeInternal, CodeBusy, CodeNotVoter, CodeNotLeader, CodeUnknownNode:
		return false
	default:
		return true
	}
}

// transient reports whether the mesh was reached and is only busy electing, or
// the server stopped in the middle.
func transient(err error) bool {
	e, answered := errors.AsType[*Error](err)
	return answered && !final(e) || errors.Is(err, errInterrupted)
}

// explainJoin says what to do about a server that cannot be used.
func explainJoin(err error) error {
	switch {
	case errors.Is(err, errForged):
		return err
	case errors.Is(err, transport.ErrUntrusted):
		return fmt.Errorf("it does not hold the key that the token pins, so nothing was sent to it; the mesh changed its CA since the token was made, the token is for another mesh, or somebody answers in its place: ask for a new token (%w)", err)
	case errors.Is(err, transport.ErrClock):
		return err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("it cannot be reached; check that this machine may open TCP connections to that address and port (%w)", err)
	}
	return err
}

// redeemAt joins through one server, on one connection, and closes it.
func redeemAt(ctx context.Context, config Config, token invite.Token, d dialled, request JoinRequest) (admission, error) {
	defer d.conn.NetConn().Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout) // one that is silent must not cost the others
	defer cancel()
	s := session{client: oneConnection(d.conn), host: d.server.String()}
	defer s.client.CloseIdleConnections()
	var begun joinBegun
	if err := s.post(ctx, "/v1/join/begin", struct{}{}, &begun); err != nil {
		return admission{}, err
	}
	if begun.Mesh != token.Mesh || len(begun.Challenge) != 32 {
		return admission{}, errors.New("it is in another mesh than the token")
	}
	if request.Check != nil {
		if err := request.Check(begun.Pool4, begun.Pool6); err != nil {
			return admission{}, fmt.Errorf("%w: %w", errUnfit, err)
		}
	}
	proofs, err := prove(config, token, d.conn.ConnectionState(), [32]byte(begun.Challenge), request)
	if err != nil {
		return admission{}, err
	}
	var answer joinAnswer
	if err := s.post(ctx, "/v1/join/finish", proofs, &answer); err != nil {
		return admission{}, unanswered{err}
	}
	given, err := checkAnswer(config, token, proofs.Transcript, answer)
	if err != nil {
		return admission{}, fmt.Errorf("%w: %w", errForged, err)
	}
	return given, nil
}

// prove makes the three proofs over one transcript.
func prove(config Config, token invite.Token, state tls.ConnectionState, challenge [32]byte, request JoinRequest) (joinRequest, error) {
	value, err := exporter(state)
	if err != nil {
		return joinRequest{}, fmt.Errorf("bind proofs to the connection: %w", err)
	}
	const epoch = 1
	key, err := config.Ring.Generate(epoch)
	if err != nil {
		return joinRequest{}, err
	}
	private, err := config.Ring.Private(epoch)
	if err != nil {
		return joinRequest{}, err
	}
	transcript, err := invite.Transcript{
		Mesh: token.Mesh, Token: token.ID, Exporter: value, Identity: config.Ring.Identity(),
		Epoch: epoch, Key: key, Name: request.Name, Prefixes: request.Prefixes,
		Request: requestID(token, config.Ring.Identity()),
	}.Encode()
	if err != nil {
		return joinRequest{}, err
	}
	answer, err := invite.AnswerChallenge(private, challenge, transcript)
	if err != nil {
		return joinRequest{}, err
	}
	return joinRequest{
		Transcript: transcript, Signature: token.Sign(transcript),
		Proof: invite.ProveIdentity(config.Ring.Sign, transcript), Answer: answer,
	}, nil
}

// requestID names a join by who joins and with which token, so that it is the
// same after a crash of this machine, too.
func requestID(token invite.Token, identity mesh.IdentityKey) string {
	sum := sha256.Sum256(append([]byte("guywire join request v1\x00"+token.ID+"\x00"), identity[:]...))
	return hex.EncodeToString(sum[:16])
}

// checkAnswer believes an answer that the CA of the token sealed for exactly
// this join; the seal is looked at before anything else.
func checkAnswer(config Config, token invite.Token, transcript []byte, answer joinAnswer) (admission, error) {
	if err := transport.VerifySeal(token.Pins, answer.Authority, answer.Answer, answer.Seal); err != nil {
		return admission{}, err
	}
	a, err := invite.DecodeAnswer(answer.Answer)
	if err != nil {
		return admission{}, err
	}
	if a.Mesh != token.Mesh || a.Transcript != sha256.Sum256(transcript) {
		return admission{}, errors.New("it answers another join")
	}
	state, err := store.Restore(a.State)
	if err != nil {
		return admission{}, err
	}
	if state.Mesh.ID != token.Mesh || state.Nodes[config.id()].Identity != config.Ring.Identity() {
		return admission{}, errors.New("this machine is not in its state")
	}
	return admission{certificate{Node: a.Certificate, Authority: answer.Authority}, state}, nil
}

// A session is HTTP over one connection that exists already.
type session struct {
	client *http.Client
	host   string
}

func oneConnection(conn *tls.Conn) *http.Client {
	ready := make(chan *tls.Conn, 1)
	ready <- conn
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
				select {
				case c := <-ready:
					return c, nil
				default:
					return nil, errors.New("the server closed the connection in the middle of the join; join again with the same token")
				}
			},
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (s session) post(ctx context.Context, path string, in, out any) error {
	return s.send(ctx, http.MethodPost, path, in, out)
}

func (s session) send(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+s.host+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return fmt.Errorf("%w: %w", errInterrupted, err)
	}
	defer answer.Body.Close()
	return readAnswer(answer, out)
}
