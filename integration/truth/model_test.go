package truth

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"

	"guywire/store"
)

// model is what one object is to its clients, by its kind. Its state is the
// value that a read shows.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(operation).Key
			byKey[key] = append(byKey[key], o)
		}
		for _, key := range slices.Sorted(maps.Keys(byKey)) {
			parts = append(parts, byKey[key])
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		o := input.(operation)
		is, got := state.(string), output.(string)
		if o.Do == "read" {
			return is == got || is == "" && got == "none", state
		}
		next, want := decide(is, o)
		if got == unknown { // it may have happened, or may happen never
			return true, next
		}
		return got == want, next
	},
	DescribeOperation: func(input, output any) string {
		o := input.(operation)
		return fmt.Sprintf("%d: %s %s %s → %v", o.Client, o.Do, o.Key, o.Arg, output)
	},
	DescribeState: func(state any) string { return state.(string) },
}

// decide gives the state after an operation, and its outcome.
func decide(is string, o operation) (next, outcome string) {
	kind, _, _ := strings.Cut(o.Key, "/")
	switch kind + " " + o.Do {
	case "prefix give":
		if is != "" && is != o.Arg {
			return is, store.CodePrefixTaken
		}
		return o.Arg, ok
	case "prefix take": // replaces what the node has by nothing
		if is == o.Arg {
			is = ""
		}
		return is, ok
	case "address give":
		if is != "" && is != o.Arg {
			return is, store.CodeAddressTaken
		}
		return o.Arg, ok
	case "address take":
		if is != o.Arg {
			return is, store.CodeNotFound
		}
		return "", ok
	case "token create":
		return o.Arg, ok
	case "token revoke":
		if is == "" {
			return is, store.CodeNotFound
		}
		return "", ok
	case "token join":
		uses, err := strconv.Atoi(is)
		switch {
		case err != nil:
			return is, store.CodeTokenUnknown
		case uses == 0:
			return is, store.CodeTokenUsed
		default:
			return strconv.Itoa(uses - 1), ok
		}
	case "node join":
		return "live", ok
	case "node revoke":
		if is == "" {
			return is, store.CodeNotFound
		}
		return "gone", ok // also when it was before
	}
	panic("no such operation: " + o.Key + " " + o.Do)
}

// linearizable checks a history. The log says what became of those whose
// outcome the client does not know: they took effect at some time after their
// call, or never.
func linearizable(t testing.TB, history []operation, l *replay) {
	t.Helper()
	var all []porcupine.Operation
	for _, o := range history {
		end, outcome := o.Return, o.Outcome
		if o.Do == "read" {
			outcome = o.Value
		}
		if outcome == unknown {
			end = math.MaxInt64
			if o.Do == "join" || !o.Request.IsZero() {
				decided, found := l.outcome(o)
				if !found {
					continue // it never happened
				}
				outcome = decided
			}
		}
		all = append(all, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Output: outcome, Return: end})
		if o.Do == "join" && outcome == ok {
			o.Key = "node/" + o.Arg
			all = append(all, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Output: ok, Return: end})
		}
	}
	for _, part := range model.Partition(all) {
		switch result, info := porcupine.CheckOperationsVerbose(model, part, patience); result {
		case porcupine.Ok:
		case porcupine.Unknown:
			t.Errorf("%d operations on %s were too many to judge", len(part), part[0].Input.(operation).Key)
		case porcupine.Illegal:
			t.Errorf("operations on %s are not linearizable; as many as can be put in an order:\n%s", part[0].Input.(operation).Key, longest(part, info))
		}
	}
}

// longest tells the longest order that was found, and what is left.
func longest(part []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var best []porcupine.Operation
	for _, orders := range info.PartialLinearizationsOperations() {
		for _, o := range orders {
			if len(o) > len(best) {
				best = o
			}
		}
	}
	var b strings.Builder
	line := func(o porcupine.Operation) {
		fmt.Fprintf(&b, "  %d to %d: %s\n", o.Call/1e6, o.Return/1e6, model.DescribeOperation(o.Input, o.Output))
	}
	for _, o := range best[max(0, len(best)-15):] {
		line(o)
	}
	b.WriteString("and these not:\n")
	left := slices.Clone(part)
	slices.SortFunc(left, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	n := 0
	for _, o := range left {
		if n < 15 && !slices.ContainsFunc(best, func(p porcupine.Operation) bool { return p.Input == o.Input }) {
			line(o)
			n++
		}
	}
	return b.String()
}

// TestModel: the model finds what it is there to find.
func TestModel(t *testing.T) {
	at := func(call int64, key, do, arg, outcome, value string) operation {
		return operation{Key: key, Do: do, Arg: arg, Call: call, Return: call + 5, Outcome: outcome, Value: value}
	}
	token := at(0, "token/t", "create", "1", ok, "")
	for name, tt := range map[string]struct {
		history []operation
		good    bool
	}{
		"used once":                 {[]operation{token, at(10, "token/t", "join", "a", ok, ""), at(20, "token/t", "join", "b", store.CodeTokenUsed, "")}, true},
		"used twice":                {[]operation{token, at(10, "token/t", "join", "a", ok, ""), at(12, "token/t", "join", "b", ok, "")}, false},
		"refused though unused":     {[]operation{token, at(10, "token/t", "join", "a", store.CodeTokenUsed, "")}, false},
		"used after its revocation": {[]operation{token, at(10, "token/t", "revoke", "", ok, ""), at(20, "token/t", "join", "b", ok, "")}, false},
		"revoked at some time":      {[]operation{token, at(10, "token/t", "revoke", "", unknown, "timeout"), at(20, "token/t", "join", "b", ok, ""), at(30, "token/t", "read", "", ok, "none")}, true},
		"lost":                      {[]operation{at(0, "prefix/p", "give", "a", ok, ""), at(10, "prefix/p", "read", "", ok, "")}, false},
		"stale":                     {[]operation{at(0, "address/p", "give", "a", ok, ""), at(10, "address/p", "take", "a", ok, ""), at(20, "address/p", "read", "", ok, "a")}, false},
		"two owners":                {[]operation{at(0, "prefix/p", "give", "a", ok, ""), at(2, "prefix/p", "give", "b", ok, "")}, false},
		"one owner":                 {[]operation{at(0, "prefix/p", "give", "a", ok, ""), at(2, "prefix/p", "give", "b", store.CodePrefixTaken, ""), at(9, "prefix/p", "read", "", ok, "a")}, true},
		"back from the dead":        {[]operation{token, at(10, "token/t", "join", "a", ok, ""), at(20, "node/a", "revoke", "", ok, ""), at(30, "node/a", "read", "", ok, "live")}, false},
	} {
		found := &verdict{TB: t}
		linearizable(found, tt.history, &replay{})
		if found.bad == tt.good {
			t.Errorf("%s: linearizable is %v", name, !found.bad)
		}
	}
}

// A verdict is a test that may fail.
type verdict struct {
	testing.TB
	bad bool
}

func (v *verdict) Errorf(string, ...any) { v.bad = true }
