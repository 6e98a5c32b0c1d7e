package bench

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAttempts(t *testing.T) {
	var made attempts
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			made.do(func() error {
				if i == 3 {
					return errors.New("no")
				}
				return nil
			})
		})
	}
	all.Wait()
	failed := 0
	for _, a := range made.list {
		if a.Return < a.Call || a.Call == 0 {
			t.Errorf("%+v", a)
		}
		if a.Error == "no" {
			failed++
		}
	}
	if len(made.list) != 10 || failed != 1 {
		t.Errorf("%d attempts, %d failed", len(made.list), failed)
	}
}

func TestRatesOf(t *testing.T) {
	report := func(made ...attempt) []byte {
		b, err := json.Marshal(made)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const ms = time.Millisecond
	rate, took, err := ratesOf(report(attempt{Call: 1000 * ms, Return: 1010 * ms}, attempt{Call: 1010 * ms, Return: 3000 * ms}), report(attempt{Call: 1500 * ms, Return: 2000 * ms}))
	if err != nil || rate != 1.5 || len(took) != 3 || took[0] != 10 || took[2] != 500 {
		t.Errorf("%v a second, %v ms, %v", rate, took, err)
	}
	if _, _, err := ratesOf(report(attempt{Return: 1, Error: "the disk is full"})); err == nil || !strings.Contains(err.Error(), "disk") {
		t.Errorf("a failed attempt: %v", err)
	}
	if _, _, err := ratesOf(report()); err == nil {
		t.Error("no attempt has a rate")
	}
}

func TestBack(t *testing.T) {
	const s = time.Second
	broken := interruption{site: 0, began: 10 * s, broken: 11 * s, ended: 20 * s}
	for what, c := range map[string]struct {
		made [][]attempt
		want time.Duration // 0: never
	}{
		"the later of the others counts": {[][]attempt{
			nil, {{Call: 12 * s, Return: 13 * s}}, {{Call: 12 * s, Return: 14 * s}},
		}, 4 * s},
		"of each its first": {[][]attempt{
			nil, {{Call: 12 * s, Return: 19 * s}, {Call: 13 * s, Return: 15 * s}}, {{Call: 12 * s, Return: 14 * s}},
		}, 5 * s},
		"what broke does not": {[][]attempt{
			{{Call: 12 * s, Return: 12 * s}}, {{Call: 12 * s, Return: 13 * s}}, {{Call: 12 * s, Return: 13 * s}},
		}, 3 * s},
		"nor what was asked before": {[][]attempt{
			nil, {{Call: 10 * s, Return: 11 * s}, {Call: 12 * s, Return: 13 * s}}, {{Call: 9 * s, Return: 13 * s}, {Call: 13 * s, Return: 16 * s}},
		}, 6 * s},
		"nor what failed": {[][]attempt{
			nil, {{Call: 12 * s, Return: 13 * s}}, {{Call: 12 * s, Return: 13 * s, Error: "no"}, {Call: 13 * s, Return: 17 * s}},
		}, 7 * s},
		"one of them never": {[][]attempt{
			nil, {{Call: 12 * s, Return: 13 * s}}, {{Call: 12 * s, Return: 13 * s, Error: "no"}},
		}, 0},
		"nor with the old leader's help": {[][]attempt{
			nil, {{Call: 12 * s, Return: 13 * s}}, {{Call: 12 * s, Return: 21 * s}},
		}, 0},
	} {
		got, err := broken.back(c.made)
		if got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %s, %v; want %s", what, got, err, c.want)
		}
	}
}
