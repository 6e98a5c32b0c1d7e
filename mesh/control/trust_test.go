package control

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"guywire/store"
	"guywire/store/raftstore"
)

func TestExpiredCertificateIsGoodForHintsOnly(t *testing.T) {
	t.Parallel()
	one := founded(t)
	one.Handle("GET /v1/hint", Hint, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { Reply(w, struct{}{}) }))
	two := one.joined("two")
	two.asleep() // its own renewal would come first
	two.expire(one.voter.authority())
	if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/raft", nil, nil); !hasCode(err, CodeExpired) {
		t.Errorf("call with an expired certificate: %v", err)
	}
	if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/hint", nil, nil); err != nil {
		t.Errorf("hint with an expired certificate: %v", err)
	}
	if !two.renewalDue(time.Now()) {
		t.Error("an expired certificate is not due for renewal")
	}
	if err := two.renewOnce(); err != nil {
		t.Fatal(err)
	}
	if err := two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/raft", nil, nil); err != nil {
		t.Errorf("call after the renewal: %v", err)
	}
}

// TestChangesWaitForANewCertificate: a node that has not yet noticed that the CA
// has changed can still make changes, as a follower and as a voter.
func TestChangesWaitForANewCertificate(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	authority := all[0].voter.authority()
	for i, m := range all[1:] {
		m.expire(authority)
		m.propose(m.grant(i))
	}
}

func TestFailedLogIsOpenedAgain(t *testing.T) {
	t.Parallel()
	m := founded(t)
	index := m.State().Index
	m.logFailed(m.voter.store(), errors.New("the disk is full"))
	if st := m.Status(); st.Role != "follower" || !strings.Contains(st.Problem, "disk is full") || st.Index != index {
		t.Errorf("status after the failure: %+v", st)
	}
	eventually(t, "it is a voter again", func() bool { st := m.Status(); return st.Role == "voter" && st.Problem == "" && st.Leader == m.ID() })
	m.propose(m.grant(1))
}

// TestLateFailureOfAnOldLog: what is told of a log after another one was opened
// does not end that one.
func TestLateFailureOfAnOldLog(t *testing.T) {
	t.Parallel()
	m := founded(t)
	m.voter.change.Lock()
	old := m.voter.set(nil, "")
	err := old.Close()
	if err == nil {
		err = m.startLog()
	}
	m.voter.change.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	log := m.voter.store()
	m.logFailed(old, errors.New("the disk was full"))
	if m.voter.store() != log {
		t.Error("the new log was given up")
	}
	m.propose(m.grant(1))
}

// TestStaleLogIsDestroyedLater: a log that turns out to be an old copy when it
// is opened again, after a failure, does not wait for a restart to be replaced.
func TestStaleLogIsDestroyedLater(t *testing.T) {
	t.Parallel()
	all := three(t)
	registered(t, all)
	m := all[1]
	backup := filepath.Join(t.TempDir(), "raft")
	m.voter.change.Lock()
	reopen := func(between func()) error {
		if err := m.voter.set(nil, "").Close(); err != nil {
			t.Fatal(err)
		}
		between()
		return m.resumeLog()
	}
	err := reopen(func() { copyState(t, backup, m.files.raft()) })
	m.voter.change.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	registered(t, all)
	m.voter.change.Lock()
	err = reopen(func() {
		if err := os.RemoveAll(m.files.raft()); err != nil {
			t.Fatal(err)
		}
		copyState(t, m.files.raft(), backup)
	})
	if err != nil || m.voter.store() != nil || raftstore.Exists(m.files.raft()) || len(m.voter.keys()) != 0 {
		t.Errorf("the old copy is there still: %v", err)
	}
	m.voter.change.Unlock()
	registered(t, all)
}

// A safeBuffer collects what many goroutines log.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestB23SecretsStayInside: at debug level, in the state and in errors.
func TestB23SecretsStayInside(t *testing.T) {
	t.Parallel()
	var logs safeBuffer
	logger := slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var all []*machine
	for range 3 {
		m := newMachine(t)
		m.config.Logger = logger
		all = append(all, m)
	}
	all[0].run(Init(t.Context(), all[0].config, initRequest))
	var tokens []string
	var said strings.Builder
	for i, m := range all[1:] {
		text := all[0].token(TokenRequest{})
		tokens = append(tokens, text)
		m.run(Join(t.Context(), m.config, text, JoinRequest{Name: fmt.Sprintf("n%d", i)}, func(step string, fields ...any) {
			fmt.Fprintln(&said, append([]any{step}, fields...)...)
		}))
	}
	eventually(t, "three voters", func() bool { return voting(all) == 3 })
	_, err := Join(t.Context(), newMachine(t).config, tokens[0], JoinRequest{Name: "late"}, nil)
	if err == nil {
		t.Fatal("a used token was accepted")
	}
	fmt.Fprintln(&said, err)
	short := all[0].token(TokenRequest{Name: "short"})
	tokens = append(tokens, short)
	for what, text := range map[string]string{
		"cut off": short[:len(short)-3], "with a slip": short[:60] + string(short[60]^1) + short[61:], "of other words": "token: " + short, "twice": short + short,
	} {
		_, err := Join(t.Context(), newMachine(t).config, text, JoinRequest{Name: "late"}, nil)
		if err == nil {
			t.Fatalf("a token %s was accepted", what)
		}
		fmt.Fprintln(&said, err)
	}
	if _, err = Join(t.Context(), newMachine(t).config, short, JoinRequest{Name: short}, nil); err == nil {
		t.Fatal("a token's text was taken as a name")
	}
	fmt.Fprintln(&said, err)
	snapshot, err := store.Snapshot(all[1].State())
	if err != nil {
		t.Fatal(err)
	}
	said.Write(snapshot)
	fmt.Fprintf(&said, "%+v %+v", all[0].Status(), all[0].Tokens())
	said.WriteString(logs.String())

	var secrets []string
	for _, text := range tokens {
		secrets = append(secrets, text[40:70]) // inside is nothing else that is long
	}
	binary := [][]byte{all[0].voter.authority().Key().Seed()}
	for _, m := range all {
		private, err := m.config.Ring.Private(1)
		if err != nil {
			t.Fatal(err)
		}
		binary = append(binary, private[:])
	}
	for _, b := range binary {
		secrets = append(secrets, string(b), hex.EncodeToString(b), base64.StdEncoding.EncodeToString(b), fmt.Sprint(b))
	}
	for i, secret := range secrets {
		if strings.Contains(said.String(), secret) {
			t.Errorf("secret %d is shown", i)
		}
	}
	for _, m := range all {
		err := filepath.WalkDir(m.path, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it was being replaced
			}
			if err != nil {
				return err
			}
			if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %s", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestProposeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	if err := one.shut(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := two.Propose(ctx, two.grant(1)); !errors.Is(err, ErrNoVoter) {
		t.Errorf("propose without voters: %v, want ErrNoVoter", err)
	}
}
