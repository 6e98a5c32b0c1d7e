package truth

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/disk"
	"guywire/mesh/api"
)

// round bounds how long one mesh is broken, so that its log is not compacted and
// can be replayed from the first entry; a longer span is several meshes.
const round = 75 * time.Second

// TestTruth lets clients change a mesh of three voters while they are cut off,
// killed, stopped, set wrong and left without a disk, and judges it by what the
// clients saw and the voters left.
func TestTruth(t *testing.T) {
	for i := 0; time.Duration(i)*round < *span; i++ {
		part := min(round, *span-time.Duration(i)*round)
		if part < 10*time.Second && i > 0 {
			break
		}
		n := *seed + uint64(i)
		t.Run(fmt.Sprintf("seed %d", n), func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("to repeat it: go test ./integration/truth -run 'TestTruth$' -v -args -span %s -seed %d", part, n)
				}
			})
			tell(t, part, n)
		})
	}
}

// tell is one round.
func tell(t *testing.T, part time.Duration, seed uint64) {
	w := build(t, lab.Options{Faults: true, Path: []string{clocked}})
	until := time.Now().Add(part)
	var holders []string
	for _, site := range w.sites {
		holders = append(holders, "client-"+site)
	}
	var clients sync.WaitGroup
	histories, failures := make([]string, len(w.sites)), make([]error, len(w.sites))
	for i, site := range w.sites {
		o, err := json.Marshal(order{
			Number: i, Name: holders[i], Token: w.tokens.Client, Holders: holders, Seed: seed,
			Dir: filepath.Join(w.dir(site), "client"), Shared: w.shared, Until: monotonic() + part.Nanoseconds(),
		})
		if err != nil {
			t.Fatal(err)
		}
		clients.Go(func() {
			ctx, cancel := context.WithTimeout(w.Context(), part+lastWait+patience)
			defer cancel()
			histories[i], failures[i] = w.client(ctx, site, o)
		})
	}
	w.harm(until, rand.New(rand.NewPCG(seed, 0)))
	clients.Wait()
	for i, err := range failures {
		if err != nil {
			t.Errorf("client on %s: %v", w.sites[i], err)
		}
	}
	var history []record
	for _, out := range histories {
		history = append(history, w.records(out)...)
	}
	w.keep("history.ndjson", histories)
	for _, site := range w.sites {
		if err := w.lab.Kill(w.Context(), site, "", 0); err != nil {
			t.Fatal(err)
		}
	}
	w.judge(history)
	w.modes()
	w.canaries(w.secrets(), nil)
}

// keep leaves the history beside the nodes' files, for who looks at a failure.
func (w *world) keep(name string, parts []string) {
	w.Helper()
	var b bytes.Buffer
	for _, part := range parts {
		b.WriteString(part)
	}
	if err := os.WriteFile(filepath.Join(w.lab.Dir(), "nodes", name), b.Bytes(), 0o600); err != nil {
		w.Fatal(err)
	}
}

// client runs one, with its log beside that of meshd.
func (w *world) client(ctx context.Context, site string, order []byte) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	log, err := os.OpenFile(filepath.Join(w.dir(site), "client.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer log.Close()
	var out bytes.Buffer
	code, err := w.lab.Exec(ctx, site, []string{exe, insideVerb, "client"}, bytes.NewReader(order), &out, log)
	if err == nil && code != 0 {
		err = fmt.Errorf("it ended with code %d; see client.log", code)
	}
	return out.String(), err
}

// harm breaks one thing after the other until the time is over, then mends
// all.
func (w *world) harm(until time.Time, random *rand.Rand) {
	w.Helper()
	ctx := w.Context()
	began := time.Now()
	say := func(format string, args ...any) {
		w.Logf("%5.1f s: %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	must := func(err error) {
		w.Helper()
		if err != nil {
			w.Fatal(err)
		}
	}
	rest := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	again := func(site string) {
		must(w.lab.Kill(ctx, site, "", 0))
		w.start(site)
	}
	faults := []func(site string, d time.Duration){
		func(site string, d time.Duration) {
			say("%s is killed", site)
			must(w.lab.Kill(ctx, site, "", syscall.SIGKILL))
			rest(d)
			w.start(site)
		},
		func(site string, d time.Duration) {
			say("%s stands still for %s", site, d)
			must(w.lab.Pause(ctx, site, "", d))
		},
		func(site string, d time.Duration) {
			offset := []time.Duration{time.Hour, -time.Hour}[random.IntN(2)]
			say("the clock of %s is off by %s", site, offset)
			must(w.lab.Clock(ctx, site, offset, d))
		},
		func(site string, d time.Duration) {
			say("the disk of %s stalls for %s", site, d)
			must(w.lab.Disk(ctx, site, disk.Stall, d))
			again(site)
		},
		func(site string, _ time.Duration) {
			say("the disk of %s fails", site)
			must(w.lab.Disk(ctx, site, disk.IO, 2*time.Second))
			again(site)
		},
		func(site string, d time.Duration) {
			say("%s is cut off", site)
			must(w.lab.Cut(ctx, w.uplink(site), ""))
			rest(d)
		},
		func(site string, d time.Duration) {
			say("%s hears and is not heard", site)
			must(w.lab.Cut(ctx, w.uplink(site), site))
			rest(d)
		},
		func(_ string, d time.Duration) {
			say("west and east are parted")
			must(w.lab.Partition(ctx, []string{"west"}, []string{"east"}))
			rest(d)
		},
		func(string, time.Duration) {
			say("all are killed")
			for _, site := range w.sites {
				must(w.lab.Kill(ctx, site, "", syscall.SIGKILL))
			}
			for _, site := range w.sites {
				w.start(site)
			}
		},
	}
	order := random.Perm(len(faults))
	for i := 0; time.Now().Before(until) && ctx.Err() == nil; i++ {
		site := w.sites[random.IntN(len(w.sites))]
		if led := w.leader(); led != "" && random.IntN(2) == 0 {
			site = led
		}
		faults[order[i%len(order)]](site, time.Duration(3000+random.IntN(4000))*time.Millisecond)
		must(w.lab.Heal(ctx, ""))
		rest(time.Duration(1000+random.IntN(3000)) * time.Millisecond)
	}
	say("all is mended")
}

// leader is the site that leads, as far as any knows.
func (w *world) leader() string {
	for _, site := range w.sites {
		var st api.Status
		if w.ask(site, "status", &st) == nil && st.Node != nil && slices.Contains(w.sites, st.Node.Leader) {
			return st.Node.Leader
		}
	}
	return ""
}

// uplink names the link of a site to its router.
func (w *world) uplink(site string) string {
	w.Helper()
	st, err := w.lab.Status(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	n, _ := st.Node(site)
	for _, i := range n.Interfaces {
		if i.Name != "lan" {
			return site + ":" + i.Name
		}
	}
	w.Fatalf("%s has no uplink", site)
	return ""
}
