package netns

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"guywire/integration/lab/flow"
)

// A stream is a measured flow from the LAN host of one site to that of another.
type stream struct {
	w          *world
	send, recv *running
}

// A running command on a node.
type running struct {
	signals chan os.Signal
	ended   chan struct{}
	out     bytes.Buffer // valid once ended is closed
	said    bytes.Buffer // likewise
	err     error        // likewise
}

func (w *world) launch(node string, args ...string) *running {
	r := &running{signals: make(chan os.Signal, 1), ended: make(chan struct{})}
	go func() { // ends with the command, which ends with the test
		defer close(r.ended)
		code, err := w.lab.ExecSignals(w.Context(), node, insideArgv(w, args...), nil, &r.out, &r.said, r.signals)
		if r.err = err; err == nil && code != 0 {
			r.err = fmt.Errorf("%v on %s ended with code %d: %s", args, node, code, r.said.String())
		}
	}()
	return r
}

func (r *running) finish(w *world, doc any) {
	w.Helper()
	r.signals <- syscall.SIGTERM
	<-r.ended
	if r.err != nil {
		w.Fatal(r.err)
	}
	if err := json.Unmarshal(r.out.Bytes(), doc); err != nil {
		w.Fatal(err)
	}
}

const streamPPS = 200

// flows lets a stream flow for a while.
func (s *stream) flows(d time.Duration) {
	s.w.Helper()
	select {
	case <-time.After(d):
	case <-s.send.ended:
		s.w.Fatal("the sender ended by itself: ", s.send.err)
	case <-s.recv.ended:
		s.w.Fatal("the receiver ended by itself: ", s.recv.err)
	}
}

// stream begins to receive, then to send.
func (w *world) stream(from, to string) *stream {
	w.Helper()
	return w.streamOf(from, to, 200)
}

// streamOf is a stream of datagrams with that many bytes of payload.
func (w *world) streamOf(from, to string, size int) *stream {
	w.Helper()
	host := netip.AddrPortFrom(w.host(to, false), 7000).String()
	s := &stream{w: w}
	s.recv = w.launch(to+"-host", "udp-recv", "--listen", host)
	w.until("the receiver listens", func() string { return w.listening(to+"-host", "udp", 7000) })
	s.send = w.launch(from+"-host", "udp-send", "--to", host, "--pps", fmt.Sprint(streamPPS), "--size", fmt.Sprint(size))
	return s
}

// stop ends the stream and gives its account.
func (s *stream) stop() flow.Result {
	s.w.Helper()
	var sent flow.SendReport
	var received flow.RecvReport
	s.send.finish(s.w, &sent)
	select { // what is under way arrives
	case <-time.After(300 * time.Millisecond):
	case <-s.recv.ended:
	}
	s.recv.finish(s.w, &received)
	r, err := flow.Merge(sent, received)
	if err != nil {
		s.w.Fatal(err)
	}
	return r
}
