package model

import (
	"fmt"
	"strings"
	"time"
)

// settleWithin bounds the time from the end of all disturbances until all is
// as it should be. It has room for the patience with agents that are gone and
// for kernels that take seconds.
const settleWithin = 40 * time.Second

// Run is a whole run: a mesh starts, is disturbed, and settles.
func Run(seed uint64, opt Options) *World {
	// The slower checks are made in some runs only.
	if opt.Broken == Sound {
		opt.Labels = opt.Labels || seed%4 == 0
		opt.Walk = opt.Walk || seed%2 == 0
	}
	w := New(seed, opt)
	w.Chaos()
	if opt.Broken == Sound && !w.stopped {
		if wrong := w.Settle(settleWithin); wrong != "" && !w.stopped {
			w.fail("%v after the last disturbance %s", settleWithin, wrong)
		}
	}
	for a := range w.looping.all {
		w.LoopTime += w.now - w.loopSince[a]
	}
	return w
}

// LoopShare is the share of the time, over all addresses, in which packets
// could loop.
func (w *World) LoopShare() float64 {
	return float64(w.LoopTime) / float64(w.now) / float64(len(w.space.addrs))
}

// Explain runs a seed again and gives the problem and what happened before it.
func Explain(seed uint64, opt Options) string {
	const kept = 120
	var lines []string
	opt.Trace = func(line string) {
		if lines = append(lines, line); len(lines) > 2*kept {
			lines = append(lines[:0], lines[kept:]...)
		}
	}
	w := Run(seed, opt)
	lines = lines[max(0, len(lines)-kept):]
	return fmt.Sprintf("seed %d: %d nodes, %s\n\nwhat happened last:\n%s\n", seed, len(w.nodes), w.Problem, strings.Join(lines, "\n"))
}
