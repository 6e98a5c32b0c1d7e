package truth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
	"guywire/mesh/control"
	"guywire/store"
)

// revokeCommand joins as an operator, revokes a node and says when the log had
// it (CLOCK_MONOTONIC).
func revokeCommand() *cobra.Command {
	var c client
	var here bool
	cmd := &cobra.Command{Use: "revoke", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) (err error) {
		if here {
			return revokeHere(cmd, args[0])
		}
		config, closeState, err := c.config(c.Dir, ":18686", slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeState()) }()
		p, err := control.Join(cmd.Context(), config, c.Token, control.JoinRequest{Name: c.Name}, nil)
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(cmd.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		defer func() {
			stop()
			err = errors.Join(err, <-ended)
		}()
		n, found := p.State().NodeByName(args[0])
		if !found {
			return fmt.Errorf("there is no node %s", args[0])
		}
		if _, err := p.Operate(cmd.Context(), store.Command{RemoveNode: &store.RemoveNode{Node: n.ID, Revoke: true}}); err != nil {
			return err
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(monotonic())
	}}
	cmd.Flags().StringVar(&c.Name, "name", "", "of the operator's node")
	cmd.Flags().StringVar(&c.Dir, "state", "", "its state directory")
	cmd.Flags().StringVar(&c.Token, "token", "", "that admits it")
	cmd.Flags().BoolVar(&here, "here", false, "by the meshd of this node, which finds no voter")
	return cmd
}

func (w *world) revoke(at, node string) (when time.Duration) {
	w.Helper()
	name := "operator-" + node
	w.decode(&when, w.must(at, "", "revoke", "--name", name, "--state", filepath.Join(w.dir(at), name), "--token", w.tokens.Client, node))
	return when
}

// A stream is traffic from one site's LAN to that of others.
type stream struct {
	w     *world
	ended []func() []byte // stop the senders, then the receivers
	to    []string
}

// launch runs a verb until it is stopped, which gives its output.
func (w *world) launch(node string, args ...string) (stop func() []byte) {
	w.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.Fatal(err)
	}
	var out, said bytes.Buffer
	signals, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() { // ends with the verb, which ends with the test
		code, err := w.lab.ExecSignals(w.Context(), node, append([]string{exe, insideVerb}, args...), nil, &out, &said, signals)
		if err == nil && code != 0 {
			err = fmt.Errorf("%v on %s ended with code %d: %s", args, node, code, said.String())
		}
		ended <- err
	}()
	return func() []byte {
		w.Helper()
		signals <- syscall.SIGTERM
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			w.Fatal(err)
		}
		return out.Bytes()
	}
}

func (w *world) host(site string) netip.Addr {
	w.Helper()
	st, err := w.lab.Status(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	n, _ := st.Node(site + "-host")
	a, found := n.Addr("", false)
	if !found {
		w.Fatalf("%s has no host", site)
	}
	return a
}

const packets = 200 // a second

// flows begins traffic.
func (w *world) flows(from string, to ...string) *stream {
	w.Helper()
	s := &stream{w: w, to: to}
	var receivers []func() []byte
	for _, site := range to {
		receivers = append(receivers, w.launch(site+"-host", "udp-recv", "--listen", netip.AddrPortFrom(w.host(site), 7000).String()))
	}
	for _, site := range to {
		s.ended = append(s.ended, w.launch(from+"-host", "udp-send", "--to", netip.AddrPortFrom(w.host(site), 7000).String(), "--pps", fmt.Sprint(packets)))
	}
	s.ended = append(s.ended, receivers...)
	return s
}

// stop ends the traffic; for each receiver it gives how many packets came, and
// when the last one did.
func (s *stream) stop() (received []uint64, last []time.Duration) {
	s.w.Helper()
	for i, stop := range s.ended {
		out := stop()
		if i < len(s.to) {
			continue // a sender
		}
		var r flow.RecvReport
		if err := json.Unmarshal(out, &r); err != nil {
			s.w.Fatal(err)
		}
		var n uint64
		var at time.Duration
		for _, f := range r.Flows {
			n, at = n+f.Received, max(at, f.LastArrivalMono)
		}
		received, last = append(received, n), append(last, at)
	}
	return received, last
}

// revoked bounds how long packets of a revoked node may still be taken on a
// busy machine. Without anybody's doing they would be for up to 180 s, the life
// of a WireGuard session.
const revoked = 10 * time.Second

// talk reports whether the LANs of two sites reach each other: "" if so.
func (w *world) talk(from, to string) string {
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	out, err := w.inside(ctx, from+"-host", "", "ping", "--count", "2", "--timeout", "500ms", "--target", to+"="+w.host(to).String())
	if err != nil {
		return err.Error()
	}
	var r flow.PingReport
	w.decode(&r, out)
	for _, c := range r.Cells {
		if !c.Reached {
			return from + " gets no answer from " + to
		}
	}
	return ""
}

// watchRevoked revokes a site that sends to the others, and reports how long
// they took its packets after that.
func (w *world) watchRevoked(site, at string, meanwhile func()) {
	w.Helper()
	w.until(site+" talks to all", func() (silent string) {
		for _, other := range w.sites {
			silent += w.talk(site, other)
		}
		return silent
	})
	s := w.flows(site, w.sites...)
	rest(time.Second)
	meanwhile()
	when := w.revoke(at, site)
	rest(revoked + time.Second)
	received, last := s.stop()
	for i, other := range s.to {
		if received[i] < packets/4 {
			w.Errorf("%s got only %d packets before", other, received[i])
		}
		if last[i] > when+revoked {
			w.Errorf("%s took a packet of the revoked node %s after", other, last[i]-when)
		}
		w.Logf("%s took the last packet of %s %s after the revocation, of %d", other, site, (last[i] - when).Round(time.Millisecond), received[i])
	}
}

func rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// TestB10RevokedUnderTraffic: a revoked node's packets are accepted nowhere
// soon after, also when the leader dies at that moment, and not at all by those
// who heard of it while it was parted from them (I6).
func TestB10RevokedUnderTraffic(t *testing.T) {
	w := build(t, lab.Options{Path: []string{bin}})
	w.enter("four")
	w.watchRevoked("four", "one", func() {})

	w.enter("five")
	leader := w.leader()
	at := w.sites[(slices.Index(w.sites, leader)+1)%len(w.sites)]
	w.watchRevoked("five", at, func() {
		if err := w.lab.Kill(t.Context(), leader, "", 0); err != nil {
			t.Fatal(err)
		}
		w.start(leader)
	})

	w.until("three talks to one and two", func() string { return w.talk("three", "one") + w.talk("three", "two") })
	if err := w.lab.Partition(t.Context(), []string{"west"}, []string{"east"}); err != nil {
		t.Fatal(err)
	}
	w.revoke("two", "three")
	for _, site := range []string{"one", "two"} {
		w.until(site+" knows that three is revoked", func() string {
			out := w.must(site, "", "ask", "nodes")
			if bytes.Contains([]byte(out), []byte(`"three"`)) {
				return "it is listed"
			}
			return ""
		})
	}
	s := w.flows("three", "one", "two")
	rest(time.Second)
	if err := w.lab.Heal(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	rest(3 * time.Second)
	received, _ := s.stop()
	for i, site := range s.to {
		if received[i] > 0 {
			t.Errorf("after the partition %s took %d packets of the node that was revoked in it", site, received[i])
		}
	}
}
