package grid

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"guywire/integration/lab"
)

var labs atomic.Int32

// options are those of a lab of its own.
func options() Options {
	return Options{Options: lab.Options{Name: fmt.Sprintf("grid-%d-%d", os.Getpid(), labs.Add(1)), Path: []string{bin}}}
}

// needLab skips a test where labs or tunnels cannot be made.
func needLab(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("tunnels need a /dev/net/tun that we may open: %v", err)
	}
	_ = f.Close()
	l, err := lab.Up(t.Context(), &lab.Network{Nodes: map[string]*lab.Node{"r": {Kind: lab.Router}}}, options().Options)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("the machine lets us make no namespaces: %v", err)
	}
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestGrid measures every pair of kinds, or a share of them. A cell that fails is measured once more, alone on the machine,
// before it counts.
func TestGrid(t *testing.T) {
	needLab(t)
	cells, err := Expected()
	if err != nil {
		t.Fatal(err)
	}
	pattern := *only
	if *all {
		pattern = ".*"
	}
	chosen, err := Choose(pattern)
	if err != nil {
		t.Fatal(err)
	}
	var alone sync.RWMutex
	var mu sync.Mutex // guards results
	results := map[Cell]Result{}
	t.Run("cells", func(t *testing.T) {
		for _, c := range cells {
			t.Run(c.String(), func(t *testing.T) {
				if !slices.Contains(chosen, c) {
					t.Skip("not in the share of `make test`; run `make grid`")
				}
				t.Parallel()
				alone.RLock()
				r, err := Measure(t.Context(), options(), c)
				alone.RUnlock()
				if err != nil || !r.Passes() {
					first := r.String()
					if err != nil {
						first += ": " + err.Error()
					}
					t.Log("at first:", first)
					alone.Lock()
					r, err = Measure(t.Context(), options(), c)
					alone.Unlock()
					r.First = first
				}
				if err != nil {
					t.Fatal(err)
				}
				if !r.Passes() {
					t.Error("again, alone:", r)
				} else {
					t.Log(r)
				}
				mu.Lock()
				defer mu.Unlock()
				results[c] = r
			})
		}
	})
	list := []Result{}
	for _, c := range cells {
		if r, measured := results[c]; measured {
			list = append(list, r)
		}
	}
	var table strings.Builder
	if err := Render(&table, list); err != nil {
		t.Fatal(err)
	}
	t.Logf("way and seconds until it is known, from the join of the second site:\n%s", table.String())
	if *jsonOut == "" {
		return
	}
	data, err := json.MarshalIndent(map[string]any{"schema": 1, "cells": list}, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(*jsonOut), 0o755)
	}
	if err == nil {
		err = os.WriteFile(*jsonOut, append(data, '\n'), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}
