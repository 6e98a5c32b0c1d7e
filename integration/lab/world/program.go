package world

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Program runs on a node until it is stopped. Its output is one JSON document.
type Program struct {
	node, name string
	paced      func(time.Duration) time.Duration
	out        bytes.Buffer // valid once ended is closed
	said       *transcript
	signals    chan os.Signal
	cancel     context.CancelFunc
	ended      chan struct{}
	code       int   // valid once ended is closed
	err        error // likewise
}

// Launch starts a program on a node. It runs until Stop, Finish, Kill, its own end or the end of ctx.
func (w *World) Launch(ctx context.Context, node string, argv ...string) *Program {
	ctx, cancel := context.WithCancel(ctx)
	p := &Program{
		node: node, paced: w.paced, name: strings.Join(argv[1:min(len(argv), 3)], " "), said: newTranscript(),
		signals: make(chan os.Signal, 1), cancel: cancel, ended: make(chan struct{}),
	}
	go func() { // ends with the program, which ends with ctx
		defer close(p.ended)
		p.code, p.err = w.Nodes.ExecSignals(ctx, node, argv, nil, &p.out, p.said, p.signals)
	}()
	return p
}

// startLimit is how long a program may take until it does its work.
const startLimit = 10 * time.Second

// Started waits until the program says that it does its work, and returns what it said behind that word.
func (p *Program) Started(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, p.paced(startLimit))
	defer cancel()
	select {
	case <-p.said.ready:
		return p.said.behind(), nil
	case <-p.ended:
		return "", p.failure()
	case <-ctx.Done():
		return "", fmt.Errorf("%s on %s does not start: %w", p.name, p.node, context.Cause(ctx))
	}
}

// stopLimit is how long a program may take to end once it was told to.
const stopLimit = 10 * time.Second

// Stop tells the program to end and decodes its document; a nil doc is not decoded.
func (p *Program) Stop(ctx context.Context, doc any) error {
	select {
	case p.signals <- syscall.SIGTERM:
	default: // it was told already
	}
	return p.Finish(ctx, stopLimit, doc)
}

// Finish waits for the program's own end and decodes its document; a nil doc is not decoded.
func (p *Program) Finish(ctx context.Context, limit time.Duration, doc any) error {
	ctx, cancel := context.WithTimeout(ctx, p.paced(limit))
	defer cancel()
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("%s on %s does not end: %w", p.name, p.node, context.Cause(ctx))
	}
	p.cancel()
	if p.err != nil || p.code != 0 {
		return p.failure()
	}
	if doc == nil {
		return nil
	}
	if err := json.Unmarshal(p.out.Bytes(), doc); err != nil {
		return fmt.Errorf("read the report of %s on %s: %w", p.name, p.node, err)
	}
	return nil
}

// failure is why the program ended; it has.
func (p *Program) failure() error {
	if p.err != nil {
		return fmt.Errorf("%s on %s: %w", p.name, p.node, p.err)
	}
	return &exitError{p.node, p.name, p.code, p.said.text()}
}

// Kill ends the program at once. It may be called at any time, also twice.
func (p *Program) Kill() {
	p.cancel()
	<-p.ended
}

// maxTranscript bounds what is kept of a program's standard error, in bytes.
const maxTranscript = 64 << 10

// A transcript is what a program says on standard error. It notices the line that begins with ready.
type transcript struct {
	ready chan struct{} // closed by that line

	mu   sync.Mutex // guards the rest
	all  []byte
	line string // behind the word ready
	seen bool
}

func newTranscript() *transcript { return &transcript{ready: make(chan struct{})} }

// Write implements io.Writer.
func (t *transcript) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := maxTranscript - len(t.all); room > 0 {
		t.all = append(t.all, b[:min(len(b), room)]...)
	}
	if t.seen {
		return len(b), nil
	}
	for line := range bytes.Lines(t.all) {
		if rest, found := bytes.CutPrefix(line, []byte(Ready)); found && bytes.HasSuffix(line, []byte("\n")) {
			t.line, t.seen = strings.TrimSpace(string(rest)), true
			close(t.ready)
			break
		}
	}
	return len(b), nil
}

func (t *transcript) behind() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.line
}

func (t *transcript) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return sentence(string(t.all))
}

// killAll ends programs, nil ones too.
func killAll(programs ...*Program) {
	for _, p := range programs {
		if p != nil {
			p.Kill()
		}
	}
}

// StopAll tells programs to end, all before it waits for the first, and decodes their documents.
func StopAll[T any](ctx context.Context, programs []*Program) (docs []T, err error) {
	docs = make([]T, len(programs))
	return docs, stopAll(ctx, programs, docs)
}

func stopAll[T any](ctx context.Context, programs []*Program, docs []T) error {
	for _, p := range programs {
		select {
		case p.signals <- syscall.SIGTERM:
		default:
		}
	}
	var errs []error
	for i, p := range programs {
		errs = append(errs, p.Finish(ctx, stopLimit, &docs[i]))
	}
	return errors.Join(errs...)
}
