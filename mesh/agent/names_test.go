package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"guywire/mesh/config"
)

// zone is a DNS that a test changes.
type zone struct {
	mu    sync.Mutex
	addrs map[string]string // by name, with blanks between; missing: an error
	asked int
}

func (z *zone) set(name, addrs string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if addrs == "-" {
		delete(z.addrs, name)
		return
	}
	z.addrs[name] = addrs
}

func (z *zone) lookup(_ context.Context, name string) (out []netip.Addr, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	list, ok := z.addrs[name]
	if !ok {
		return nil, errors.New("no such host")
	}
	for s := range strings.FieldsSeq(list) {
		out = append(out, netip.MustParseAddr(s))
	}
	return out, nil
}

func testConfig(t *testing.T, src string) config.Config {
	t.Helper()
	c, err := config.Parse(strings.NewReader(src))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const namesConfig = `
control: {advertise: ["gw.example.net:9000", 203.0.113.7]}
uplinks: [{interface: eth0, endpoint: dyn.example.net}, {interface: eth1, endpoint: 203.0.113.9}]
`

func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{addrs: map[string]string{"gw.example.net": "203.0.113.1 2001:db8::1 203.0.113.1"}}
		c := testConfig(t, namesConfig)
		n := newNames(c, z.lookup, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		var changes atomic.Int32
		var running sync.WaitGroup
		running.Go(func() { n.run(ctx, func() { changes.Add(1) }) })
		defer func() { stop(); running.Wait() }()
		gw, dyn, fixed := c.Control.Advertise[0].Host, c.Uplinks[0].Endpoint, c.Uplinks[1].Endpoint
		see := func(what string, h config.Host, want string) {
			t.Helper()
			synctest.Wait()
			if got := fmt.Sprint(n.of(h)); got != "["+want+"]" {
				t.Errorf("%s: %+v at %s, want %s", what, h, got, want)
			}
		}
		n.await(ctx)
		see("at first", gw, "203.0.113.1 2001:db8::1")
		see("at first", dyn, "")
		see("at first", fixed, "203.0.113.9")
		if f := n.findings(); len(f) != 1 || !strings.Contains(f[0].Sentence, "dyn.example.net") || !strings.Contains(f[0].Sentence, "no such host") {
			t.Errorf("findings: %+v", f)
		}

		z.set("dyn.example.net", "198.51.100.1 127.0.0.1 ff02::1")
		time.Sleep(namesEvery)
		see("a minute later", dyn, "198.51.100.1")
		if f := n.findings(); len(f) != 0 {
			t.Errorf("findings: %+v", f)
		}
		synctest.Wait()
		if got := changes.Load(); got != 2 {
			t.Errorf("%d changes", got)
		}

		// What fails is looked up soon, but not again and again.
		z.set("dyn.example.net", "198.51.100.2")
		asked := z.asked
		for range 100 {
			signal(n.doubted)
			time.Sleep(namesRest / 100)
		}
		see("after doubts", dyn, "198.51.100.2")
		if more := z.asked - asked; more > 4 {
			t.Errorf("%d lookups", more)
		}

		// A name that has no address any more keeps the last for half an hour.
		z.set("dyn.example.net", "-")
		time.Sleep(candidateLife - 2*time.Minute)
		see("gone", dyn, "198.51.100.2")
		if f := n.findings(); len(f) != 1 {
			t.Errorf("findings: %+v", f)
		}
		time.Sleep(4 * time.Minute)
		see("expired", dyn, "")
		z.set("dyn.example.net", "127.0.0.1") // of no use to others
		time.Sleep(namesEvery)
		see("loopback", dyn, "")
		if f := n.findings(); len(f) != 1 || !strings.Contains(f[0].Sentence, "no address that others can reach") {
			t.Errorf("findings: %+v", f)
		}
		z.set("dyn.example.net", "198.51.100.3")
		time.Sleep(namesEvery)
		see("back", dyn, "198.51.100.3")
	})
}

// Where the control port is reached follows the names.
func TestAdvertisedNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{addrs: map[string]string{"gw.example.net": "203.0.113.1", "dyn.example.net": "198.51.100.1"}}
		c := testConfig(t, namesConfig)
		a := &Agent{config: c, ctx: t.Context(), names: newNames(c, z.lookup, slog.New(slog.DiscardHandler))}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { a.names.run(ctx, a.renamed) })
		defer func() { stop(); running.Wait() }()
		if got := fmt.Sprint(a.advertise()); got != "[203.0.113.1:9000 203.0.113.7:8686]" {
			t.Error(got)
		}
		z.set("gw.example.net", "203.0.113.2")
		time.Sleep(namesEvery)
		synctest.Wait()
		if got := fmt.Sprint(a.advertise()); got != "[203.0.113.2:9000 203.0.113.7:8686]" {
			t.Error(got)
		}
	})
}
