package truth

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"guywire/integration/lab"
)

const (
	// part bounds how long a mesh is broken before all is killed and what the
	// dead left is looked at, so that no voter has forgotten entries which were
	// not seen yet.
	part = 75 * time.Second
	// life bounds how long a mesh is broken; a longer span is several meshes.
	life = 6 * part
	// tail is the shortest part that is worth while.
	tail = 10 * time.Second
)

// TestTruth lets clients change a mesh while its voters are cut off, killed,
// stopped, set wrong and left without a disk, and judges it by what the clients
// saw and the voters left. Each third mesh has five voters, all others three.
func TestTruth(t *testing.T) {
	for i := 0; time.Duration(i)*life < *span; i++ {
		long := min(life, *span-time.Duration(i)*life)
		if long < tail && i > 0 {
			break
		}
		n := *seed + uint64(i)
		t.Run(fmt.Sprintf("seed %d", n), func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("to repeat it: go test ./integration/truth -run 'TestTruth$' -v -args -span %s -seed %d", long, n)
				}
			})
			tell(t, long, n)
		})
	}
}

// tell is the life of one mesh.
func tell(t *testing.T, long time.Duration, seed uint64) {
	sites := []string{"one", "two", "three"}
	if seed%3 == 0 {
		sites = append(sites, "four", "five")
	}
	w := buildOf(t, lab.Options{Faults: true, Path: []string{clocked}}, sites...)
	o := newOracle(w)
	sniffer := w.launch("west", "sniff")
	for n := 0; n == 0 || long >= tail; n++ {
		began := time.Now()
		if len(o.log.entries) > compactable && long >= 3*part && !w.compacted() {
			w.compact()
			long -= time.Since(began)
		}
		now := min(part, long)
		if long -= now; t.Failed() {
			break
		}
		w.live(o, now, seed, n)
	}
	o.Logf("it was looked at %d times while it lived; no node used more than %+v", o.looks, o.most)
	w.modes()
	w.canaries(w.secrets(), map[string][]byte{"packets at west": sniffer()})
}

// compactable is how many entries make a voter forget some.
const compactable = 1100

// compact lets the voters run in peace until all have made a snapshot and
// forgotten entries: those that were seen, since there are no new ones.
func (w *world) compact() {
	w.Helper()
	for _, site := range w.sites {
		w.start(site)
	}
	for deadline := time.Now().Add(2*time.Minute + patience); !w.compacted() && time.Now().Before(deadline); {
		rest(time.Second)
	}
	if !w.compacted() {
		w.Errorf("not every voter has made a snapshot of more than %d entries", compactable)
	}
	w.killAll()
}

// compacted reports whether every voter has made a snapshot.
func (w *world) compacted() bool {
	for _, site := range w.sites {
		made, err := filepath.Glob(filepath.Join(w.state(site), "control", "raft", "snapshots", "*", "meta.json"))
		if err != nil || len(made) == 0 {
			return false
		}
	}
	return true
}

func (w *world) killAll() {
	w.Helper()
	for _, site := range w.sites {
		if err := w.lab.Kill(w.Context(), site, "", 0); err != nil {
			w.Fatal(err)
		}
	}
}

// live is a part of the life of a mesh, up to the death of all its nodes.
func (w *world) live(o *oracle, long time.Duration, seed uint64, part int) {
	w.Helper()
	if part > 0 { // else it was only just made
		for _, site := range w.sites {
			w.start(site)
		}
	}
	until := time.Now().Add(long)
	beside := w.sites[:3] // of as many sites there are clients
	var holders []string
	for _, site := range beside {
		holders = append(holders, "client-"+site)
	}
	var clients sync.WaitGroup
	witnesses, failures := make([]*witness, len(beside)), make([]error, len(beside))
	for i, site := range beside {
		order, err := json.Marshal(order{
			Number: i, Part: part, Name: holders[i], Token: w.tokens.Client, Holders: holders, Seed: seed,
			Dir: filepath.Join(w.dir(site), "client"), Shared: w.shared, Until: monotonic() + long.Nanoseconds(),
		})
		if err != nil {
			w.Fatal(err)
		}
		witnesses[i] = &witness{}
		clients.Go(func() {
			ctx, cancel := context.WithTimeout(w.Context(), long+lastWait+patience)
			defer cancel()
			failures[i] = w.client(ctx, site, order, witnesses[i])
		})
	}
	stop := o.watch(witnesses)
	w.harm(until, rand.New(rand.NewPCG(seed, uint64(part))))
	clients.Wait()
	stop()
	for i, err := range failures {
		if err != nil {
			w.Errorf("client on %s: %v", beside[i], err)
		}
	}
	w.settled()
	o.look(witnesses)
	w.keep(fmt.Sprintf("history-%d.ndjson", part), witnesses)
	w.killAll()
	var all []remains
	for _, site := range w.sites {
		all = append(all, w.dig(site))
	}
	o.judge(all)
}

// keep leaves the history beside the nodes' files, for who looks at a failure.
func (w *world) keep(name string, parts []*witness) {
	w.Helper()
	var b bytes.Buffer
	for _, part := range parts {
		b.Write(part.all.Bytes())
	}
	if err := os.WriteFile(filepath.Join(w.lab.Dir(), "nodes", name), b.Bytes(), 0o600); err != nil {
		w.Fatal(err)
	}
}

// client runs one, with its log beside that of meshd.
func (w *world) client(ctx context.Context, site string, order []byte, out io.Writer) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(w.dir(site), "client.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	code, err := w.lab.Exec(ctx, site, []string{exe, insideVerb, "client"}, bytes.NewReader(order), out, log)
	if err == nil && code != 0 {
		err = fmt.Errorf("it ended with code %d; see client.log", code)
	}
	return err
}
