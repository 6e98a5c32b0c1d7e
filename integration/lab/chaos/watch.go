package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"guywire/integration/lab/world"
)

// A watcher reads the views of all sites.
type watcher struct {
	to    []netip.Addr
	sites map[string]*eye
}

// An eye is the program inside a site that reads its kernel's tables. One question is asked at a time.
type eye struct {
	site  string
	ask   *io.PipeWriter
	told  *bufio.Reader
	said  strings.Builder // on standard error, once ended is closed
	err   error           // likewise
	ended chan struct{}
}

// watch starts the eyes. They end with ctx.
func watch(ctx context.Context, w *world.World, to []netip.Addr) *watcher {
	ws := &watcher{to: to, sites: map[string]*eye{}}
	argv := []string{w.Exe, world.InsideVerb, "views"}
	for _, t := range to {
		argv = append(argv, "--to", t.String())
	}
	for _, s := range w.Sites {
		in, ask := io.Pipe()
		told, out := io.Pipe()
		e := &eye{site: s.Name, ask: ask, told: bufio.NewReader(told), ended: make(chan struct{})}
		ws.sites[s.Name] = e
		go func() { // ends with the program, which ends with ctx
			defer close(e.ended)
			// Nobody listens any more then, and the program's output must find its way out.
			defer context.AfterFunc(ctx, func() { _ = told.CloseWithError(io.ErrClosedPipe) })()
			var code int
			code, e.err = w.Lab.Exec(ctx, s.Name, argv, in, out, &e.said)
			if e.err == nil {
				e.err = fmt.Errorf("ended with code %d", code)
			}
			_ = in.CloseWithError(io.ErrClosedPipe)
			_ = out.CloseWithError(io.ErrClosedPipe)
		}()
	}
	return ws
}

// read asks one site.
func (e *eye) read() (v view, err error) {
	if _, err = e.ask.Write([]byte("\n")); err == nil {
		var line []byte
		if line, err = e.told.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &v)
		}
	}
	if errors.Is(err, io.ErrClosedPipe) {
		<-e.ended
		err = errors.Join(e.err, errors.New(strings.TrimSpace(e.said.String())))
	}
	if err != nil {
		return v, fmt.Errorf("read the tables of %s: %w", e.site, err)
	}
	return v, nil
}

// all reads all sites side by side.
func (ws *watcher) all() (map[string]view, error) {
	views := map[string]view{}
	var mu sync.Mutex // guards views and errs
	var errs []error
	var readers sync.WaitGroup
	for name, e := range ws.sites {
		readers.Go(func() {
			v, err := e.read()
			mu.Lock()
			defer mu.Unlock()
			views[name] = v
			errs = append(errs, err)
		})
	}
	readers.Wait()
	return views, errors.Join(errs...)
}

// A circle is a cycle that was there.
type circle struct {
	to    netip.Addr
	sites []string
}

func (c circle) String() string {
	return fmt.Sprintf("packets for %s may go %s → %s", c.to, strings.Join(c.sites, " → "), c.sites[0])
}

// A walk is what one look at the tables of all sites showed.
type walk struct {
	edges    int // next hops, over all destinations
	suspects int // cycles between views of different moments
	circles  []circle
}

// search reads all sites and looks for cycles. The views of different sites are of different moments, so the sites of a cycle
// are read again, one after the other, before it counts.
func (ws *watcher) search() (w walk, err error) {
	views, err := ws.all()
	if err != nil {
		return w, err
	}
	for _, to := range ws.to {
		e := union(views, to)
		w.edges += e.count()
		c := e.cycle()
		if c == nil {
			continue
		}
		w.suspects++
		again := maps.Clone(views)
		for _, site := range c {
			if again[site], err = ws.sites[site].read(); err != nil {
				return w, err
			}
		}
		if union(again, to).has(c) && !slices.ContainsFunc(w.circles, func(f circle) bool { return slices.Equal(f.sites, c) }) {
			w.circles = append(w.circles, circle{to, c})
		}
	}
	return w, nil
}
