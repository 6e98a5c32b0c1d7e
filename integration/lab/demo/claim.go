package demo

import (
	"fmt"

	"guywire/integration/lab/world"
)

// A claim is what is promised of one event.
type claim struct {
	limitMs  float64 // of the gap; 0: no limit of its own
	lossless bool    // no packet may be lost
	moves    bool    // the flow must have another way afterwards, or the event did not hit it
}

// The promises are for a machine that has little else to do. Another one misses them, which is shown and does not fail the demo.
var (
	silentDeath = claim{limitMs: 150, moves: true} // a path dies and nobody says so
	carrierLost = claim{limitMs: 60, moves: true}
	lossless    = claim{lossless: true}
)

// A Row is what one event did to the traffic, and how that compares with what is promised.
type Row struct {
	Step int `json:"step"`
	world.Felt
	LimitMs float64 `json:"limit_ms"` // promised; 0: none
	NoLoss  bool    `json:"lossless"` // promised
	Verdict string  `json:"verdict"`  // ok, slow, missed or FAIL
	Why     string  `json:"why"`      // of the verdict, unless ok
}

// judged makes a row of what was felt.
func (c claim) judged(step int, f world.Felt) Row {
	r := Row{Step: step, Felt: f, LimitMs: c.limitMs, NoLoss: c.lossless}
	r.Verdict, r.Why = verdict(f, c)
	return r
}

// verdict judges a row: "ok"; "slow" when it misses its limit without breaking the demo; "FAIL".
func verdict(r world.Felt, c claim) (v, why string) {
	const failMs = 1000 // the wide margin
	switch {
	case r.Sent == 0:
		return verdictFail, "nothing was sent"
	case r.Open:
		return verdictFail, "the flow did not come back"
	case c.lossless && r.Lost > 0:
		return verdictFail, fmt.Sprintf("%d packets lost where none may be", r.Lost)
	case r.GapMs > failMs:
		return verdictFail, fmt.Sprintf("the gap is longer than %d ms", failMs)
	case c.moves && r.Before == r.After && r.BackBefore == r.BackAfter:
		return verdictFail, "the flow did not move, so the event did not hit it"
	case r.Astray != "":
		return verdictFail, "afterwards the " + r.Astray
	case c.moves && r.Lost == 0:
		return verdictMissed, "nothing was lost: the flow had moved just before it was hit"
	case c.limitMs > 0 && r.GapMs > c.limitMs:
		return verdictSlow, fmt.Sprintf("the gap is longer than the promised %.0f ms", c.limitMs)
	default:
		return verdictOK, ""
	}
}

// The verdicts.
const (
	verdictOK     = "ok"
	verdictSlow   = "slow"
	verdictMissed = "missed" // the event did not reach the traffic, and nothing is shown by it
	verdictFail   = "FAIL"
)
